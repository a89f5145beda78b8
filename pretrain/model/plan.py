"""What a model costs: parameters, tokens, FLOPs and memory per GPU, counted from the model on the meta device."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pretrain.model.args import ModelArgs
from pretrain.model.flavors import flavor
from pretrain.model.flops import ClipShape, training_flops
from pretrain.model.paradigms import build_model
from pretrain.model.shell import AVTransformer
from pretrain.types import PIXELS_PER_LATENT, num_audio_tokens, num_video_latents

GIB = 2**30
FP32_BYTES, BF16_BYTES = 4, 2
ADAM_STATES = 2


def plan(
    name: str, gpus: int = 1, frames: int = 145, height: int = 704, width: int = 1280, fps: float = 24.0, context_tokens: int = 512
) -> dict[str, Any]:
    """Parameters, tokens of one clip, training FLOPs of one clip and memory per GPU by part, in plain types for JSON.

    Memory counts fully sharded fp32 parameters, gradients, AdamW moments and EMA, the largest block gathered in bf16 twice
    (one in use, one prefetched), and activations of one clip under full checkpointing (block inputs, and one block's inside).
    Raises ValueError on an unknown flavor or sizes that do not split into tokens.
    """
    args = flavor(name)
    if gpus < 1:
        raise ValueError(f"gpus must be at least 1, got {gpus}")
    cell = PIXELS_PER_LATENT * args.patch_size
    for side, pixels in (("height", height), ("width", width)):
        if pixels < cell or pixels % cell:
            raise ValueError(f"{side} must be a positive multiple of {cell} pixels, got {pixels}")
    video = num_video_latents(frames) * (height // cell) * (width // cell)
    audio = num_audio_tokens(frames, fps)
    with torch.device("meta"):
        model = build_model(args)
    parts = {part: _count(module) for part, module in model.named_children()}
    total = _count(model)
    return {
        "flavor": name,
        "params_total": total,
        "params_by_part": parts,
        "tokens_per_clip": {"video": video, "audio": audio, "total": video + audio},
        "training_flops_per_clip": training_flops(args, ClipShape(video=video, audio=audio, context=context_tokens)),
        "gpus": gpus,
        "memory_per_gpu_gib": _memory(args, model, total, gpus, video + audio),
    }


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _memory(args: ModelArgs, model: AVTransformer, total: int, gpus: int, tokens: int) -> dict[str, float]:
    blocks = [block for group in model.block_groups() for block in group]
    largest = max(_count(block) for block in blocks)
    inside = tokens * (10 * args.width + 2 * args.ffn_width) * BF16_BYTES
    parts = {
        "parameters": total * FP32_BYTES / gpus,
        "gradients": total * FP32_BYTES / gpus,
        "optimizer": total * FP32_BYTES * ADAM_STATES / gpus,
        "ema": total * FP32_BYTES / gpus,
        "gathered_blocks": 2.0 * largest * BF16_BYTES,
        "activations": len(blocks) * tokens * args.width * BF16_BYTES + inside,
    }
    parts["total"] = sum(parts.values())
    return {part: round(size / GIB, 3) for part, size in parts.items()}
