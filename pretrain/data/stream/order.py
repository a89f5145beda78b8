"""Orders of a bucket's samples within an epoch, as pure functions of the seed."""

from __future__ import annotations

from collections import OrderedDict
from typing import Protocol

import numpy as np
import torch

from pretrain.randomness import generator_for

_WINDOWS_KEPT = 2  # a global batch may span two


class Order(Protocol):
    """A permutation of range(len(order))."""

    def __len__(self) -> int: ...
    def __getitem__(self, position: int, /) -> int: ...


def full_order(size: int, *drawn_from: object) -> list[int]:
    """Every permutation is equally likely."""
    return torch.randperm(size, generator=generator_for(*drawn_from)).tolist()


class WindowedOrder:
    """Shards in a random order, samples in a random order within each window of `window` consecutive shards.

    starts: [shards + 1] where the samples of each shard begin, 0 first and their number last. Only the
    permutations of the newest windows are held, so the memory is that of the shards, not that of the samples.
    """

    def __init__(self, starts: np.ndarray, window: int, *drawn_from: object) -> None:
        if window < 1 or len(starts) < 2:
            raise ValueError(f"an order needs a window and a shard, got {window} and {len(starts) - 1}")
        self.starts, self.window, self.drawn_from = starts, window, drawn_from
        self._shards = torch.randperm(len(starts) - 1, generator=generator_for(*drawn_from, "shards")).numpy()
        sizes = np.diff(starts)[self._shards]
        self._ends = np.add.reduceat(sizes, np.arange(0, len(sizes), window)).cumsum()
        self._windows: OrderedDict[int, np.ndarray] = OrderedDict()

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, position: int) -> int:
        if not 0 <= position < len(self):
            raise IndexError(f"position {position} of {len(self)}")
        number = int(np.searchsorted(self._ends, position, side="right"))
        before = int(self._ends[number - 1]) if number else 0
        return int(self._in_window(number)[position - before])

    def _in_window(self, number: int) -> np.ndarray:
        if number not in self._windows:
            shards = self._shards[number * self.window : (number + 1) * self.window]
            samples = np.concatenate(
                [np.arange(int(self.starts[shard]), int(self.starts[shard + 1])) for shard in shards]
            )
            order = torch.randperm(
                len(samples), generator=generator_for(*self.drawn_from, "window", number)
            ).numpy()
            self._windows[number] = samples[order]
            if len(self._windows) > _WINDOWS_KEPT:
                self._windows.popitem(last=False)
        return self._windows[number]
