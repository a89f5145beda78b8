"""How often a training step and a sampling step make the host wait for the device, and where."""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from experiments.benchmarks.full_step import ModelStep, train
from experiments.benchmarks.gpu_parts.finding import Figures, OutOfBounds
from experiments.benchmarks.gpu_parts.sizes import PartSize
from experiments.benchmarks.harness import CPU
from experiments.benchmarks.host_reads import HostReads
from experiments.benchmarks.random_model import latent_sizes, random_batch, random_clip, random_model
from pretrain.flow.guidance import NO_GUIDANCE
from pretrain.flow.solvers import Latents, SolverName
from pretrain.model.flavors import flavor
from pretrain.model.plan import clip_shape
from pretrain.objective import ObjectiveConfig, corrupt, velocity_loss
from pretrain.sampling import LatentRates, SamplerConfig, sample
from pretrain.types import AUDIO_TOKENS_PER_S, Task, cache_flags

# What tests/test_device_paths.py holds on a pretended GPU; UniPC's coefficients are diffusers' business.
MOST = {"training step": 3, "forward and backward": 0, "euler step": 0}
MOST_ON_CPU = {"forward and backward": 0}
STEPS = (3, 5)  # of two trajectories, whose difference leaves out how one begins and ends
VIDEO_RATE_HZ = 6.0
Places = Counter[str]


def waits(size: PartSize, device: torch.device) -> Iterator[Figures]:
    """Counts per step. Raises OutOfBounds above MOST.

    On a GPU by torch's own mode that warns of every synchronising call. A CPU has none: there values read
    from tensors are counted, the host's own among them, and the trainer, which noises on the host, is left
    out.
    """
    torch.manual_seed(0)
    on_gpu = device.type == "cuda"
    counted = [("forward and backward", _passes(size, device))]
    if on_gpu:
        counted.append(("training step", _training_step(size, device)))
    counted += [(f"{solver} step", _sampling_step(size, device, solver)) for solver in ("euler", "unipc")]
    wrong = []
    for name, places in counted:
        count, most = sum(places.values()), (MOST if on_gpu else MOST_ON_CPU).get(name)
        what = "synchronising calls" if on_gpu else "values read, of the host's tensors too"
        figures = {"count": count, "most": most, "what": what, "places": dict(sorted(places.items()))}
        yield Figures(name, figures, f"{name}: {count} {what}")
        if most is not None and count > most:
            wrong.append(f"{name}: {count} waits, at most {most} ({', '.join(places)})")
    if wrong:
        raise OutOfBounds("; ".join(wrong))


@contextmanager
def counting(device: torch.device) -> Iterator[Places]:
    """Place in our code -> waits inside."""
    places: Places = Counter()
    if device.type != "cuda":
        with HostReads() as reads:
            yield places
        places.update({"read on the CPU": reads.count} if reads.count else {})
        return
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, *_: places.update(
            [_place()] if "synchronizing CUDA operation" in str(message) else []
        )
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield places
        finally:
            torch.cuda.set_sync_debug_mode(before)


def _place() -> str:
    """The innermost function outside of torch and of this file on the stack."""
    frame = sys._getframe(1)
    while frame:
        file = Path(frame.f_code.co_filename)
        if file != Path(__file__) and "torch" not in file.parts and file.name != "warnings.py":
            return f"{'/'.join(file.parts[-3:])} {frame.f_code.co_name}"
        frame = frame.f_back  # type: ignore[assignment]
    return "elsewhere"


def _passes(size: PartSize, device: torch.device) -> Places:
    args, clip = flavor(size.waits_flavor), size.waits_clip
    model = random_model(args, torch.bfloat16, device)
    batch = random_batch(random_clip(args, clip_shape(args, *clip), latent_sizes(*clip)), 1, Task.T2AV, CPU)
    given = corrupt(batch, ObjectiveConfig(), 0)
    cache_flags(given.video, given.audio, given.conditioning)
    given = given.to(device)

    def both() -> None:
        sums = velocity_loss(model(given.video, given.audio, given.conditioning), given)
        sums.loss(80.0, 20.0, 0.2).backward()

    both()  # the first call of a kernel may wait for more
    with counting(device) as places:
        both()
    return places


def _training_step(size: PartSize, device: torch.device) -> Places:
    step = ModelStep(size.waits_flavor, *size.waits_clip, compiled=False, device=device)
    with train(step, 1) as work:
        work.take()  # logs, and makes what later steps have
        with counting(device) as places:
            work.take()
    return places


def _sampling_step(size: PartSize, device: torch.device, solver: SolverName) -> Places:
    """Of one step between the first and the last ones."""
    args = flavor(size.waits_flavor)
    model = random_model(args, torch.bfloat16, device).eval()
    clip = random_clip(args, clip_shape(args, *size.waits_clip), latent_sizes(*size.waits_clip))
    conditioning = random_batch(clip, 1, Task.T2AV, CPU).conditioning.to(device)
    rates = LatentRates(VIDEO_RATE_HZ, AUDIO_TOKENS_PER_S)

    def trajectory(steps: int) -> Places:
        start = Latents(*(_noise(latents, device) for latents in (clip.video, clip.audio)))
        config = SamplerConfig(solver=solver, steps=steps, guidance=NO_GUIDANCE)
        with counting(device) as places:
            sample(model, start, conditioning, rates, config)
        return places

    trajectory(STEPS[0])
    few, more = (trajectory(steps) for steps in STEPS)
    apart = STEPS[1] - STEPS[0]
    return Counter(
        {place: -(-(count - few[place]) // apart) for place, count in more.items() if count > few[place]}
    )


def _noise(latents: Tensor | None, device: torch.device) -> Tensor | None:
    return None if latents is None else torch.randn(1, *latents.shape, device=device)
