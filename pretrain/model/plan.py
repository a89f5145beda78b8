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
    FRAGMENTATION,
    RUNTIME_BYTES,
    largest_local_batch,
    memory_parts,
)
from pretrain.model.plan_setup import Checkpointing, MomentsFormat, PlannedWork, Setup
from pretrain.model.plan_sizes import Base, sizes_of
from pretrain.types import PIXELS_PER_LATENT, num_audio_tokens, num_video_latents

GIB = 2**30
# RTX 4090, L40S, H100, H200; decimal, as they are sold
LIMITS_GB = (24, 48, 80, 141)


def plan_model(
    name: str,
    gpus: int = 1,
    frames: int = 145,
    height: int = 704,
    width: int = 1280,
    fps: float = 24.0,
    context_tokens: int = 512,
    **more: Any,
) -> dict[str, Any]:
    """Parameters, tokens and FLOPs of a clip, memory per GPU by part, largest micro-batches; JSON types.

    more: the other fields of `plan_memory.Setup`. Raises ValueError on an unknown
    flavor, sizes that do not split into tokens, or degrees that do not divide.
    """
    args = flavor(name)
    setup = Setup(gpus=gpus, **more)
    context = setup.context
    check_degree(args, context)
    cell = PIXELS_PER_LATENT * args.patch_size
    clip, sizes = clip_shape(args, frames, height, width, fps, context_tokens), sizes_of(args)
    check_split(num_video_latents(frames), height // cell, width // cell, clip.audio, context, "plan")
    parts = memory_parts(args, clip, setup)
    return {
        "flavor": name,
        "params_total": sizes.total,
        "params_by_part": dict(sizes.parts),
        "params_met_per_video_token": params_met_per_video_token(args),
        "tokens_per_clip": {"video": clip.video, "audio": clip.audio, "total": clip.video + clip.audio},
        "flops_per_clip": _flops(args, clip, setup.checkpointing),
        "training_flops_per_clip": training_flops(args, clip),
        "gpus": gpus,
        "setup": {
            "replicas": setup.replicas,
            "context": context,
            "shards": setup.shards,
            "checkpointing": setup.checkpointing,
            "local_batch": setup.local_batch,
            "work": setup.work,
            "base": setup.base,
            "rank": setup.rank,
            "moments": setup.moments,
        },
        "memory_per_gpu_gib": {
            part: round(size / GIB, 3) for part, size in {**parts, "total": sum(parts.values())}.items()
        },
        "largest_local_batch": _largest(args, clip, setup),
        "fits": what_fits(args, clip, setup),
    }


def what_fits(args: ModelArgs, clip: ClipShape, setup: Setup) -> dict[str, dict[str, str]]:
    """For each work and size of GPU, the lightest setting with which a clip fits, as flags; "" = none does.

    Lightest first: what costs nothing but rounding, then what costs time.
    """
    bases: tuple[Base, ...] = ("bf16", "int8", "nf4")
    modes: tuple[Checkpointing, ...] = ("none", "selective", "full")
    frozen = [{"base": base, "checkpointing": mode} for mode in modes for base in bases]
    moments: tuple[MomentsFormat, ...] = ("fp32", "8bit", "host")
    trained = [{"moments": each, "checkpointing": mode} for mode in modes for each in moments]
    ways: dict[PlannedWork, list[dict[str, Any]]] = {
        "train": trained,
        "lora": frozen,
        "align": frozen,
        "generate": [{"base": base} for base in bases],
    }
    found: dict[str, dict[str, str]] = {}
    for work, tried in ways.items():
        found[work] = {}
        for size in LIMITS_GB:
            fitting = (
                way
                for way in tried
                if largest_local_batch(
                    args, clip, replace(setup, work=work, **{"base": "fp32", **way}), size * 1e9
                )
            )
            found[work][f"{size}_gb"] = " ".join(f"--{key} {each}" for key, each in next(fitting, {}).items())
    return found


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


def assumptions(
    checkpointing: Checkpointing,
    mfu: float,
    peak_tflops: float,
    work: PlannedWork = "train",
    base: Base = "fp32",
    moments: MomentsFormat = "fp32",
) -> list[str]:
    """What the numbers of a plan rest on, for the reader."""
    recompute = {
        "none": "nothing is recomputed",
        "selective": "blocks keep their input and self-attention, the rest is recomputed",
        "full": "blocks keep their input, all of them is recomputed",
    }
    held = {"fp32": "fp32", "8bit": "8 bits with a scale for 256 values", "host": "the host's memory"}[
        moments
    ]
    states = {
        "train": f"parameters, gradients and the EMA are fp32, AdamW's two moments in {held}, sharded over "
        "all GPUs of a replica",
        "generate": f"every GPU holds the whole model, in {base}; passes of guidance follow one another",
    }
    adapted = (
        f"the frozen base is in {base}, adapters, their gradients and average in fp32, AdamW's moments in "
        f"{held}, sharded over all GPUs of a replica; codecs and rewards are not counted"
    )
    moment = {
        "train": "the loss, a block's backward pass, a reduction",
        "align": "the loss of nft, a block's backward pass, a reduction; whole gradients of the adapter wait "
        "for a step's last micro-batch",
        "generate": "a block, or the step of the release's sampler",
    }
    return [
        states.get(work, adapted),
        "blocks are gathered in bf16, a quantised base's as bytes, one in use, one prefetched; embedders and "
        "heads stay gathered; the time path is fp32",
        f"activations are bf16, norms in fp32, flash attention; {recompute[checkpointing]} in the backward "
        "pass; a step has more than one micro-batch, whose gradients wait",
        f"memory is that of the moment at which most is held: {moment.get(work, moment['train'])}",
        f"allowance: {RUNTIME_BYTES / GIB:.0f} GiB for CUDA and NCCL, and {FRAGMENTATION:.0%} of what comes "
        "and goes in a step",
        "GPU sizes are decimal: 80 GB = 74.5 GiB, 141 GB = 131.3 GiB",
        "FLOPs are matmuls alone, 2 per multiply-add, as torch's FlopCounterMode counts them; model FLOPs "
        "leave recomputation out",
        f"times follow from model FLOPs at {mfu:.0%} of {peak_tflops:g} TFLOP/s per GPU: the {mfu:.0%} is "
        "stated, not measured; "
        "data, validation and checkpoints are taken to be hidden",
    ]


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


def _largest(args: ModelArgs, clip: ClipShape, setup: Setup) -> dict[str, dict[str, int]]:
    modes: tuple[Checkpointing, ...] = ("none", "selective", "full")
    found: dict[str, dict[str, int]] = {}
    for mode in modes:
        each = replace(setup, checkpointing=mode)
        found[mode] = {f"{size}_gb": largest_local_batch(args, clip, each, size * 1e9) for size in LIMITS_GB}
    return found
