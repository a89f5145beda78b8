"""Memory of a training step per GPU, by part, from sizes: sharded, gathered, and saved activations."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import torch
from torch import nn

from pretrain.model.args import ModelArgs
from pretrain.model.flavors import build_model
from pretrain.model.flops import ClipShape

Checkpointing = Literal["none", "selective", "full"]
FP32, BF16 = 4, 2  # bytes
ADAM_MOMENTS = 2
LATENT_COPIES = 7  # clean, noise, noised, target, velocity, its error and gradient, fp32
RUNTIME_BYTES = 3 * 2**30  # CUDA context, libraries, NCCL's buffers
FRAGMENTATION = 0.05  # of everything allocated within a step


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Sharding of a step. Raises ValueError where `replicas` x `context` does not divide `gpus`."""

    gpus: int = 1
    replicas: int = 1  # groups that each hold all shards (HSDP)
    context: int = 1  # GPUs that share one clip's tokens
    checkpointing: Checkpointing = "full"
    local_batch: int = 1  # clips of one micro-batch, per group of `context` GPUs
    ema: bool = True

    def __post_init__(self) -> None:
        for name in ("gpus", "replicas", "context"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.local_batch < 0:
            raise ValueError(f"local_batch must not be negative, got {self.local_batch}")
        if self.gpus % (self.replicas * self.context):
            raise ValueError(
                f"{self.gpus} gpus do not divide into {self.replicas} replicas x {self.context} context "
                "ranks; choose divisors"
            )
        if self.checkpointing not in ("none", "selective", "full"):
            raise ValueError(f"checkpointing must be none, selective or full, got {self.checkpointing!r}")

    @property
    def shards(self) -> int:
        """GPUs that a parameter is cut over: context ranks hold different shards too."""
        return self.gpus // self.replicas


@dataclass(frozen=True)
class ModelSizes:
    """Parameters by FSDP unit."""

    total: int
    blocks: tuple[int, ...]
    time: int  # kept in fp32
    parts: tuple[tuple[str, int], ...]

    @property
    def root(self) -> int:
        """Embedders, timbre token and heads: gathered throughout the step."""
        return self.total - self.time - sum(self.blocks)


@lru_cache
def sizes_of(args: ModelArgs) -> ModelSizes:
    """Counted from the model on the meta device."""
    with torch.device("meta"):
        model = build_model(args)
    blocks = tuple(_count(block) for group in model.block_groups() for block in group)
    return ModelSizes(
        _count(model),
        blocks,
        _count(model.time),
        tuple((name, _count(part)) for name, part in model.named_children()),
    )


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def memory_parts(args: ModelArgs, clip: ClipShape, setup: Setup) -> dict[str, float]:
    """Bytes per GPU at the peak of a step, in bf16 with fp32 shards, by part; they sum to what is needed."""
    sizes = sizes_of(args)
    shard = sizes.total / setup.shards
    largest = max(sizes.blocks)
    passing = {
        # one block in use, one prefetched
        "gathered_parameters": float(BF16 * (sizes.root + 2 * largest) + FP32 * sizes.time),
        # a unit's own, and cast for the reduction
        "gathered_gradients": float((BF16 + FP32) * max(largest, sizes.root)),
        **_activation_parts(args, clip, setup, len(sizes.blocks)),
    }
    return {
        "parameters": FP32 * shard,
        "gradients": FP32 * shard,
        "optimizer": FP32 * ADAM_MOMENTS * shard,
        "ema": FP32 * shard if setup.ema else 0.0,
        **passing,
        "allowance": RUNTIME_BYTES + FRAGMENTATION * sum(passing.values()),
    }


def largest_local_batch(args: ModelArgs, clip: ClipShape, setup: Setup, limit_bytes: float) -> int:
    """Clips of the largest micro-batch that fits; 0 = not even one. Memory is linear in the batch."""
    empty, one = (
        sum(memory_parts(args, clip, replace(setup, local_batch=batch)).values()) for batch in (0, 1)
    )
    return max(0, int((limit_bytes - empty) // (one - empty)))


def saved_by_block(args: ModelArgs, tokens: float, context: int) -> float:
    """Bytes one block keeps for its backward pass, for `tokens` that attend to `context` text states.

    Per token, in bf16 unless noted: two modulated norms (fp32 in and out, then the map's input), q and k
    before and after their norm, v, the attended, the two gated updates; cross-attention's norm, q twice, the
    attended; the FFN's hidden states before and after GELU. Flash attention keeps no scores.
    """
    width = args.width
    norms = 2 * (2 * FP32 + BF16) * width
    self_attention = 6 * BF16 * width
    cross = 5 * BF16 * width
    updates = 2 * BF16 * width
    per_token = norms + self_attention + cross + updates + 2 * BF16 * args.ffn_width
    return tokens * per_token + context * 3 * BF16 * width


def _activation_parts(args: ModelArgs, clip: ClipShape, setup: Setup, num_blocks: int) -> dict[str, float]:
    """Activations of a micro-batch; tokens divide by the context degree, embeddings and heads do not."""
    batch, width = setup.local_batch, args.width
    tokens = (clip.video + clip.audio) / setup.context * batch
    inside = saved_by_block(args, tokens, clip.context * batch)
    inputs = tokens * width * BF16
    # selective: the attended, and where ranks exchange tokens for heads, what they sent each other (q, k, v
    # and back)
    kept = {"none": inside, "selective": inputs * (2 if setup.context == 1 else 6), "full": inputs}[
        setup.checkpointing
    ]
    text = clip.context * batch * (args.text_width + 3 * width) * BF16
    audio = (
        clip.audio
        * batch
        * (args.audio_embed_kernel * (2 * width + args.audio_embed_hidden) + 3 * args.audio_embed_hidden)
        * BF16
    )
    latents = (
        (clip.video * args.video_channels * args.patch_size**2 + clip.audio * args.audio_channels)
        * batch
        * LATENT_COPIES
        * FP32
    )
    return {
        "activations_kept": num_blocks * kept,
        "activations_recomputed": inside if setup.checkpointing != "none" else 0.0,
        "backward_workspace": tokens * (2 * args.ffn_width * BF16 + 3 * width * FP32),
        "embedders_and_heads": text + audio + tokens * width * (2 * FP32 + BF16),
        "latents": float(latents),
    }
