"""Cost of a model from its sizes: parameters, tokens, FLOPs, memory per GPU and time; allocates nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pretrain.model.args import ModelArgs
from pretrain.model.context_parallel import check_degree, check_split
from pretrain.model.flavors import flavor
from pretrain.model.flops import (
    ClipShape,
    block_flops,
    forward_flops,
    params_met_per_video_token,
    self_attention_flops,
    training_flops,
)
from pretrain.model.plan_memory import (
    Memory,
    largest_local_batch,
    memory_parts,
)
from pretrain.model.plan_setup import Checkpointing, Setup
from pretrain.model.plan_sizes import sizes_of
from pretrain.types import PIXELS_PER_LATENT, num_audio_tokens, num_video_latents

GIB = 2**30
# RTX 4090, L40S, H100, H200; decimal, as they are sold
LIMITS_GB = (24, 48, 80, 141)
# fields of `Setup` that a plan repeats
SHOWN = (
    "replicas",
    "context",
    "checkpointing",
    "local_batch",
    "work",
    "base",
    "rank",
    "moments",
    "micro_batches",
    "one_unit",
    "reshard",
    "compiled",
    "parked",
    "parked_rewards",
)


def plan_model(
    name: str,
    gpus: int = 1,
    frames: int = 145,
    height: int = 704,
    width: int = 1280,
    fps: float = 24.0,
    context_tokens: int = 512,
    memory: Memory = memory_parts,
    **more: Any,
) -> dict[str, Any]:
    """Parameters, tokens and FLOPs of a clip, memory per GPU by part, largest micro-batches; JSON types.

    memory: bytes per GPU of a setup, by default of the model alone; more: the other fields of
    `plan_setup.Setup`. Raises ValueError on an unknown flavor, sizes that do not split into tokens, or
    degrees that do not divide.
    """
    args = flavor(name)
    setup = Setup(gpus=gpus, **more)
    clip, sizes = clip_shape(args, frames, height, width, fps, context_tokens), sizes_of(args)
    check_context(args, clip, frames, height, width, setup.context)
    parts = memory(args, clip, setup)
    return {
        "flavor": name,
        "params_total": sizes.total,
        "params_by_part": dict(sizes.parts),
        "params_met_per_video_token": params_met_per_video_token(args),
        "tokens_per_clip": {"video": clip.video, "audio": clip.audio, "total": clip.video + clip.audio},
        "flops_per_clip": _flops(args, clip, setup.checkpointing),
        "training_flops_per_clip": training_flops(args, clip),
        "gpus": gpus,
        "setup": {"shards": setup.shards, **{field: getattr(setup, field) for field in SHOWN}},
        "memory_per_gpu_gib": {
            part: round(size / GIB, 3) for part, size in {**parts, "total": sum(parts.values())}.items()
        },
        "largest_local_batch": _largest(args, clip, setup, memory),
    }


def check_context(
    args: ModelArgs, clip: ClipShape, frames: int, height: int, width: int, context: int
) -> None:
    """Raises ValueError where `context` GPUs cannot share a clip of that size and shape."""
    check_degree(args, context)
    cell = PIXELS_PER_LATENT * args.patch_size
    check_split(num_video_latents(frames), height // cell, width // cell, clip.audio, context, "plan")


def clip_shape(
    args: ModelArgs, frames: int, height: int, width: int, fps: float = 24.0, context_tokens: int = 512
) -> ClipShape:
    """Tokens of a clip of `frames`, `height`, `width`. Raises ValueError for sizes that do not split."""
    cell = PIXELS_PER_LATENT * args.patch_size
    for side, pixels in (("height", height), ("width", width)):
        if pixels < cell or pixels % cell:
            raise ValueError(f"{side} must be a positive multiple of {cell} pixels, got {pixels}")
    if not fps > 0:
        raise ValueError(f"fps must be positive, got {fps}")
    video = num_video_latents(frames) * (height // cell) * (width // cell)
    return ClipShape(video=video, audio=num_audio_tokens(frames, fps), context=context_tokens)


def step_seconds(flops: float, gpus: int, mfu: float, peak_tflops: float) -> float:
    """Seconds of `flops` model FLOPs. Raises ValueError for an MFU outside (0, 1] or a peak <= 0."""
    if not 0 < mfu <= 1 or not peak_tflops > 0:
        raise ValueError(f"mfu must be in (0, 1] and peak_tflops positive, got {mfu} and {peak_tflops}")
    return flops / (gpus * peak_tflops * 1e12 * mfu)


def _flops(args: ModelArgs, clip: ClipShape, checkpointing: Checkpointing) -> dict[str, int]:
    forward, training = forward_flops(args, clip), training_flops(args, clip)
    again = {
        "none": 0,
        "selective": block_flops(args, clip) - self_attention_flops(args, clip),
        "full": block_flops(args, clip),
    }
    return {
        "forward": forward,
        "backward": training - forward,
        "training": training,
        "with_recomputation": training + again[checkpointing],
    }


def _largest(args: ModelArgs, clip: ClipShape, setup: Setup, memory: Memory) -> dict[str, dict[str, int]]:
    modes: tuple[Checkpointing, ...] = ("none", "selective", "full")
    found: dict[str, dict[str, int]] = {}
    for mode in modes:
        each = replace(setup, checkpointing=mode)
        found[mode] = {
            f"{size}_gb": largest_local_batch(args, clip, each, size * 1e9, memory) for size in LIMITS_GB
        }
    return found
