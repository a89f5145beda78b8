"""Bradley-Terry-Davidson strengths from votes with ties, with a side effect (metrics.md 9.3).

With d = strength(left) - strength(right) + side, the logits of (left wins, tie, right wins) are (d/2, log
tie, -d/2): a multinomial logit, whose log-likelihood is concave. Davidson 1970 (ties), Davidson and Beaver
1977 (order effect).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from finetune.gsb.votes import Vote

PSEUDO_WINS = 0.5
# (left model, right model) -> (left wins, ties, right wins)
Outcomes = Mapping[tuple[str, str], Sequence[float]]


@dataclass(frozen=True)
class Davidson:
    """The fitted model. Strengths are log pi, ours = 0, higher is better; errors from the exact Hessian.

    `tie` is nu itself (not its logarithm): 0 where no vote is a tie, 1 where equal clips tie in a third of
    the votes. `side` is the g added to the left clip's strength, 0 where not estimable (`side_fixed`).
    Errors are NaN for what is fixed.
    """

    strength: dict[str, float]
    tie: float
    side: float
    log_likelihood: float  # natural, of the votes themselves
    strength_error: dict[str, float]
    tie_error: float
    side_error: float
    num_votes: int
    side_fixed: bool
    pseudo_wins: tuple[tuple[str, str], ...] = field(default=())  # pairs that got 0.5 wins each way

    def as_json(self) -> dict[str, Any]:
        """strength, tie, side, log_likelihood and `standard_error` of the first three; NaN is null."""
        errors = {
            "strength": self.strength_error,
            "tie": _finite(self.tie_error),
            "side": _finite(self.side_error),
        }
        return {
            "strength": self.strength,
            "tie": self.tie,
            "side": self.side,
            "log_likelihood": self.log_likelihood,
            "standard_error": errors,
            "votes": self.num_votes,
            "side_fixed": self.side_fixed,
            "pseudo_wins": [list(pair) for pair in self.pseudo_wins],
        }


def count_outcomes(votes: Iterable[Vote]) -> dict[tuple[str, str], list[float]]:
    """How often left won, nobody, right won, for each (left model, right model)."""
    outcomes: dict[tuple[str, str], list[float]] = {}
    for vote in votes:
        outcomes.setdefault((vote.left_model, vote.right_model), [0.0, 0.0, 0.0])[
            ("left", "tie", "right").index(vote.choice)
        ] += 1
    return outcomes


def fit_davidson(outcomes: Outcomes, ours: str, side: bool = True) -> Davidson:
    """Maximum likelihood, all votes taken as independent; `side=False` fits no side effect.

    A pair in which one model never won gets 0.5 pseudo-wins each way, half of them on each side; so do all
    pairs where the likelihood would still have no finite maximum. The side effect is fixed at 0 where models
    never changed sides. Raises ValueError for no decided vote, or models that no chain of votes connects with
    ours.
    """
    counts = {key: np.asarray(value, dtype=np.float64) for key, value in outcomes.items() if sum(value) > 0}
    models = _connected(counts, ours)
    if not any(count[0] + count[2] for count in counts.values()):
        raise ValueError(
            "every vote is a tie: strengths are unknown and the tie parameter has no finite value"
        )
    fit_side = side and _side_is_told(counts, models)
    fit_tie = any(count[1] for count in counts.values())
    data, pseudo = _with_pseudo_wins(counts, models, fit_tie, fit_side)
    likelihood = _Likelihood(data, models, fit_tie, fit_side)
    point = likelihood.maximise()
    errors = np.sqrt(np.diag(np.linalg.inv(likelihood.hessian(point))))
    last = len(models) - 1
    nu = math.exp(point[last]) if fit_tie else 0.0
    return Davidson(
        strength={ours: 0.0, **dict(zip(models[1:], map(float, point), strict=False))},
        tie=nu,
        side=float(point[-1]) if fit_side else 0.0,
        log_likelihood=-_Likelihood(counts, models, fit_tie, fit_side).value(point),
        strength_error={ours: 0.0, **dict(zip(models[1:], map(float, errors), strict=False))},
        tie_error=nu * float(errors[last]) if fit_tie else math.nan,
        side_error=float(errors[-1]) if fit_side else math.nan,
        num_votes=int(sum(count.sum() for count in counts.values())),
        side_fixed=not fit_side,
        pseudo_wins=pseudo,
    )


class _Likelihood:
    """Negative log-likelihood; parameters: strengths but ours, then log nu, then side, where fitted."""

    def __init__(
        self,
        counts: Mapping[tuple[str, str], np.ndarray],
        models: Sequence[str],
        fit_tie: bool,
        fit_side: bool,
    ):
        self.counts = np.stack(list(counts.values()))  # [R, 3]
        self.design = np.zeros((len(counts), 3, len(models) - 1 + fit_tie + fit_side))  # [R, 3, P]
        half = np.array([0.5, 0.0, -0.5])
        for row, (left, right) in enumerate(counts):
            for model, sign in ((left, 1.0), (right, -1.0)):
                if place := models.index(model):
                    self.design[row, :, place - 1] = sign * half
        if fit_tie:
            self.design[:, 1, len(models) - 1] = 1.0
        if fit_side:
            self.design[:, :, -1] = half
        self.offset = np.array([0.0, 0.0 if fit_tie else -np.inf, 0.0])

    def _probabilities(self, point: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        logits = self.design @ point + self.offset
        logits = logits - logits.max(axis=1, keepdims=True)
        log = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        return np.exp(log), log

    def value(self, point: np.ndarray) -> float:
        _, log = self._probabilities(point)
        seen = self.counts > 0
        return -float((self.counts[seen] * log[seen]).sum())

    def gradient(self, point: np.ndarray) -> np.ndarray:
        share, _ = self._probabilities(point)
        expected = share * self.counts.sum(axis=1, keepdims=True)
        return np.einsum("rk,rkp->p", expected - self.counts, self.design)

    def hessian(self, point: np.ndarray) -> np.ndarray:
        share, _ = self._probabilities(point)
        total = self.counts.sum(axis=1)
        mean = np.einsum("rk,rkp->rp", share, self.design)
        second = np.einsum("r,rk,rkp,rkq->pq", total, share, self.design, self.design)
        return second - np.einsum("r,rp,rq->pq", total, mean, mean)

    def maximise(self) -> np.ndarray:
        from scipy.optimize import minimize

        n = self.counts.sum()
        found = minimize(
            lambda point: self.value(point) / n,
            np.zeros(self.design.shape[2]),
            jac=lambda point: self.gradient(point) / n,
            hess=lambda point: self.hessian(point) / n,
            method="trust-exact",
            options={"gtol": 1e-6},
        ).x
        for _ in range(2):  # from there Newton's step doubles the digits
            found = found - np.linalg.solve(self.hessian(found), self.gradient(found))
        if not np.abs(self.gradient(found)).max() < 1e-6 * n:
            raise ValueError("the strengths did not converge; too few votes for this many models?")
        return found

    def has_finite_maximum(self) -> bool:
        """Whether the likelihood has a maximum: no direction favours only the observed outcomes."""
        from scipy.optimize import linprog

        possible = [choice for choice in range(3) if np.isfinite(self.offset[choice])]
        gains = [
            self.design[row, seen] - self.design[row, other]
            for row, seen in zip(*np.nonzero(self.counts), strict=True)
            for other in possible
            if other != seen
        ]
        matrix = np.stack(gains)
        found = linprog(-matrix.sum(axis=0), A_ub=-matrix, b_ub=np.zeros(len(matrix)), bounds=(-1, 1))
        return -found.fun < 1e-9


def _connected(counts: Mapping[tuple[str, str], np.ndarray], ours: str) -> list[str]:
    """Ours, then all others by name."""
    others = sorted({model for pair in counts for model in pair} - {ours})
    if not others or not any(ours in pair for pair in counts):
        raise ValueError(f"no vote compares {ours!r} with another model")
    reached = {ours}
    while grown := {model for pair in counts if reached & {*pair} for model in pair} - reached:
        reached |= grown
    if unconnected := [model for model in others if model not in reached]:
        raise ValueError(
            f"no chain of votes connects {', '.join(unconnected)} with {ours}; collect votes between them or "
            "leave them out"
        )
    return [ours, *others]


def _side_is_told(counts: Mapping[tuple[str, str], np.ndarray], models: Sequence[str]) -> bool:
    """Whether the constant is no mere sum of strength differences, as it is where ours is always left."""
    place = {model: index for index, model in enumerate(models)}
    rows = np.zeros((len(counts), len(models)))
    for row, (left, right) in enumerate(counts):
        rows[row, place[left]], rows[row, place[right]] = 1.0, -1.0
    return bool(
        np.linalg.matrix_rank(np.hstack([rows, np.ones((len(rows), 1))])) > np.linalg.matrix_rank(rows)
    )


def _with_pseudo_wins(
    counts: Mapping[tuple[str, str], np.ndarray], models: Sequence[str], fit_tie: bool, fit_side: bool
) -> tuple[dict[tuple[str, str], np.ndarray], tuple[tuple[str, str], ...]]:
    pairs = sorted({(min(pair), max(pair)) for pair in counts})
    zero = np.zeros(3)

    def wins(winner: str, loser: str) -> float:
        return counts.get((winner, loser), zero)[0] + counts.get((loser, winner), zero)[2]

    def added(chosen: Sequence[tuple[str, str]]) -> dict[tuple[str, str], np.ndarray]:
        ordered = {order for a, b in chosen for order in ((a, b), (b, a))}
        extra = np.array([PSEUDO_WINS / 2, 0.0, PSEUDO_WINS / 2])
        return {
            key: counts.get(key, zero) + (extra if key in ordered else 0.0)
            for key in sorted({*counts, *ordered})
        }

    chosen = [(a, b) for a, b in pairs if not wins(a, b) or not wins(b, a)]
    if not _Likelihood(added(chosen), models, fit_tie, fit_side).has_finite_maximum():
        chosen = pairs
    return added(chosen), tuple(chosen)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
