"""Means over seeds with intervals that know both sources of chance: which seeds were drawn, and which
prompts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from experiments.scoring.statistics import CONFIDENCE, Interval

Pairs = Sequence[
    Sequence[Sequence[float] | None]
]  # [seeds][clips] (numerator, denominator); None = could not be scored


@dataclass(frozen=True, eq=False)
class Table:
    """One metric of one paradigm: float64 [seeds, clips] each; what could not be scored is 0 of 0."""

    above: np.ndarray
    below: np.ndarray

    @classmethod
    def of(cls, pairs: Pairs) -> Table:
        """Raises ValueError where seeds have different numbers of clips."""
        if len({len(row) for row in pairs}) > 1:
            raise ValueError(f"every seed needs the same prompts, got {[len(row) for row in pairs]} clips")
        filled = np.array(
            [[pair if pair is not None else (0.0, 0.0) for pair in row] for row in pairs], dtype=np.float64
        )
        return cls(filled[..., 0], filled[..., 1])

    @property
    def per_seed(self) -> list[float]:
        """The metric of each seed over all its clips; NaN where none could be scored."""
        return [
            above / below if below else math.nan
            for above, below in zip(self.above.sum(1), self.below.sum(1), strict=True)
        ]

    @property
    def scored(self) -> int:
        return int((self.below > 0).sum())


@dataclass(frozen=True, eq=False)
class Draws:
    """Resamples shared by everything that is compared: seeds with replacement, then in each drawn seed clips
    with replacement."""

    seeds: np.ndarray  # int [R, S]
    counts: np.ndarray  # float [R, S, C], how often each clip was drawn

    @classmethod
    def make(cls, num_seeds: int, num_clips: int, resamples: int, seed: int = 0) -> Draws:
        rng = np.random.default_rng(seed)
        drawn = rng.integers(num_seeds, size=(resamples, num_seeds))
        counts = rng.multinomial(num_clips, np.full(num_clips, 1.0 / num_clips), size=(resamples, num_seeds))
        return cls(drawn, counts.astype(np.float64))

    def means(self, table: Table) -> np.ndarray:
        """[R] means over drawn seeds of the metric over drawn clips; a seed whose drawn clips have nothing
        scored takes no part."""
        above, below = ((self.counts * part[self.seeds]).sum(axis=2) for part in (table.above, table.below))
        with np.errstate(invalid="ignore", divide="ignore"):
            ratios = above / below
        kept = below > 0
        sums = np.where(kept, ratios, 0.0).sum(axis=1)
        return np.divide(sums, kept.sum(axis=1), out=np.full(len(sums), np.nan), where=kept.any(axis=1))


def mean_over_seeds(table: Table, draws: Draws) -> Interval:
    """Mean of the seeds' metrics and its percentile interval; n counts scored clips of all seeds."""
    return _interval(_mean(table.per_seed), draws.means(table), table)


def difference_over_seeds(one: Table, other: Table, draws: Draws) -> Interval:
    """`one` minus `other`: the same seeds saw the same data and answered the same prompts, so both are
    resampled together."""
    point = _mean(one.per_seed) - _mean(other.per_seed)
    return _interval(point, draws.means(one) - draws.means(other), one)


def _mean(values: Sequence[float]) -> float:
    kept = [value for value in values if not math.isnan(value)]
    return sum(kept) / len(kept) if kept else math.nan


def _interval(point: float, estimates: np.ndarray, table: Table) -> Interval:
    known = estimates[~np.isnan(estimates)]
    unscored = table.below.size - table.scored
    if math.isnan(point) or not len(known):
        return Interval(math.nan, math.nan, math.nan, table.scored, unscored)
    low, high = np.quantile(known, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(point, float(low), float(high), table.scored, unscored)
