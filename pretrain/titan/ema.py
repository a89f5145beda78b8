"""Exponential moving average of the weights, on each rank's own shards, saved with the checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.tensor import DTensor


class Ema:
    """weights <- decay * weights + (1 - decay) * model, with decay warmed up as (1 + n) / (10 + n).

    `only_trained` leaves frozen weights out. A decay of 0 is the model itself: no copy is held or saved,
    which at full size spares a fifth of the states. A torch Stateful: DCP saves its DTensors sharded like the
    model's.
    """

    def __init__(self, model: nn.Module, decay: float, only_trained: bool = False) -> None:
        self.decay, self.updates = decay, 0
        which = StateDictOptions(ignore_frozen_params=only_trained)
        # references: the optimizer works in place
        self.current = cast(dict[str, Tensor], get_model_state_dict(model, options=which))
        self.off = decay == 0
        self.weights = (
            self.current
            if self.off
            else {name: value.detach().clone() for name, value in self.current.items()}
        )

    @torch.no_grad()
    def update(self) -> None:
        """Take in the model's weights after an optimizer step."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        if self.off:
            return
        current = [local_shard(self.current[name]) for name in self.weights]
        averaged = [local_shard(value) for value in self.weights.values()]
        torch._foreach_lerp_(averaged, current, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """The model computes with the averaged weights inside, with its own after."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        if self.off:
            return
        for name, averaged in self.weights.items():
            mine, theirs = local_shard(averaged), local_shard(self.current[name])
            kept = mine.clone()
            mine.copy_(theirs)
            theirs.copy_(kept)

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates} if self.off else {"weights": self.weights, "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates = int(state["updates"])
        for name, value in () if self.off else state["weights"].items():
            if value is not self.weights[name]:
                self.weights[name].copy_(value)


def local_shard(value: Tensor) -> Tensor:
    """This rank's part, sharing memory; the tensor itself where it is not sharded."""
    return value.to_local() if isinstance(value, DTensor) else value
