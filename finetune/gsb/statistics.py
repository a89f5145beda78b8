"""Good / Same / Bad for our model: GSB, win rate, ties, sign test, with intervals (metrics.md 9.2).

`gsb_low`, `gsb_high` are the wider of two 95 % intervals: the analytic one, and, where votes repeat raters or
prompts, the percentiles of a cluster bootstrap over the grouping with the larger clusters, among those of at
least `MIN_CLUSTERS` (few clusters make percentiles too narrow, hence the wider). Where all votes are equal
both have zero width; then Bonett and Price's adjusted interval is used (2012, one pseudo-vote each way).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pretrain.statistics import CONFIDENCE, cluster_bootstrap

Z = 1.959963984540054
MIN_CLUSTERS = 10  # a percentile bootstrap over fewer is far too narrow


@dataclass(frozen=True)
class PairStatistics:
    """One baseline on one axis. Shares in 0..1, `gsb` in -1..1; NaN where undefined (no decided vote)."""

    good: int
    same: int
    bad: int
    gsb: float
    gsb_low: float
    gsb_high: float
    gsb_interval: str  # which one: "analytic", "adjusted", "bootstrap over raters" or "... prompts"
    gsb_se: float  # analytic, as if all votes were independent
    win_rate: float  # without ties
    win_low: float  # Wilson
    win_high: float
    tie_split: float
    sign_p: float  # exact, two-sided, ties dropped
    sign_p_holm: float  # over all pairs and axes of the report
    raters: int
    prompts: int

    def as_json(self) -> dict[str, Any]:
        """All fields by name; JSON has no NaN, so what is undefined is null."""
        values = asdict(self)
        return {
            name: None if isinstance(value, float) and math.isnan(value) else value
            for name, value in values.items()
        }


def pair_statistics(
    preferences: Sequence[int], raters: Sequence[Hashable], prompts: Sequence[Hashable], seed: int = 0
) -> PairStatistics:
    """From n votes: +1 ours preferred, 0 tie, -1 baseline preferred; who voted and on which prompt.

    `sign_p_holm` equals `sign_p` until `holm` corrects it. Raises ValueError without a vote.
    """
    from scipy.stats import binomtest

    if not len(preferences):
        raise ValueError("no votes on this pair")
    values = np.asarray(preferences)
    n = len(values)
    good, same, bad = (int((values == verdict).sum()) for verdict in (1, 0, -1))
    gsb, se = (good - bad) / n, gsb_error(good, same, bad)
    low, high, interval = _interval(values, raters, prompts, seed)
    win = binomtest(good, good + bad) if good + bad else None
    wilson = win.proportion_ci(CONFIDENCE, method="wilson") if win else None
    sign_p = float(win.pvalue) if win else 1.0
    return PairStatistics(
        good=good,
        same=same,
        bad=bad,
        gsb=gsb,
        gsb_low=low,
        gsb_high=high,
        gsb_interval=interval,
        gsb_se=se,
        win_rate=good / (good + bad) if win else math.nan,
        win_low=float(wilson.low) if wilson else math.nan,
        win_high=float(wilson.high) if wilson else math.nan,
        tie_split=(good + same / 2) / n,
        sign_p=sign_p,
        sign_p_holm=sign_p,
        raters=len(set(raters)),
        prompts=len(set(prompts)),
    )


def gsb_error(good: float, same: float, bad: float) -> float:
    """Standard error of (G - B) / n for independent votes: sqrt((pG + pB - (pG - pB)^2) / n)."""
    n = good + same + bad
    return math.sqrt(max(((good + bad) / n - ((good - bad) / n) ** 2) / n, 0.0))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the order given."""
    order = np.argsort(p_values, kind="stable")
    adjusted = np.empty(len(p_values))
    highest = 0.0
    for rank, index in enumerate(order):
        highest = max(highest, (len(p_values) - rank) * p_values[index])
        adjusted[index] = min(highest, 1.0)
    return [float(value) for value in adjusted]


def larger_clusters(raters: Sequence[Hashable], prompts: Sequence[Hashable]) -> tuple[str, np.ndarray] | None:
    """("raters" or "prompts", cluster per vote) with more votes per cluster; None if none repeats."""
    found = []
    for name, labels in (("raters", raters), ("prompts", prompts)):
        codes = {label: code for code, label in enumerate(dict.fromkeys(labels))}
        if MIN_CLUSTERS <= len(codes) < len(labels):
            found.append((len(codes), name, np.array([codes[label] for label in labels])))
    if not found:
        return None
    _, name, clusters = min(found, key=lambda entry: entry[0])
    return name, clusters


def _interval(
    values: np.ndarray, raters: Sequence[Hashable], prompts: Sequence[Hashable], seed: int
) -> tuple[float, float, str]:
    n = len(values)
    good, bad = int((values == 1).sum()), int((values == -1).sum())
    gsb, se = (good - bad) / n, gsb_error(good, n - good - bad, bad)
    if not se:
        middle, wider = (good - bad) / (n + 2), gsb_error(good + 1, n - good - bad, bad + 1)
        return max(middle - Z * wider, -1.0), min(middle + Z * wider, 1.0), "adjusted"
    if clustered := larger_clusters(raters, prompts):
        low, high = cluster_bootstrap(values.astype(float), clustered[1], seed)
        if high - low > 2 * Z * se:
            return low, high, f"bootstrap over {clustered[0]}"
    return max(gsb - Z * se, -1.0), min(gsb + Z * se, 1.0), "analytic"
