"""Forward and backward of a model on the device in fp32 and bf16, against the same in fp64 on the CPU."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from unittest import mock

import torch
from torch import Tensor

from experiments.benchmarks.gpu_parts.finding import Figures, OutOfBounds
from experiments.benchmarks.gpu_parts.sizes import PartSize
from experiments.benchmarks.harness import CPU
from experiments.benchmarks.random_model import latent_sizes, random_batch, random_clip, random_model
from pretrain.model.flavors import flavor
from pretrain.model.plan import clip_shape
from pretrain.model.shell import AVTransformer
from pretrain.objective import Corrupted, ObjectiveConfig, corrupt, velocity_loss
from pretrain.sampling import lower_precision
from pretrain.types import Task

# Largest error relative to the norm of what is exact. Measured on a CPU at debug size: fp32 2e-7, bf16 0.6 %;
# products in TF32 round at 5e-4.
LIMITS = {"fp32": 2e-5, "bf16": 0.04}
Answers = dict[str, Tensor]


def correctness(size: PartSize, device: torch.device) -> Iterator[Figures]:
    """Errors of both velocities and of all gradients together. Raises OutOfBounds."""
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("highest")
    args = flavor(size.exact_flavor)
    model = random_model(args, torch.float32, CPU)
    clip = random_clip(args, clip_shape(args, *size.exact_clip), latent_sizes(*size.exact_clip))
    given = corrupt(random_batch(clip, 1, Task.T2AV, CPU), ObjectiveConfig(), 0)
    with fp64():
        exact = answers(copy.deepcopy(model).double(), given)
    wrong = []
    for name, limit in LIMITS.items():
        here = copy.deepcopy(model)
        if name == "bf16":
            here = lower_precision(here, torch.bfloat16)
        found = errors(answers(here.to(device), given.to(device)), exact)
        worst = max(found.values())
        words = f"{name} {100 * worst:.2g} % from fp64 at most"
        yield Figures(name, {**found, "limit": limit}, words)
        if not worst <= limit:  # NaN too
            wrong.append(f"{name}: {worst:.3g} of the norm from fp64, at most {limit}")
    if wrong:
        raise OutOfBounds("; ".join(wrong))


@contextmanager
def fp64() -> Iterator[None]:
    """What the model does in fp32 whatever its weights are in is done in fp64, but for the angles of RoPE."""
    with mock.patch.object(Tensor, "float", Tensor.double):
        yield


def answers(model: AVTransformer, given: Corrupted) -> Answers:
    """Velocities and gradients of the loss, on the CPU in fp64."""
    velocity = model(given.video, given.audio, given.conditioning)
    sums, weights = velocity_loss(velocity, given), ObjectiveConfig()
    sums.loss(sums.video_count, sums.audio_count, weights.audio_weight).backward()
    found = {"video": velocity.video, "audio": velocity.audio}
    found |= {f"gradient {name}": parameter.grad for name, parameter in model.named_parameters()}
    return {name: value.detach().cpu().double() for name, value in found.items() if value is not None}


def errors(found: Mapping[str, Tensor], exact: Mapping[str, Tensor]) -> dict[str, float]:
    """|found - exact| / |exact| of video, audio and the gradients.

    Raises OutOfBounds where one is missing.
    """
    if missing := sorted(found.keys() ^ exact.keys()):
        raise OutOfBounds(f"answered on one side only: {', '.join(missing[:5])}")
    apart = {"video": ["video"], "audio": ["audio"]}
    apart["gradients"] = [name for name in exact if name not in apart]
    return {
        part: float(
            f"{_norm(found[name] - exact[name] for name in names) / _norm(exact[name] for name in names):.3g}"
        )
        for part, names in apart.items()
    }


def _norm(tensors: Iterator[Tensor]) -> float:
    return sum(float(tensor.square().sum()) for tensor in tensors) ** 0.5
