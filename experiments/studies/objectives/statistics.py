"""Paired comparisons whose intervals know both sources of chance: which prompts were asked, and which seeds
aligned."""

from __future__ import annotations

import math

import numpy as np

from experiments.scoring.statistics import CONFIDENCE, Interval
from experiments.studies.statistics import Draws, Table, difference_over_seeds


def crossed_draws(table: Table, resamples: int, seed: int = 0) -> Draws:
    """Seeds and prompts with replacement, the same prompts in every seed: all seeds answer the same ones, so
    what is hard about a prompt does not average out over seeds."""
    num_seeds, num_clips = table.above.shape
    rng = np.random.default_rng(seed)
    drawn = rng.integers(num_seeds, size=(resamples, num_seeds))
    counts = rng.multinomial(num_clips, np.full(num_clips, 1.0 / num_clips), size=resamples)
    return Draws(drawn, np.repeat(counts[:, None].astype(np.float64), num_seeds, axis=1))


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


def difference(one: Table, other: Table, resamples: int) -> Interval:
    """`one` minus `other` over the clips that both could score."""
    one, other = paired(one, other)
    return difference_over_seeds(one, other, crossed_draws(one, resamples))


def share_of_gain(part: Table, whole: Table, base: Table, up: bool, resamples: int) -> Interval:
    """(part - base) / (whole - base), `up`: higher is better. NaN where `whole - base` is no gain whose
    interval leaves 0 out: a share of what may be nothing says nothing."""
    part, whole, base = paired(part, whole, base)
    draws = crossed_draws(part, resamples)
    nothing = Interval(math.nan, math.nan, math.nan, part.scored)
    if verdict(difference_over_seeds(whole, base, draws), up) != "better":
        return nothing
    below = draws.means(base)
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = (draws.means(part) - below) / (draws.means(whole) - below)
    known = shares[np.isfinite(shares)]
    if not len(known):
        return nothing
    low, high = np.quantile(known, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    ours, theirs, before = (float(np.nanmean(table.per_seed)) for table in (part, whole, base))
    return Interval((ours - before) / (theirs - before), float(low), float(high), part.scored)


def verdict(found: Interval, up: bool) -> str:
    """What the interval of a difference says; `up`: higher is better."""
    if math.isnan(found.mean):
        return "not measured"
    if found.low <= 0 <= found.high:
        return "not told apart"
    return "better" if (found.mean > 0) == up else "worse"
