"""Which prompts a page of before and after shows: drawn ones, the largest losses and the largest gains."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import numpy as np

from experiments.scoring.rows import ScoredRow, terms
from rewards.metric import Metric

DRAWN, LOSSES, GAINS = "drawn", "losses", "gains"


def gains_of(
    before: Sequence[ScoredRow], after: Sequence[ScoredRow], metrics: Sequence[Metric]
) -> list[float]:
    """Gain of each prompt: the mean over metrics of its difference, in standard deviations of `before`.

    Positive is better also where lower is better. NaN for a prompt without any score on both sides.
    """
    columns = [_standardised(before, after, metric) for metric in metrics]
    per_prompt = zip(*columns, strict=True) if columns else ((),) * len(before)
    return [_mean([value for value in values if math.isfinite(value)]) for values in per_prompt]


def pick(gains: Sequence[float], number: int, seed: int) -> dict[str, list[int]]:
    """Places of up to `number` prompts: as many largest losses as largest gains, the rest drawn.

    The drawn ones come from all that are left, by `seed`, whatever their gain, so the page flatters nobody.
    """
    number = min(number, len(gains))
    ranked = sorted(
        (place for place, gain in enumerate(gains) if math.isfinite(gain)), key=lambda p: gains[p]
    )
    each = min(number // 3, len(ranked) // 2)
    losses, best = ranked[:each], ranked[len(ranked) - each :][::-1]
    left = [place for place in range(len(gains)) if place not in {*losses, *best}]
    drawn = random.Random(seed).sample(left, number - 2 * each)
    return {DRAWN: sorted(drawn), LOSSES: losses, GAINS: best}


def _standardised(before: Sequence[ScoredRow], after: Sequence[ScoredRow], metric: Metric) -> np.ndarray:
    old, new = (_values(rows, metric) for rows in (before, after))
    spread = float(np.nanstd(old)) if np.isfinite(old).any() else 0.0
    differences = (old - new if metric.lower_is_better else new - old) / (spread or 1.0)
    return differences


def _values(rows: Sequence[ScoredRow], metric: Metric) -> np.ndarray:
    above, below = (np.asarray(column, dtype=np.float64) for column in terms(rows, metric))
    return np.divide(above, below, out=np.full(len(above), np.nan), where=below != 0)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
