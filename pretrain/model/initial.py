"""First values of a transformer's parameters, one parameter at a time, so that no rank needs the whole model
to draw them.

Xavier-uniform maps, zero biases, N(0, 0.02) text and time embeddings at width 3072, zero heads (release). At
other widths the embeddings' deviation is scaled so that context and levels come out as loud as at 3072.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pretrain.randomness import stable_hash

_LOUD_AT = 3072  # the width that a deviation of 0.02 belongs to


class First(NamedTuple):
    """How a parameter starts: `draw` fills a tensor of its shape in place, `how` says it in words."""

    name: str
    how: str
    draw: Callable[[Tensor], object]


def first_values(model: nn.Module, width: int) -> Iterator[First]:
    """In the order in which they are drawn; a name that comes twice starts as the later one says. The model
    may be on the meta device."""
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv3d)):
            fan_in, fan_out = (
                module.weight.shape[1:].numel(),
                module.weight.shape[0],
            )  # not weight[0]: that would gather a shard
            bound = (6 / (fan_in + fan_out)) ** 0.5
            yield First(f"{name}.weight", "Xavier-uniform", partial(nn.init.uniform_, a=-bound, b=bound))
            if module.bias is not None:
                yield First(f"{name}.bias", "zeros", nn.init.zeros_)
        elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
            if module.weight is not None:
                yield First(f"{name}.weight", "ones", nn.init.ones_)
            if getattr(module, "bias", None) is not None:
                yield First(f"{name}.bias", "zeros", nn.init.zeros_)
    deviation = 0.02 * (_LOUD_AT / width) ** 0.5
    for name in ("text_embedder.0", "text_embedder.2", "time.embedding.0", "time.embedding.2"):
        yield _normal(f"{name}.weight", deviation)
    for name, _ in model.named_parameters():
        if name.startswith("time.tables."):
            yield _normal(name, width**-0.5)
    yield _normal("timbre_token.null_token", 0.02)
    for head in ("head", "head_audio"):
        yield First(f"{head}.linear.weight", "zeros", nn.init.zeros_)


def _normal(name: str, deviation: float) -> First:
    return First(name, f"normal, deviation {deviation:.4g}", partial(nn.init.normal_, std=deviation))


def drawn(first: First, shape: torch.Size, seed: int) -> Tensor:
    """One parameter's first value, fp32 on the CPU, drawn by seed and name."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stable_hash(seed, "init", first.name))
        tensor = torch.empty(shape)
        first.draw(tensor)
        return tensor
