"""Bootstrap intervals of what evaluation reports: resample the clips, recompute, take the middle 95 %."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

NUM_RESAMPLES = 2000
CONFIDENCE = 0.95
TAILS = ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)
Terms = tuple[Sequence[float], Sequence[float]]  # numerator and denominator of every clip; a mean has 1 below


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
        return {
            **{key: None if math.isnan(value) else round(value, 6) for key, value in estimates.items()},
            "n": self.n,
        }


def bootstrap_mean(values: Sequence[float], seed: int = 0, num_resamples: int = NUM_RESAMPLES) -> Interval:
    """Mean of the values that are not NaN, clips resampled with replacement."""
    return bootstrap_ratio(values, [1.0] * len(values), seed, num_resamples)


def bootstrap_ratio(
    numerators: Sequence[float],
    denominators: Sequence[float],
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
) -> Interval:
    """Sum of numerators over sum of denominators (errors over words), clips resampled as pairs. NaN pairs
    take no part."""
    (terms,), unscored = _scored_in_all((numerators, denominators))
    above, below = terms
    n = len(above)
    if not n or not below.sum():
        return Interval(math.nan, math.nan, math.nan, n, unscored)
    draws = _draws(n, np.random.default_rng(seed), num_resamples)
    return _interval(float(above.sum() / below.sum()), _ratios(draws, terms), n, unscored)


def bootstrap_difference(
    one: Terms, other: Terms, seed: int = 0, num_resamples: int = NUM_RESAMPLES
) -> Interval:
    """Ratio of `one` minus ratio of `other` on the same clips, resampled together. A clip that either lacks
    takes no part."""
    both, unscored = _scored_in_all(one, other)
    n = len(both[0][0])
    if not n or not all(below.sum() for _, below in both):
        return Interval(math.nan, math.nan, math.nan, n, unscored)
    draws = _draws(n, np.random.default_rng(seed), num_resamples)
    ours, theirs = (float(above.sum() / below.sum()) for above, below in both)
    return _interval(ours - theirs, _ratios(draws, both[0]) - _ratios(draws, both[1]), n, unscored)


def bootstrap_closed(
    before: Terms, after: Terms, reference: Terms, seed: int = 0, num_resamples: int = NUM_RESAMPLES
) -> Interval:
    """(before - after) / (before - reference) of three ratios: how much of the way to the reference was gone.

    Clips of before and after are the same and resampled together, those of the reference by themselves. NaN
    where the gap is not measurable (its own 95 % interval holds 0): a share of nothing has no value, and
    Fieller's interval of it no end. `n` counts pairs.
    """
    both, unscored = _scored_in_all(before, after)
    goals, _ = _scored_in_all(reference)
    n, sides = len(both[0][0]), [*both, *goals]
    nothing = Interval(math.nan, math.nan, math.nan, n, unscored)
    if not n or not all(below.sum() for _, below in sides):
        return nothing
    draws = _draws(n, np.random.default_rng((seed, 0)), num_resamples)
    others = _draws(len(goals[0][0]), np.random.default_rng((seed, 1)), num_resamples)
    starts = _ratios(draws, both[0])
    gaps, moves = starts - _ratios(others, goals[0]), starts - _ratios(draws, both[1])
    low, high = np.quantile(gaps, TAILS)
    if low <= 0 <= high:
        return nothing
    start, end, goal = (float(above.sum() / below.sum()) for above, below in sides)
    return _interval((start - end) / (start - goal), moves[gaps != 0] / gaps[gaps != 0], n, unscored)


def _scored_in_all(*terms: Terms) -> tuple[list[tuple[np.ndarray, np.ndarray]], int]:
    """The terms as arrays without the clips that have a NaN in any of them, and how many those were."""
    arrays = [np.asarray(column, dtype=np.float64) for pair in terms for column in pair]
    kept = ~np.any([np.isnan(column) for column in arrays], axis=0)
    arrays = [column[kept] for column in arrays]
    return list(zip(arrays[::2], arrays[1::2], strict=True)), int((~kept).sum())


def _draws(n: int, rng: np.random.Generator, num_resamples: int) -> np.ndarray:
    """[R, n] how often each clip is drawn."""
    return rng.multinomial(n, np.full(n, 1.0 / n), size=num_resamples)


def _ratios(draws: np.ndarray, terms: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    return (draws @ terms[0]) / np.maximum(draws @ terms[1], 1e-12)


def _interval(mean: float, estimates: np.ndarray, n: int, unscored: int) -> Interval:
    low, high = np.quantile(estimates, TAILS)
    return Interval(mean, float(low), float(high), n, unscored)
