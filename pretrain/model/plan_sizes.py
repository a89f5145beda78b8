"""Parameters and bytes of a model by what is gathered together, counted on the meta device."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import nn

from pretrain.model.args import ModelArgs
from pretrain.model.attention import Projections
from pretrain.model.blocks import FeedForward
from pretrain.model.flavors import build_model
from pretrain.model.moments_format import MomentsFormat, moment_bytes
from pretrain.model.quantised import halve, held_bytes, quantise_base
from pretrain.model.shell import AVTransformer

Base = Literal["fp32", "bf16", "int8", "fp8", "nf4"]
FP32, BF16 = 4, 2  # bytes


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

    @property
    def largest(self) -> int:
        """Parameters of the largest block."""
        return max(self.blocks)


@dataclass(frozen=True)
class BaseBytes:
    """Bytes of a frozen model as it is held, by FSDP unit."""

    total: int
    blocks: tuple[int, ...]

    @property
    def root(self) -> int:
        """Everything but the blocks, the time path too."""
        return self.total - sum(self.blocks)


@lru_cache
def sizes_of(args: ModelArgs) -> ModelSizes:
    """Counted from the model on the meta device."""
    model = _untouched(args)
    return ModelSizes(
        _count(model),
        tuple(_count(block) for block in _blocks(model)),
        _count(model.time),
        tuple((name, _count(part)) for name, part in model.named_children()),
    )


@lru_cache
def base_sizes(args: ModelArgs, base: Base) -> BaseBytes:
    """Of the model held in `base`: fp32, bf16 but for the time path, or that with quantised maps."""
    model = _on_meta(args)
    if base == "bf16":
        halve(model)
    elif base != "fp32":
        quantise_base(model, base)
    return BaseBytes(held_bytes(model), tuple(held_bytes(block) for block in _blocks(model)))


@lru_cache
def adapter_blocks(args: ModelArgs, rank: int) -> tuple[int, ...]:
    """Parameters of a LoRA adapter of this rank on all attention and feed-forward maps, by block."""
    return tuple(
        sum(rank * (layer.in_features + layer.out_features) for layer in _maps(block))
        for block in _blocks(_untouched(args))
    )


def adapter_sizes(args: ModelArgs, rank: int) -> int:
    """Parameters of a LoRA adapter of this rank on all attention and feed-forward maps."""
    return sum(adapter_blocks(args, rank))


@lru_cache
def model_moments(args: ModelArgs, held: MomentsFormat) -> float:
    """Bytes of AdamW's moments of all weights."""
    return sum(moment_bytes(weight.shape, held) for weight in _untouched(args).parameters())


@lru_cache
def adapter_moments(args: ModelArgs, rank: int, held: MomentsFormat) -> float:
    """Bytes of AdamW's moments of a LoRA adapter; in 8 bits most ranks leave the rows of B in fp32."""
    maps = [layer for block in _blocks(_untouched(args)) for layer in _maps(block)]
    shapes = [shape for each in maps for shape in ((rank, each.in_features), (each.out_features, rank))]
    return sum(moment_bytes(torch.Size(shape), held) for shape in shapes)


def rounded_map(args: ModelArgs, base: Base) -> int:
    """Bytes of the largest map of a block while its bytes become a weight; 0 where it is held as one.

    In fp32 and in the product's precision; of nf4 also the indices and what they pick, in fp32.
    """
    if base in ("fp32", "bf16"):
        return 0
    size = FP32 + BF16 + (1 + FP32 if base == "nf4" else 0)
    return size * _largest_map(args)


@lru_cache
def _largest_map(args: ModelArgs) -> int:
    return max(layer.weight.numel() for layer in _maps(_untouched(args)))


def _maps(model: nn.Module) -> list[nn.Linear]:
    parents = [module for module in model.modules() if isinstance(module, (Projections, FeedForward))]
    return [layer for parent in parents for layer in parent.children() if isinstance(layer, nn.Linear)]


def _blocks(model: AVTransformer) -> list[nn.Module]:
    return [block for group in model.block_groups() for block in group]


@lru_cache(maxsize=4)
def _untouched(args: ModelArgs) -> AVTransformer:
    """To be counted, never changed."""
    return _on_meta(args)


def _on_meta(args: ModelArgs) -> AVTransformer:
    with torch.device("meta"):
        return build_model(args)


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
