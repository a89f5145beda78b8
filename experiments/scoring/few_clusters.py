"""Intervals of few independent values, where resampling them is too sure of itself.

Percentiles of a bootstrap cover the mean of normal values in 51 % of cases with 2 values, 75 % with 3, 86 %
with 6 and 90 % from 10 on, that of exponential ones in 44 to 87 %; Student's t in 95 %, and 88 to 92 %
(tests/test_few_clusters.py). Neither knows that 2 to 5 values may agree by chance: the signs of n coins are
all alike in 2 / 2^n of cases, which is under 5 % from 6 on (the sign test).
"""

from __future__ import annotations

import math

import numpy as np

from pretrain.statistics import TAILS

FEW = 10  # fewer get Student's interval
FEWEST_JUDGED = 6  # fewer are no ground for better or worse


def student_interval(point: float, deviations: np.ndarray) -> tuple[float, float]:
    """95 % interval of a mean, or of a linearised ratio, from the `deviations` [n] of its n values from it.

    NaN for a single value, and for up to 5 equal ones, which say nothing of how far the next one may lie.
    """
    from scipy.stats import t

    count = len(deviations)
    spread = float(np.sqrt(np.square(deviations).sum() / max(count - 1, 1) / max(count, 1)))
    if count < 2 or (count < FEWEST_JUDGED and spread <= 1e-9 * abs(point)):
        return math.nan, math.nan
    half = float(t.ppf(TAILS[1], count - 1)) * spread
    return float(point) - half, float(point) + half
