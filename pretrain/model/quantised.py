"""A frozen base in 8 or 4 bits: its maps as bytes and scales, products in the input's precision.

int8: round(127 w / absmax) of each row. fp8: float8_e4m3fn of 448 w / absmax of each row. nf4: the index of
the nearest of 16 quantiles of a normal distribution (Dettmers et al. 2023, QLoRA, appendix E), two to a byte,
by the absmax of each block of 64 inputs.

Bytes and scales are parameters of integers, for FSDP2 casts none of those when it gathers them: shards and
what is gathered stay small, and scales exact. torchao's weight-only tensors have no hooks for FSDP2 and are
not filled shard by shard; tests compare values with them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from pretrain.model.checkpoint import put
from pretrain.model.embedders import TokenConv, token_windows
from pretrain.model.shards import ShardReader
from pretrain.model.shell import AVTransformer

Quantisation = Literal["int8", "fp8", "nf4"]
QUANTISATIONS = get_args(Quantisation)
PACKED, SCALES = "packed", "scales"
NF4_BLOCK = 64
FP8 = torch.float8_e4m3fn
# fmt: off
NF4_VALUES = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)
# fmt: on


def pack(weight: Tensor, kind: Quantisation) -> tuple[Tensor, Tensor]:
    """[outputs, inputs] -> bytes and bits of the scales.

    Bytes: int8 [outputs, inputs], of nf4 half of them. Scales: fp32 seen as int32, [outputs, blocks]. A row
    of zeros stays so.
    """
    exact = weight.detach().float()
    blocks = exact.unflatten(1, (-1, block_size(weight.shape[1], kind)))
    scales = blocks.abs().amax(2) / {"int8": 127.0, "fp8": torch.finfo(FP8).max, "nf4": 1.0}[kind]
    shares = (blocks / scales.clamp_min(torch.finfo(torch.float32).tiny)[..., None]).flatten(1)
    if kind == "int8":
        packed = shares.round().to(torch.int8)
    elif kind == "fp8":
        packed = shares.to(FP8).view(torch.int8)
    else:
        values = torch.tensor(NF4_VALUES, device=shares.device)
        nearest = torch.bucketize(shares, (values[1:] + values[:-1]) / 2).to(torch.uint8)
        packed = (nearest[:, ::2] * 16 + nearest[:, 1::2]).view(torch.int8)
    return packed, scales.view(torch.int32)


def unpack(packed: Tensor, scales: Tensor, kind: Quantisation, dtype: torch.dtype) -> Tensor:
    """The weight that `pack` took, rounded, [outputs, inputs]."""
    if kind == "int8":
        shares = packed
    elif kind == "fp8":
        shares = packed.view(FP8)
    else:
        pairs = packed.view(torch.uint8)
        places = torch.stack([pairs >> 4, pairs & 15], dim=2).flatten(1)
        shares = _nf4_values(packed.device)[places.int()]
    # fp32: a scale in bf16 would move a whole row
    blocks = shares.to(torch.float32, copy=True).unflatten(1, (scales.shape[1], -1))
    return blocks.mul_(scales.view(torch.float32)[..., None]).flatten(1).to(dtype)


@lru_cache
def _nf4_values(device: torch.device) -> Tensor:
    """Sent once."""
    return torch.tensor(NF4_VALUES, device=device)


def block_size(inputs: int, kind: Quantisation) -> int:
    """Inputs that share a scale. Raises ValueError where nf4 has an odd number of them."""
    if kind != "nf4":
        return inputs
    if inputs % 2:
        raise ValueError(f"nf4 takes maps of an even number of inputs, got {inputs}; take int8 or fp8")
    return math.gcd(inputs, NF4_BLOCK)


class _Product(Function):
    """x W^T + b, of which only the bytes are kept for the gradient of x; W and b have none."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, packed: Tensor, scales: Tensor, bias: Tensor | None, kind: Quantisation
    ) -> Tensor:
        ctx.save_for_backward(packed, scales)
        ctx.kind = kind
        return F.linear(x, unpack(packed, scales, kind, x.dtype), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:  # type: ignore[override]
        packed, scales = ctx.saved_tensors
        return grad @ unpack(packed, scales, ctx.kind, grad.dtype), None, None, None, None


class _Packed(nn.Module):
    """Bytes, scales and bias in the place of a weight [outputs, ...] and a bias, on the weight's device."""

    packed: nn.Parameter
    scales: nn.Parameter

    def _take(self, weight: Tensor, bias: nn.Parameter | None, kind: Quantisation) -> None:
        self.kind: Quantisation = kind
        packed, scales = pack(weight.flatten(1), kind)
        self.packed, self.scales = (nn.Parameter(part, requires_grad=False) for part in (packed, scales))
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    def _times(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)  # type: ignore[union-attr]
        return _Product.apply(x, self.packed, self.scales, bias, self.kind)  # type: ignore[return-value]


class QuantisedLinear(_Packed, nn.Linear):
    """nn.Linear with a frozen weight; `weight` is its rounded value, made when asked for."""

    def __init__(self, layer: nn.Linear, kind: Quantisation) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self._take(layer.weight, layer.bias, kind)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        return unpack(self.packed, self.scales, self.kind, self.bias.dtype)

    def forward(self, input: Tensor) -> Tensor:
        return self._times(input)


class QuantisedConv(_Packed):
    """TokenConv with a frozen weight."""

    def __init__(self, layer: TokenConv, kind: Quantisation) -> None:
        super().__init__()
        self.kernel_size = layer.kernel_size
        self._take(layer.weight, layer.bias, kind)

    def forward(self, x: Tensor) -> Tensor:
        return self._times(token_windows(x, self.kernel_size[0]))


def quantise_base(model: AVTransformer, kind: Quantisation) -> AVTransformer:
    """Maps of the blocks and of the sound's embedding in `kind`, everything else in bf16 but the time path.

    In place; the model is frozen. On the meta device too, whose weights `load_base` puts in. Before adapters
    and before sharding. Raises ValueError for an unknown kind, or if it was done already.
    """
    if kind not in QUANTISATIONS:
        raise ValueError(f"quantisation: expected {', '.join(QUANTISATIONS)}, got {kind!r}")
    if any(isinstance(module, _Packed) for module in model.modules()):
        raise ValueError("the model is quantised already; load it again")
    model.requires_grad_(False)
    mlp = model.audio_embedder.mlp
    for part in (*(block for group in model.block_groups() for block in group), mlp):
        for parent in list(part.modules()):
            for name, layer in list(parent.named_children()):
                if type(layer) is nn.Linear:
                    setattr(parent, name, QuantisedLinear(layer, kind))
                elif isinstance(layer, TokenConv):
                    setattr(parent, name, QuantisedConv(layer, kind))
    return halve(model)


def halve(model: AVTransformer) -> AVTransformer:
    """Everything in bf16 but the time path, whose values are not rounded, in place."""
    for part in model.children():
        if part is not model.time:
            part.to(torch.bfloat16)
    return model


def load_base(parameters: Mapping[str, Tensor], reader: ShardReader, kind: Quantisation | None) -> None:
    """Load a base's weights into its parameters (names of the plain model), quantised as the model is.

    Sharded or not; a rank holds at most one whole tensor.
    """
    for key in reader.keys():  # noqa: SIM118
        if key in parameters:
            put(parameters[key], reader.tensor(key))
            continue
        assert kind is not None, key
        layer = key.removesuffix("weight")
        for name, part in zip((PACKED, SCALES), pack(reader.tensor(key).flatten(1), kind), strict=True):
            put(parameters[layer + name], part)


def held_bytes(model: nn.Module) -> int:
    """Bytes of a model's parameters."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
