"""Memory per GPU at the peak of a training, LoRA or generation step, by part, from sizes alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from pretrain.model.args import ModelArgs
from pretrain.model.flops import ClipShape
from pretrain.model.plan_sizes import (
    BF16,
    FP32,
    Base,
    adapter_sizes,
    base_sizes,
    largest_map,
    sizes_of,
)

Checkpointing = Literal["none", "selective", "full"]
PlannedWork = Literal["train", "lora", "align", "rollout", "generate"]
MomentsFormat = Literal["fp32", "8bit", "host"]
# bytes of both of AdamW's moments, per trained parameter, on the GPU; 8 bits: a scale in fp32 for 256 values
MOMENT_BYTES: dict[MomentsFormat, float] = {"fp32": 8.0, "8bit": 2 * (1 + 4 / 256), "host": 0.0}
LATENTS_WAITING = 2  # noised and target, fp32, of every micro-batch of a step
LATENTS_IN_USE = 4  # velocity, its error, their gradients, fp32
LATENTS_SAMPLED = 4  # state, velocity, both at once in a step, fp32
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
    micro_batches: int = 2  # of a step; from two on, gradients wait while the next one is computed
    ema: bool = True
    # align: LoRA with a second adapter; rollout: its forward passes on the same shards; generate: those of a
    # whole model
    work: PlannedWork = "train"
    base: Base = "fp32"  # what the weights are held in; training: fp32
    rank: int = 32  # of the adapters
    cached_passes: int = 0  # of a sampling step: those whose features wait while the last one computes
    moments: MomentsFormat = "fp32"
    on_cpu: bool = False  # ranks on a CPU keep all that they gather, and nothing is reserved

    def __post_init__(self) -> None:
        for name in ("gpus", "replicas", "context", "micro_batches", "rank"):
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
        if self.work == "train" and self.base != "fp32":
            raise ValueError(f"base {self.base}: training trains all weights, which stay fp32; plan lora")

    @property
    def shards(self) -> int:
        """GPUs that a parameter is cut over: context ranks hold different shards too."""
        return self.gpus // self.replicas

    @property
    def adapters(self) -> int:
        """Adapters that the model carries: `default`, and in alignment `old`."""
        return {"lora": 1, "align": 2, "rollout": 2}.get(self.work, 0)


def memory_parts(args: ModelArgs, clip: ClipShape, setup: Setup) -> dict[str, float]:
    """Bytes per GPU at the peak of a step, computed in bf16, by part; they sum to what is needed."""
    ways = {"generate": _generating, "rollout": _rolling_out}
    parts = ways.get(setup.work, _training)(args, clip, setup)
    if setup.on_cpu:
        return parts
    passing = sum(size for name, size in parts.items() if name not in STATES)
    return {**parts, "allowance": RUNTIME_BYTES + FRAGMENTATION * passing}


STATES = ("parameters", "adapters", "gradients", "optimizer", "ema")  # what stays from step to step


def largest_local_batch(args: ModelArgs, clip: ClipShape, setup: Setup, limit_bytes: float) -> int:
    """Clips of the largest micro-batch that fits; 0 = not even one. Memory grows with the batch."""
    if _total(args, clip, setup, 1) > limit_bytes:
        return 0
    low, high = 1, 2
    while _total(args, clip, setup, high) <= limit_bytes:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _total(args, clip, setup, middle) <= limit_bytes else (low, middle)
    return low


def _total(args: ModelArgs, clip: ClipShape, setup: Setup, batch: int) -> float:
    return sum(memory_parts(args, clip, replace(setup, local_batch=batch)).values())


def _training(args: ModelArgs, clip: ClipShape, setup: Setup) -> dict[str, float]:
    """States on shards; what is gathered and kept within a step."""
    base, trained = base_sizes(args, setup.base), _trained(args, setup)
    gathered = _gathered(args, setup)
    adapters = adapter_sizes(args, setup.rank) * setup.adapters
    unit = max(sizes_of(args).largest, sizes_of(args).root) if setup.work == "train" else trained
    activations = _activation_parts(args, clip, setup)
    # with one micro-batch gradients appear while activations go
    waiting = 0.0 if setup.micro_batches > 1 else activations["activations_kept"]
    gradients = FP32 * trained / setup.shards
    return {
        "parameters": base.total / setup.shards,
        **({"adapters": FP32 * adapters / setup.shards} if setup.adapters else {}),
        "gradients": max(gradients - waiting, 0.0),
        "optimizer": MOMENT_BYTES[setup.moments] * trained / setup.shards,
        "ema": FP32 * trained / setup.shards if setup.ema else 0.0,
        "gathered_parameters": gathered + BF16 * adapters,
        # a unit's own, and cast for the reduction
        "gathered_gradients": float((BF16 + FP32) * unit),
        **activations,
    }


def _trained(args: ModelArgs, setup: Setup) -> int:
    return sizes_of(args).total if setup.work == "train" else adapter_sizes(args, setup.rank)


def _gathered(args: ModelArgs, setup: Setup) -> float:
    """Of the base: a block in use and one prefetched, embedders and heads throughout; fp32 shards in bf16."""
    if setup.base == "fp32":
        sizes = sizes_of(args)
        blocks = sum(sizes.blocks) if setup.on_cpu else min(2 * sizes.largest, sum(sizes.blocks))
        return float(BF16 * (sizes.root + blocks) + FP32 * sizes.time)
    base = base_sizes(args, setup.base)
    blocks = sum(base.blocks) if setup.on_cpu else min(2 * max(base.blocks), sum(base.blocks))
    return float(base.root + blocks)


def _rounded(args: ModelArgs, setup: Setup) -> float:
    """The largest map of a quantised base, in fp32 and in the precision of the product.

    In training it lives when less is kept than at the peak (measured: tests/test_plan_measured.py).
    """
    return 0.0 if setup.base in ("fp32", "bf16") else float((FP32 + BF16) * largest_map(args))


def saved_by_block(args: ModelArgs, tokens: float, context: int, rank: int = 0) -> float:
    """Bytes one block keeps for its backward pass, for `tokens` that attend to `context` text states.

    Per token, in bf16 unless noted: two modulated norms (fp32 in and out, then the map's input), q and k
    before and after their norm, v, the attended, the two gated updates; cross-attention's norm, q twice, the
    attended; the FFN's hidden states before and after GELU. Flash attention keeps no scores. With adapters
    of `rank` scales and gates have no gradient, for which a norm's answer and an update are kept; what an
    adapter's first map answers is.
    """
    width = args.width
    norms = 2 * ((1 if rank else 2) * FP32 + BF16) * width
    self_attention = 6 * BF16 * width
    cross = 5 * BF16 * width
    updates = 0 if rank else 2 * BF16 * width
    adapters = 10 * BF16 * rank
    per_token = norms + self_attention + cross + updates + adapters + 2 * BF16 * args.ffn_width
    return tokens * per_token + context * 3 * BF16 * width


def _activation_parts(args: ModelArgs, clip: ClipShape, setup: Setup) -> dict[str, float]:
    """Activations of a micro-batch; tokens divide by the context degree, embeddings and heads do not."""
    batch, width = setup.local_batch, args.width
    tokens = (clip.video + clip.audio) / setup.context * batch
    inside = saved_by_block(args, tokens, clip.context * batch, setup.rank if setup.adapters else 0)
    inputs = tokens * width * BF16
    # selective: the attended, and where ranks exchange tokens for heads, what they sent each other (q, k, v
    # and back)
    kept = {"none": inside, "selective": inputs * (2 if setup.context == 1 else 6), "full": inputs}[
        setup.checkpointing
    ]
    copies = LATENTS_WAITING * (1 if setup.adapters else setup.micro_batches) + LATENTS_IN_USE
    return {
        "activations_kept": len(sizes_of(args).blocks) * kept,
        "activations_recomputed": inside if setup.checkpointing != "none" else 0.0,
        "embedders_and_heads": _embedders(args, clip, batch) + tokens * width * (2 * FP32 + BF16),
        "latents": copies * _latents(args, clip, batch),
    }


def _embedders(args: ModelArgs, clip: ClipShape, batch: int) -> float:
    text = clip.context * batch * (args.text_width + 3 * args.width) * BF16
    windows = args.audio_embed_kernel * (2 * args.width + args.audio_embed_hidden)
    return text + clip.audio * batch * (windows + 3 * args.audio_embed_hidden) * BF16


def _latents(args: ModelArgs, clip: ClipShape, batch: int) -> float:
    """Bytes of the latents of a batch, fp32."""
    values = clip.video * args.video_channels * args.patch_size**2 + clip.audio * args.audio_channels
    return float(FP32 * values * batch)


def _generating(args: ModelArgs, clip: ClipShape, setup: Setup) -> dict[str, float]:
    """A whole model on each GPU, without shards: its weights, and what a block makes before it returns.

    Per token: the input, q, k and v of each stream and joined, the attended, and in the FFN a modulated norm
    in fp32, its cast, the input again and two hidden states, of which one lives while a quantised map is
    rounded for a product.
    """
    return {
        "parameters": base_sizes(args, setup.base).total,
        **_forward_parts(args, clip, setup, FP32 if setup.base == "fp32" else BF16),
    }


def _forward_parts(args: ModelArgs, clip: ClipShape, setup: Setup, size: int) -> dict[str, float]:
    """Of a forward pass without gradient, activations of `size` bytes."""
    tokens = (clip.video + clip.audio) / setup.context * setup.local_batch
    per_token = (8 * size + FP32 + 2 * size) * args.width + 2 * size * args.ffn_width
    return {
        "block": tokens * per_token + max(_rounded(args, setup) - tokens * size * args.ffn_width, 0.0),
        "embedders_and_heads": _embedders(args, clip, setup.local_batch),
        "latents": LATENTS_SAMPLED * _latents(args, clip, setup.local_batch),
        **({"feature_cache": cached} if (cached := setup.cached_passes * tokens * size * args.width) else {}),
    }


def _rolling_out(args: ModelArgs, clip: ClipShape, setup: Setup) -> dict[str, float]:
    """Forward passes in bf16 on the shards of an alignment, whose states wait."""
    adapters = FP32 * adapter_sizes(args, setup.rank) / setup.shards
    return {
        "parameters": base_sizes(args, setup.base).total / setup.shards,
        "adapters": setup.adapters * adapters,
        "optimizer": MOMENT_BYTES[setup.moments] * adapters / FP32,
        "ema": adapters if setup.ema else 0.0,
        "gathered_parameters": _gathered(args, setup)
        + BF16 * setup.adapters * adapter_sizes(args, setup.rank),
        **_forward_parts(args, clip, setup, BF16),
    }
