"""Rate of Same where neither clip is better, from votes on pairs that differ by unknown margins.

Votes follow Rao and Kupper (1967), as the loss of gsb_dpo does: with a = ln theta and a pair's margin m,

    P(first) = sigmoid(m - a),  P(second) = sigmoid(-m - a),  P(Same) = (theta^2 - 1) P(first) P(second)

Margins are normal around 0 over the pairs, with deviation s. The marginal rate of Same falls with s, so it
is too small for theta: the rate at margin 0 is (theta - 1) / (theta + 1). s shows in how the raters of one
pair agree; where each pair has one vote, any s explains them and the prior on s decides for 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

PRIOR_SPREAD = 3.0  # s is half-normal with this deviation: without it, raters who all agree have no finite s
LARGEST_SPREAD = 10.0
LARGEST_THRESHOLD = 20.0  # a
LARGEST_RATE = 0.95  # of a label: beyond it theta would make the loss of a decided pair a straight line
# the trapezoid rule converges exponentially for smooth densities: 0.47 at the largest s, 2e-9 or better
NODES = np.linspace(-7, 7, 301)  # margins in units of s


class TieFit(NamedTuple):
    """theta >= 1 of Rao and Kupper, and the deviation s >= 0 of the margins."""

    theta: float
    spread: float

    @property
    def rate(self) -> float:
        """Probability that one rater says Same at margin 0."""
        return (self.theta - 1) / (self.theta + 1)


def outcome_logs(margin: np.ndarray, theta: float) -> np.ndarray:
    """ln of (first, Same, second) at each margin [...] -> [..., 3]; Same is -inf at theta 1."""
    a = math.log(theta)
    first, second = -np.logaddexp(0, a - margin), -np.logaddexp(0, a + margin)
    with np.errstate(divide="ignore"):
        factor = np.log((theta - 1) * (theta + 1))
    return np.stack([first, first + second + factor, second], axis=-1)


def marginal_rate(theta: float, spread: float) -> float:
    """Probability that one rater says Same, over margins of this deviation."""
    return float(np.exp(outcome_logs(NODES * spread, theta)[:, 1]) @ _weights())


def fit_ties(counts: Sequence[Sequence[int]] | np.ndarray) -> TieFit:
    """Fit to the votes of each pair [N, 3] (first, Same, second); the most likely s under its prior.

    Raises ValueError without a decided vote.
    """
    from scipy.optimize import minimize_scalar

    rows, times = np.unique(np.asarray(counts, dtype=np.int64), axis=0, return_counts=True)
    if not rows[:, [0, 2]].any():
        raise ValueError("no decided vote; votes that are all Same teach nothing")
    if not rows[:, 1].any():
        return TieFit(1.0, 0.0)
    thresholds: dict[float, float] = {}

    def cost(spread: float) -> float:
        found: Any = minimize_scalar(
            lambda a: _cost(rows, times, math.exp(a), spread), bounds=(0, LARGEST_THRESHOLD), method="bounded"
        )
        thresholds[spread] = float(found.x)
        return float(found.fun) + (spread / PRIOR_SPREAD) ** 2 / 2

    searched: Any = minimize_scalar(cost, bounds=(0, LARGEST_SPREAD), method="bounded")
    spread = float(searched.x)
    # the bounded search never tries its ends
    best = min((spread, 0.0), key=cost)
    return TieFit(math.exp(thresholds[best]), best)


def label_rate(rate: float, raters: int) -> float:
    """Probability that the label of a pair is Same where neither clip is better.

    rate: that of one rater at margin 0. The label is the most frequent of (first, Same, second) among
    `raters` independent votes, a draw is Same (finetune.gsb.pairs.majority); by enumeration of the counts.
    """
    decided = (1 - rate) / 2
    total = 0.0
    for first in range(raters + 1):
        for second in range(raters - first + 1):
            same = raters - first - second
            if first > max(same, second) or second > max(first, same):
                continue
            ways = math.comb(raters, first) * math.comb(raters - first, second)
            total += ways * decided ** (first + second) * rate**same
    return total


def label_rate_at_zero(counts: Sequence[Sequence[int]] | np.ndarray) -> float:
    """Probability of a label Same at margin 0, of pairs with these votes [N, 3]; the mean over their raters.

    At most LARGEST_RATE. Raises ValueError without a decided vote.
    """
    rate = fit_ties(counts).rate
    raters, pairs = np.unique(np.asarray(counts).sum(axis=1), return_counts=True)
    found = [label_rate(rate, int(number)) for number in raters]
    return min(float(np.average(found, weights=pairs)), LARGEST_RATE)


def _weights() -> np.ndarray:
    density = np.exp(-(NODES**2) / 2)
    return density / density.sum()


def _cost(rows: np.ndarray, times: np.ndarray, theta: float, spread: float) -> float:
    """Negative log-likelihood of distinct rows [U, 3] that occur so often [U]."""
    logs = outcome_logs(NODES * spread, theta)  # [M, 3]
    seen = np.where(rows[:, None] > 0, rows[:, None] * logs[None], 0.0).sum(-1)  # [U, M]
    top = seen.max(axis=1)
    return -float(times @ (top + np.log(np.exp(seen - top[:, None]) @ _weights())))
