"""z-scores that ignore NaN, within groups or against running moments (Welford; Chan et al. 1979)."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

# relative spread below which differences are rounding noise, which a z-score would amplify
NO_CONTRAST = 1e-9


@dataclass(frozen=True)
class Moments:
    """Count, mean and sum of squared deviations of the values seen so far."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    largest: float = 0.0  # absolute value

    @property
    def std(self) -> float:
        """Population standard deviation; 0 before the second value."""
        return math.sqrt(self.squares / self.count) if self.count else 0.0

    @property
    def has_contrast(self) -> bool:
        return self.std > NO_CONTRAST * self.largest

    def merged(self, values: np.ndarray) -> Moments:
        """A copy updated with the values of [N] that are not NaN."""
        seen = np.asarray(values, dtype=np.float64)
        seen = seen[~np.isnan(seen)]
        if not len(seen):
            return self
        count, mean = self.count + len(seen), float(seen.mean())
        # Chan et al.: merge by means, since a difference of large sums of squares would cancel
        shift = mean - self.mean
        squares = float(((seen - mean) ** 2).sum()) + shift**2 * self.count * len(seen) / count
        return Moments(
            count,
            self.mean + shift * len(seen) / count,
            self.squares + squares,
            max(self.largest, float(np.abs(seen).max())),
        )

    def z(self, values: np.ndarray) -> np.ndarray:
        """(value - mean) / std; 0 without contrast, NaN where the value is NaN."""
        centred = np.asarray(values, dtype=np.float64) - self.mean
        return centred / self.std if self.has_contrast else 0.0 * centred


def group_z(values: np.ndarray, groups: Sequence[Hashable]) -> tuple[np.ndarray, int]:
    """z of [N] within each group, ignoring NaN, and the number of groups without contrast.

    A group whose values are all equal (or a single value) gets 0: no clip of it is preferred.
    """
    values = np.asarray(values, dtype=np.float64)
    members: dict[Hashable, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    answer, flat = np.full(len(values), np.nan), 0
    for indices in members.values():
        moments = Moments().merged(values[indices])
        answer[indices] = moments.z(values[indices])
        flat += moments.count > 0 and not moments.has_contrast
    return answer, flat
