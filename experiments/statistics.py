"""Bootstrap intervals of what evaluation reports: resample the clips, recompute, take the middle 95 %."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

NUM_RESAMPLES = 2000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """An estimate over n clips with its percentile interval; `unscored` clips were NaN and took no part."""

    mean: float
    low: float
    high: float
    n: int
    unscored: int = 0

    def as_json(self) -> dict[str, float | int | None]:
        """`{mean, low, high, n}`; JSON has no NaN, so what could not be measured is null."""
        estimates = {"mean": self.mean, "low": self.low, "high": self.high}
        return {**{key: None if math.isnan(value) else round(value, 6) for key, value in estimates.items()}, "n": self.n}


def bootstrap_mean(values: Sequence[float], seed: int = 0, num_resamples: int = NUM_RESAMPLES) -> Interval:
    """Mean of the values that are not NaN, clips resampled with replacement."""
    return bootstrap_ratio(values, [1.0] * len(values), seed, num_resamples)


def bootstrap_ratio(
    numerators: Sequence[float], denominators: Sequence[float], seed: int = 0, num_resamples: int = NUM_RESAMPLES
) -> Interval:
    """Sum of numerators over sum of denominators (errors over words), clips resampled as pairs. NaN pairs take no part."""
    above, below = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    kept = ~(np.isnan(above) | np.isnan(below))
    above, below = above[kept], below[kept]
    n, unscored = len(above), int((~kept).sum())
    if not n or not below.sum():
        return Interval(math.nan, math.nan, math.nan, n, unscored)
    draws = np.random.default_rng(seed).multinomial(n, np.full(n, 1.0 / n), size=num_resamples)  # [R, n] how often each clip is drawn
    estimates = (draws @ above) / np.maximum(draws @ below, 1e-12)
    low, high = np.quantile(estimates, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(above.sum() / below.sum()), float(low), float(high), n, unscored)
