"""Bootstrap intervals for evaluation and studies: resample, recompute, take the central 95 %.

One measure over clips (`Terms`) resamples the clips. One measure over seeds and clips (`Table`) resamples the
seeds, and the clips either in each drawn seed by itself (`Draws.nested`) or the same ones in all of them
(`Draws.crossed`: all seeds answer the same prompts, so what is hard about a prompt does not average out).

Of fewer than `FEW` clips, or clusters of clips, the interval of a measure over clips is Student's, and there
is none of a single one (`few_clusters`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from itertools import compress

import numpy as np

from experiments.scoring.few_clusters import FEW, FEWEST_JUDGED, student_interval
from pretrain.statistics import NUM_RESAMPLES, cluster_counts, percentiles, ratios_of_sums

TOO_FEW = "too few"
Terms = tuple[Sequence[float], Sequence[float]]  # numerator and denominator of every clip; a mean has 1 below
Clusters = Sequence[Hashable]  # what each clip belongs to
# [seeds][clips] (numerator, denominator); None = unscored
SeedTerms = Sequence[Sequence[Sequence[float] | None]]


@dataclass(frozen=True)
class Interval:
    """An estimate over n clips with its 95 % interval; `unscored` clips were NaN and took no part. `low` and
    `high` are NaN where there is a mean but nothing to tell its spread by. `clusters`: how many independent
    ones the clips are, None = not counted."""

    mean: float
    low: float
    high: float
    n: int
    unscored: int = 0
    clusters: int | None = None

    def as_json(self) -> dict[str, float | int | None]:
        """`{mean, low, high, n}`, and `clusters` where they are fewer than n; NaN, which JSON cannot
        represent, becomes null."""
        estimates = {"mean": self.mean, "low": self.low, "high": self.high}
        return {
            **{key: None if math.isnan(value) else round(value, 6) for key, value in estimates.items()},
            "n": self.n,
            **({"clusters": self.clusters} if self.clusters and self.clusters < self.n else {}),
        }

    def classify(self, higher_is_better: bool) -> str:
        """Classification of the interval of a difference; TOO_FEW where chance alone would do it."""
        if self.clusters is not None and 0 < self.clusters < FEWEST_JUDGED:
            return TOO_FEW
        if math.isnan(self.low):
            return "not measured"
        if self.low <= 0 <= self.high:
            return "not told apart"
        return "better" if (self.mean > 0) == higher_is_better else "worse"


@dataclass(frozen=True, eq=False)
class Table:
    """One metric of one arm: float64 [seeds, clips]; an unscored clip is 0 of 0."""

    above: np.ndarray
    below: np.ndarray

    @classmethod
    def of(cls, pairs: SeedTerms) -> Table:
        """Raises ValueError where seeds have different numbers of clips."""
        if len({len(row) for row in pairs}) > 1:
            raise ValueError(f"every seed needs the same prompts, got {[len(row) for row in pairs]} clips")
        filled = [[(0.0, 0.0) if pair is None else pair for pair in row] for row in pairs]
        values = np.array(filled, dtype=np.float64)
        return cls(values[..., 0], values[..., 1])

    def summed(self, clusters: Sequence[Hashable]) -> Table:
        """float64 [seeds, clusters]: the clips of each cluster together, in order of appearance."""
        codes = {name: code for code, name in enumerate(dict.fromkeys(clusters))}
        places = np.array([codes[name] for name in clusters], dtype=np.int64)
        above, below = (np.zeros((len(self.above), len(codes))) for _ in range(2))
        np.add.at(above.T, places, self.above.T)
        np.add.at(below.T, places, self.below.T)
        return Table(above, below)

    @property
    def per_seed(self) -> list[float]:
        """The metric of each seed over all its clips; NaN if none was scored."""
        sums = zip(self.above.sum(1), self.below.sum(1), strict=True)
        return [above / below if below else math.nan for above, below in sums]

    @property
    def mean(self) -> float:
        """Mean over the seeds that have the metric."""
        kept = [value for value in self.per_seed if not math.isnan(value)]
        return sum(kept) / len(kept) if kept else math.nan

    @property
    def deviations(self) -> np.ndarray:
        """float64 [clips] with a mean of 0: what each clip adds to the first seed's ratio (linearised)."""
        above, below = self.above[0], self.below[0]
        return (above - self.mean * below) / below.mean()

    @property
    def scored(self) -> int:
        return int((self.below > 0).sum())


@dataclass(frozen=True, eq=False)
class ClipDraws:
    """Clips with replacement."""

    counts: np.ndarray  # int [R, C], how often each clip was drawn

    @classmethod
    def make(cls, num_clips: int, num_resamples: int, seed: int | Sequence[int]) -> ClipDraws:
        return cls(cluster_counts(num_clips, np.random.default_rng(seed), num_resamples))

    def means(self, table: Table) -> np.ndarray:
        return ratios_of_sums(self.counts, table.above[0], table.below[0])


@dataclass(frozen=True, eq=False)
class Draws:
    """Seeds with replacement, and clips with replacement."""

    seeds: np.ndarray  # int [R, S]
    counts: np.ndarray  # float [R, S, C], how often each clip was drawn in the drawn seed

    @classmethod
    def nested(cls, num_seeds: int, num_clips: int, num_resamples: int, seed: int = 0) -> Draws:
        """Clips in each drawn seed by itself."""
        rng = np.random.default_rng(seed)
        drawn = rng.integers(num_seeds, size=(num_resamples, num_seeds))
        counts = cluster_counts(num_clips, rng, (num_resamples, num_seeds))
        return cls(drawn, counts.astype(np.float64))

    @classmethod
    def crossed(cls, num_seeds: int, num_clips: int, num_resamples: int, seed: int = 0) -> Draws:
        """The same clips in every drawn seed."""
        rng = np.random.default_rng(seed)
        drawn = rng.integers(num_seeds, size=(num_resamples, num_seeds))
        counts = cluster_counts(num_clips, rng, num_resamples).astype(np.float64)
        return cls(drawn, np.repeat(counts[:, None], num_seeds, axis=1))

    def means(self, table: Table) -> np.ndarray:
        """[R]; a seed whose drawn clips have nothing scored takes no part."""
        above, below = ((self.counts * part[self.seeds]).sum(axis=2) for part in (table.above, table.below))
        with np.errstate(invalid="ignore", divide="ignore"):
            ratios = above / below
        kept = below > 0
        sums = np.where(kept, ratios, 0.0).sum(axis=1)
        return np.divide(sums, kept.sum(axis=1), out=np.full(len(sums), np.nan), where=kept.any(axis=1))


Resamples = ClipDraws | Draws  # shared by everything that is compared
DrawsOf = Callable[[int, int, int], Draws]  # Draws.nested or Draws.crossed, of (seeds, clips, resamples)


def mean_over_seeds(table: Table, draws: Resamples) -> Interval:
    """Mean of the seeds' metrics; n counts scored clips of all seeds. Without ends where one clip (of all
    seeds) was scored."""
    return _of_clips(_interval(table.mean, draws.means(table), table.scored, table.below.size), table)


def difference_over_seeds(one: Table, other: Table, draws: Resamples) -> Interval:
    """`one` minus `other` over the same seeds and clips, resampled together; n counts those of `one`. Without
    ends as `mean_over_seeds`."""
    moved = draws.means(one) - draws.means(other)
    return _of_clips(_interval(one.mean - other.mean, moved, one.scored, one.below.size), one, other)


def paired(*tables: Table) -> list[Table]:
    """The tables over the clips that all of them could score. One of a single seed stands for as many as the
    others have."""
    seeds = max(len(table.above) for table in tables)
    whole = [
        Table(*(np.broadcast_to(part, (seeds, part.shape[1])) for part in (table.above, table.below)))
        for table in tables
    ]
    kept = np.logical_and.reduce([table.below > 0 for table in whole])
    return [Table(np.where(kept, table.above, 0.0), np.where(kept, table.below, 0.0)) for table in whole]


def share_of_gain(
    part: Table, whole: Table, base: Table, higher_is_better: bool, draws: Resamples
) -> Interval:
    """(part - base) / (whole - base) of paired tables. NaN where `whole - base` is no gain whose interval
    leaves 0 out: a share of what may be nothing has no value."""
    if difference_over_seeds(whole, base, draws).classify(higher_is_better) != "better":
        return _nothing(part.scored)
    return _closed((base, part, whole), (draws, draws), part.scored)


def bootstrap_mean(
    values: Sequence[float],
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
    clusters: Clusters | None = None,
) -> Interval:
    """Mean of the values that are not NaN, clips resampled with replacement; clusters: of
    `bootstrap_ratio`."""
    return bootstrap_ratio(values, [1.0] * len(values), seed, num_resamples, clusters)


def bootstrap_ratio(
    numerators: Sequence[float],
    denominators: Sequence[float],
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
    clusters: Clusters | None = None,
) -> Interval:
    """Sum of numerators over sum of denominators (errors over words), clips resampled as pairs. NaN pairs
    take no part.

    clusters: what each clip belongs to, where clips share what makes them hard, such as their words: whole
    clusters are resampled then, and the interval says how many. `n` counts clips.
    """
    (table,), kept = _scored_in_all((numerators, denominators))
    n = int(kept.sum())
    if not n or math.isnan(table.mean):
        return _nothing(n, kept.size - n)
    (drawn,) = _together([table], clusters, kept)
    draws = ClipDraws.make(drawn.below.size, num_resamples, seed)
    return _interval(table.mean, draws.means(drawn), n, kept.size, drawn.deviations)


def bootstrap_difference(
    one: Terms,
    other: Terms,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
    clusters: Clusters | None = None,
) -> Interval:
    """Ratio of `one` minus ratio of `other` on the same clips, resampled together. A clip that either lacks
    takes no part. clusters: of `bootstrap_ratio`, of the clips of both."""
    (ours, theirs), kept = _scored_in_all(one, other)
    n = int(kept.sum())
    if not n or math.isnan(ours.mean - theirs.mean):
        return _nothing(n, kept.size - n)
    drawn, others = _together([ours, theirs], clusters, kept)
    draws = ClipDraws.make(drawn.below.size, num_resamples, seed)
    moved = draws.means(drawn) - draws.means(others)
    return _interval(ours.mean - theirs.mean, moved, n, kept.size, drawn.deviations - others.deviations)


def bootstrap_closed(
    before: Terms,
    after: Terms,
    reference: Terms,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
    clusters: Clusters | None = None,
    reference_clusters: Clusters | None = None,
) -> Interval:
    """(before - after) / (before - reference) of three ratios: how much of the way to the reference was gone.

    Clips of before and after are the same and resampled together, those of the reference by themselves. NaN
    where the gap is not measurable (its own 95 % interval holds 0): a share of nothing has no value, and
    Fieller's interval of it no end. NaN too of fewer than `FEW` pairs or clips of the reference, or clusters
    of them, of which percentiles do not tell that the gap is one. `n` counts pairs. clusters: of
    `bootstrap_ratio`, of the clips of before and after; reference_clusters: of those of the reference.
    """
    (start, end), kept = _scored_in_all(before, after)
    (goal,), kept_goals = _scored_in_all(reference)
    n, goals = int(kept.sum()), int(kept_goals.sum())
    unscored = kept.size - n
    if not n or not goals or math.isnan(start.mean - end.mean - goal.mean):
        return _nothing(n, unscored)
    start, end = _together([start, end], clusters, kept)
    (goal,) = _together([goal], reference_clusters, kept_goals)
    if min(start.below.size, goal.below.size) < FEW:
        return _nothing(n, unscored)
    sizes = ((start.below.size, 0), (goal.below.size, 1))
    draws = [ClipDraws.make(size, num_resamples, (seed, stream)) for size, stream in sizes]
    found = _closed((start, end, goal), (draws[0], draws[1]), n, unscored)
    return replace(found, clusters=start.below.size)


def _closed(
    tables: tuple[Table, Table, Table], draws: tuple[Resamples, Resamples], n: int, unscored: int = 0
) -> Interval:
    """(start - end) / (start - goal); `draws`: of start and end, and of goal."""
    start, end, goal = tables
    starts = draws[0].means(start)
    gaps, moves = starts - draws[1].means(goal), starts - draws[0].means(end)
    low, high = percentiles(gaps)
    if low <= 0 <= high:
        return _nothing(n, unscored)
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = moves / gaps
    shares = np.where(np.isfinite(shares), shares, np.nan)
    return _interval((start.mean - end.mean) / (start.mean - goal.mean), shares, n, n + unscored)


def _scored_in_all(*terms: Terms) -> tuple[list[Table], np.ndarray]:
    """Tables of one seed without the clips that have a NaN in any of the terms, and which clips they have,
    bool [clips]."""
    arrays = [np.asarray(column, dtype=np.float64) for pair in terms for column in pair]
    kept = ~np.any([np.isnan(column) for column in arrays], axis=0)
    arrays = [column[None, kept] for column in arrays]
    tables = [Table(above, below) for above, below in zip(arrays[::2], arrays[1::2], strict=True)]
    return tables, kept


def _together(tables: Sequence[Table], clusters: Clusters | None, kept: np.ndarray) -> list[Table]:
    """The tables with a column for each cluster of the clips that were kept."""
    labels = [] if clusters is None else [*compress(clusters, kept)]
    return [*tables] if clusters is None else [table.summed(labels) for table in tables]


def _of_clips(found: Interval, *tables: Table) -> Interval:
    """Without ends where a table has a single clip that is scored: drawn again it is always the same."""
    if all((table.below > 0).any(axis=0).sum() > 1 for table in tables):
        return found
    return replace(found, low=math.nan, high=math.nan)


def _nothing(n: int, unscored: int = 0) -> Interval:
    return Interval(math.nan, math.nan, math.nan, n, unscored)


def _interval(
    point: float, estimates: np.ndarray, n: int, size: int, deviations: np.ndarray | None = None
) -> Interval:
    """`deviations` [clusters]: what each adds to the estimate; None = clusters are not counted."""
    known = estimates[~np.isnan(estimates)]
    if math.isnan(point) or not len(known):
        return _nothing(n, size - n)
    clusters = None if deviations is None else len(deviations)
    if deviations is not None and len(deviations) < FEW:
        ends = student_interval(point, deviations)
    else:
        ends = percentiles(known)
    return Interval(float(point), *ends, n, size - n, clusters)
