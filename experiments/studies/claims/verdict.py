"""Differences of two cells with intervals, the verdict that follows, and what could have been seen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import norm, t

from experiments.scoring.statistics import ClipDraws, Clusters, Interval, SeedTerms, Table, paired
from pretrain.statistics import CONFIDENCE, cluster_counts, ratios_of_sums

POWER = 0.8  # the chance with which `detectable` would have been told apart
Z = float(norm.ppf((1 + CONFIDENCE) / 2))
SEEN = (Z + float(norm.ppf(POWER))) / Z  # detectable difference / half width of the interval
MIN_TRAININGS = 2  # seeds of a training from which its luck can be told
WORDS = {"better": "favours", "worse": "against"}  # otherwise as they are
NOT_RUN = "not run"
# a difference of what was not measured, such as a validation loss without a set to validate on
NOT_MEASURED: Mapping[str, Any] = {
    "mean": None,
    "low": None,
    "high": None,
    "n": 0,
    "verdict": "not measured",
    "detectable": None,
}


def over_prompts(
    ours: SeedTerms, theirs: SeedTerms, resamples: int, said: Clusters | None = None
) -> Interval:
    """Difference of two samplings of one model.

    [seeds][clips] (numerator, denominator) or None. The clips of all noise seeds of prompts that say the same
    are one cluster; clips that either side could not score take no part. Clusters are resampled. `n` counts
    prompts.
    """
    pair = [_of_all_seeds(table) for table in paired(Table.of(ours), Table.of(theirs))]
    n = int((pair[0].below > 0).sum())
    if not n:
        return Interval(math.nan, math.nan, math.nan, 0)
    one, other = _drawn(pair, said)
    draws = ClipDraws.make(one.below.shape[1], resamples, 0)
    moved = draws.means(one) - draws.means(other)
    low, high = np.quantile(moved, ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2))
    return Interval(one.mean - other.mean, float(low), float(high), n)


def over_trainings(
    ours: SeedTerms, theirs: SeedTerms, resamples: int, said: Clusters | None = None
) -> Interval:
    """Difference of two trainings, paired by seed and prompt; symmetric.

    Half width: root of the sum of squares of Student's interval over the seeds' differences and of the
    bootstrap over what the prompts say, so that neither a few seeds nor a few words pass for more. Of one
    seed only the prompts' part is there. `n` counts seeds.
    """
    one, other = _drawn(paired(Table.of(ours), Table.of(theirs)), said)
    pairs = zip(one.per_seed, other.per_seed, strict=True)
    moved = np.array([mine - its for mine, its in pairs if not math.isnan(mine - its)])
    if not len(moved):
        return Interval(math.nan, math.nan, math.nan, 0)
    seeds = 0.0
    if len(moved) > 1:
        quantile = float(t.ppf((1 + CONFIDENCE) / 2, len(moved) - 1))
        seeds = quantile * float(moved.std(ddof=1)) / math.sqrt(len(moved))
    half = math.hypot(seeds, Z * _prompts_error(one, other, resamples))
    mean = float(moved.mean())
    return Interval(mean, mean - half, mean + half, len(moved))


def verdict_of(found: Interval, higher_is_better: bool, trained: bool) -> str:
    """favours, against, not told apart, one seed (of a training: no verdict), or not measured."""
    if trained and found.n == 1:
        return "one seed"
    outcome = found.classify(higher_is_better)
    return WORDS.get(outcome, outcome)


def compared(
    ours: SeedTerms,
    theirs: SeedTerms,
    higher_is_better: bool,
    trained: bool,
    resamples: int,
    said: Clusters | None = None,
) -> dict[str, Any]:
    """`{mean, low, high, n, verdict, detectable}`.

    detectable: the difference that would have been told apart with a chance of `POWER`; null where nothing
    varies, as if no clip differs, and the data do not say.
    """
    found = (over_trainings if trained else over_prompts)(ours, theirs, resamples, said)
    half = (found.high - found.low) / 2
    detectable = round(SEEN * half, 6) if half > 0 else None
    return {
        **found.as_json(),
        "verdict": verdict_of(found, higher_is_better, trained),
        "detectable": detectable,
    }


def together(table: Table, said: Clusters | None) -> Table:
    """The prompts that say the same as one column; as it is where it has no prompts, as a loss has none."""
    return table if said is None or table.below.shape[1] != len(said) else table.summed(said)


def _drawn(pair: Sequence[Table], said: Clusters | None) -> list[Table]:
    """What is resampled: the prompts that say the same as one, without those of which nothing is scored."""
    joined = [together(table, said) for table in pair]
    kept = joined[0].below.any(axis=0)
    return [Table(table.above[:, kept], table.below[:, kept]) for table in joined]


def _of_all_seeds(table: Table) -> Table:
    """One row: sums over the seeds of each prompt."""
    return Table(table.above.sum(0, keepdims=True), table.below.sum(0, keepdims=True))


def _prompts_error(one: Table, other: Table, resamples: int) -> float:
    """Standard error of the seeds' mean difference over the draw of prompts; 0 where there is one clip."""
    clips = one.below.shape[1]
    if clips == 1:
        return 0.0
    counts = cluster_counts(clips, np.random.default_rng(0), resamples)
    moved: Sequence[np.ndarray] = [
        ratios_of_sums(counts, one.above[seed], one.below[seed])
        - ratios_of_sums(counts, other.above[seed], other.below[seed])
        for seed in range(len(one.below))
        if one.below[seed].any()
    ]
    return float(np.mean(moved, axis=0).std())
