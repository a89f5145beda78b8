"""How much one clip stands for another, worked out block by block from vectors that lie in a file.

The same numbers as `pretrain.data.features.similarities` times quality, in float32: groups of features are
centred and divided by the root of their mean squared distance, so that the squared distance of two vectors is
the sum that is taken there. Only its median is of a sample of pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

ROWS = 4096  # read at once
MEDIAN_OF = 2000  # clips whose pairs give the median distance


@dataclass(frozen=True)
class Worth:
    """worth_ij = weights_j * exp(-|v_i - v_j|^2 / scale) of vectors [n, D] in a .npy file.

    Goes to other processes as it is: they map the file.
    """

    path: Path
    weights: np.ndarray  # float32 [n], 0..1
    scale: float

    def __len__(self) -> int:
        return len(self.weights)

    @cached_property
    def vectors(self) -> np.ndarray:
        return np.load(self.path, mmap_mode="r")

    def block(self, represented: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        """float32 [represented, candidates]."""
        left, right = self.vectors[represented], self.vectors[candidates]
        found = left @ right.T
        found *= -2.0
        found += (left**2).sum(axis=1)[:, None]
        found += (right**2).sum(axis=1)[None]
        np.maximum(found, 0.0, out=found)
        found *= -1.0 / self.scale
        np.exp(found, out=found)
        found *= self.weights[candidates][None]
        return found

    def covered(self, represented: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        """[represented]: the greatest worth of a chosen clip to each."""
        best = np.zeros(len(represented), np.float32)
        for some in np.array_split(chosen, -(-len(chosen) // ROWS)):
            np.maximum(best, self.block(represented, some).max(axis=1), out=best)
        return best

    def __getstate__(self) -> dict[str, object]:
        return {"path": self.path, "weights": self.weights, "scale": self.scale}


def embed(groups: Sequence[np.ndarray], weights: np.ndarray, path: Path, seed: int = 0) -> Worth:
    """Writes the vectors of feature groups [n, d], which may be mapped files, to `path` (.npy)."""
    count = len(groups[0])
    widths = [group.shape[1] for group in groups]
    vectors = np.lib.format.open_memmap(path, "w+", np.float32, (count, sum(widths)))
    first = 0
    for group, width in zip(groups, widths, strict=True):
        mean = sum((rows.sum(axis=0) for _, rows in _read(group)), np.zeros(width)) / count
        squares = sum(float(((rows - mean) ** 2).sum()) for _, rows in _read(group))
        size = np.sqrt(max(2.0 * squares / count, 1e-12))  # mean over all pairs, of a clip with itself too
        for begin, rows in _read(group):
            vectors[begin : begin + len(rows), first : first + width] = (rows - mean) / size
        first += width
    vectors.flush()
    return Worth(path, np.asarray(weights, np.float32), _median(vectors, seed))


def _read(group: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    for begin in range(0, len(group), ROWS):
        yield begin, np.asarray(group[begin : begin + ROWS], np.float64)


def _median(vectors: np.ndarray, seed: int) -> float:
    """Of the squared distances of different clips."""
    count = len(vectors)
    if count < 2:
        return 1.0
    some = np.sort(np.random.default_rng(seed).permutation(count)[:MEDIAN_OF])
    values = np.asarray(vectors[some], np.float64)
    squares = (values**2).sum(axis=1)
    distances = squares[:, None] + squares[None] - 2 * values @ values.T
    return max(float(np.median(distances[~np.eye(len(some), dtype=bool)])), 1e-12)
