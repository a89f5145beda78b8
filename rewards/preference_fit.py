"""Fit a preference model to votes: penalised maximum likelihood (concave), L-BFGS, exact gradient."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from rewards.preference import Fit, PreferenceModel, log_probabilities

MIN_TIE = 1e-6  # ties that were seen have a probability


@dataclass(frozen=True, kw_only=True)
class PreferenceConfig:
    """Penalties and cross-validation. Raises ValueError for impossible numbers."""

    # l2 / 2 * weight^2, once for all votes: a prior of standard deviation 1 / sqrt(l2) logits per sd of a
    # feature
    l2: float = 1.0
    rater_side_sd: float = 0.5  # logits by which the raters' pulls to the left differ, where raters are given
    folds: int = 5
    seed: int = 0  # of the folds

    def __post_init__(self) -> None:
        if not (
            math.isfinite(self.l2)
            and self.l2 > 0
            and math.isfinite(self.rater_side_sd)
            and self.rater_side_sd > 0
        ):
            raise ValueError(
                f"preference: l2 and rater_side_sd must be positive, got {self.l2} and {self.rater_side_sd}"
            )
        if self.folds < 2:
            raise ValueError(f"preference: at least 2 folds, got {self.folds}")


@dataclass(frozen=True)
class PairVotes:
    """N votes on pairs of clips. Raises ValueError where rows do not agree or a label is unknown."""

    # [N, F] features of the first clip; NaN = could not be scored, the vote is then left out
    first: np.ndarray
    second: np.ndarray  # [N, F]
    labels: np.ndarray  # [N] +1 the first was preferred, -1 the second, 0 a tie
    sides: np.ndarray | None = None  # [N] +1 the first clip was left, -1 right, 0 not known
    raters: Sequence[Hashable] | None = None  # [N]; each then has a side bias of their own
    # [N] e.g. prompts; a group is never on both sides of the cross-validation
    groups: Sequence[Hashable] | None = None

    def __post_init__(self) -> None:
        count = len(self.labels)
        if self.first.ndim != 2 or self.first.shape != self.second.shape or len(self.first) != count:
            raise ValueError(
                f"preference: first and second must be [{count}, F] for {count} labels, got "
                f"{list(self.first.shape)} "
                f"and {list(self.second.shape)}"
            )
        for name in ("sides", "raters", "groups"):
            if (given := getattr(self, name)) is not None and len(given) != count:
                raise ValueError(f"preference: {len(given)} {name} for {count} labels")
        for name in ("labels", "sides"):
            if (given := getattr(self, name)) is not None and not np.isin(given, (1, 0, -1)).all():
                raise ValueError(f"preference: {name} must be 1, 0 or -1")
        if self.raters is not None and self.sides is None:
            raise ValueError("preference: raters are only asked for their side bias; give the sides too")

    def rows(self, kept: np.ndarray) -> PairVotes:
        """The votes at these indices."""

        def cut(given: Sequence[Hashable] | None) -> list[Hashable] | None:
            return None if given is None else [given[index] for index in kept]

        sides = None if self.sides is None else self.sides[kept]
        return PairVotes(
            self.first[kept], self.second[kept], self.labels[kept], sides, cut(self.raters), cut(self.groups)
        )


class _Solution(NamedTuple):
    weights: np.ndarray  # [F]
    side: float
    tie: float
    errors: np.ndarray  # [F + 2] of weights, side, tie; NaN for what is fixed


def fit_preference(
    features: Sequence[str], votes: PairVotes, config: PreferenceConfig, *, simulated: bool
) -> PreferenceModel:
    """Weights of standardised features, tie parameter and side bias, with errors and held-out figures.

    A feature that is the same in all clips has weight 0. The weights cannot diverge on separable votes: they
    are penalised. `held_out` is None for fewer groups than folds. Raises ValueError in one line where nothing
    can be learned: no complete row, every vote a tie, no feature that differs.
    """
    if votes.first.shape[1] != len(features):
        raise ValueError(f"preference: {votes.first.shape[1]} columns for {len(features)} features")
    complete = np.flatnonzero(np.isfinite(votes.first).all(axis=1) & np.isfinite(votes.second).all(axis=1))
    if not len(complete):
        raise ValueError(
            f"preference: none of {len(votes.labels)} votes has all of {', '.join(features)} for both clips"
        )
    used = votes.rows(complete)
    if not used.labels.any():
        raise ValueError(f"preference: all {len(complete)} votes are ties; there is no preference to learn")
    both = np.concatenate([used.first, used.second])
    mean, scale = both.mean(axis=0), _scales(both)
    if not (np.abs(used.first - used.second) > 0).any():
        raise ValueError("preference: no feature differs within any pair; there is nothing to learn from")
    solution = _solve((used.first - used.second) / scale, used, config)
    return PreferenceModel(
        features=tuple(features),
        mean=tuple(mean.tolist()),
        scale=tuple(scale.tolist()),
        weights=tuple(solution.weights.tolist()),
        weight_errors=tuple(solution.errors[:-2].tolist()),
        tie=solution.tie,
        tie_error=float(solution.errors[-1]),
        side=solution.side,
        side_error=float(solution.errors[-2]),
        num_votes=len(complete),
        skipped=len(votes.labels) - len(complete),
        simulated=simulated,
        held_out=_cross_validated(features, used, config),
    )


def _scales(values: np.ndarray) -> np.ndarray:
    """Standard deviations; 1 where there is none but rounding."""
    spread = values.std(axis=0)
    return np.where(spread > 1e-9 * np.abs(values).max(axis=0), spread, 1.0)


def _design(
    difference: np.ndarray, votes: PairVotes, config: PreferenceConfig
) -> tuple[np.ndarray, np.ndarray]:
    """[N, F + 1 + raters] and the penalty of each column: weights, side bias of all, each rater's own."""
    columns, penalties = [difference], [np.full(difference.shape[1], config.l2)]
    if votes.sides is not None:
        columns.append(votes.sides[:, None].astype(np.float64))
        penalties.append(np.array([1e-6 if votes.sides.any() else 1.0]))  # as good as free
        if votes.raters is not None:
            places = {rater: index for index, rater in enumerate(dict.fromkeys(votes.raters))}
            own = np.zeros((len(votes.labels), len(places)))
            own[np.arange(len(own)), [places[rater] for rater in votes.raters]] = votes.sides
            columns.append(own)
            penalties.append(np.full(len(places), 1 / config.rater_side_sd**2))
    return np.concatenate(columns, axis=1), np.concatenate(penalties)


def _solve(difference: np.ndarray, votes: PairVotes, config: PreferenceConfig) -> _Solution:
    """Maximum of the penalised likelihood; a tie parameter without ties is fixed at 0."""
    from scipy.optimize import minimize

    design, penalties = _design(difference, votes, config)
    ties = bool((votes.labels == 0).any())
    width, count = design.shape[1], len(votes.labels)

    def objective(point: np.ndarray) -> tuple[float, np.ndarray]:
        beta, tie = point[:width], float(point[width]) if ties else 0.0
        value, slope_m, slope_tie, _ = _likelihood(design @ beta, tie, votes.labels)
        gradient = np.append(slope_m @ design - penalties * beta, slope_tie.sum())
        return -(value - (penalties * beta**2).sum() / 2) / count, -gradient[: len(point)] / count

    start = np.append(np.zeros(width), [0.5] if ties else [])
    bounds = [(None, None)] * width + ([(MIN_TIE, None)] if ties else [])
    options = {"maxiter": 2000, "ftol": 1e-15, "gtol": 1e-9, "maxcor": 20}
    found = minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options).x
    beta, tie = found[:width], float(found[width]) if ties else 0.0
    _, _, _, curvature = _likelihood(design @ beta, tie, votes.labels)
    hessian = np.zeros((width + 1, width + 1))
    hessian[:width, :width] = (design * curvature[0][:, None]).T @ design + np.diag(penalties)
    hessian[:width, width] = hessian[width, :width] = curvature[1] @ design if ties else 0.0
    hessian[width, width] = curvature[2].sum() if ties else 1.0
    errors = np.sqrt(np.diag(np.linalg.inv(hessian)))
    num_features, sided = difference.shape[1], votes.sides is not None and bool(votes.sides.any())
    side = float(beta[num_features]) if sided else 0.0
    standard_errors = [
        *errors[:num_features],
        errors[num_features] if sided else math.nan,
        errors[width] if ties else math.nan,
    ]
    return _Solution(beta[:num_features], side, tie, np.array(standard_errors))


def _likelihood(
    m: np.ndarray, tie: float, labels: np.ndarray
) -> tuple[float, np.ndarray, np.ndarray, tuple[np.ndarray, ...]]:
    """Log-likelihood, gradient by m and tie [N], and negated second derivatives (mm, m tie, tie tie) [N].

    Ties are as if both inequalities had been seen: ln P(tie) = ln s(m - a) + ln s(-m - a) + ln(e^2a - 1).
    """
    won, lost = (labels >= 0).astype(float), (labels <= 0).astype(float)
    p, q = _sigmoid(m - tie), _sigmoid(-m - tie)
    tied = labels == 0
    value = float(log_probabilities(m, tie)[np.arange(len(m)), 1 - labels.astype(int)].sum())
    growth = 2.0 / -math.expm1(-2 * tie) if tie > 0 else 0.0  # of ln(e^2a - 1)
    slope_m = won * (1 - p) - lost * (1 - q)
    slope_tie = tied * growth - won * (1 - p) - lost * (1 - q)
    steep_p, steep_q = won * p * (1 - p), lost * q * (1 - q)
    bend = growth * (growth - 2.0)  # minus its second derivative
    return value, slope_m, slope_tie, (steep_p + steep_q, steep_q - steep_p, steep_p + steep_q + tied * bend)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0.0, -x))


def _cross_validated(features: Sequence[str], votes: PairVotes, config: PreferenceConfig) -> Fit | None:
    """Predict every vote once, by models fitted to the other folds' groups; None with too few groups."""
    groups = votes.groups if votes.groups is not None else range(len(votes.labels))
    places = {group: index for index, group in enumerate(dict.fromkeys(groups))}
    if len(places) < config.folds:
        return None
    fold_of = np.random.default_rng(config.seed).permutation(len(places)) % config.folds
    folds = fold_of[[places[group] for group in groups]]
    columns = [slice(None), *(slice(index, index + 1) for index in range(len(features)))]
    logs, chance = np.zeros((len(columns), len(folds))), np.zeros(len(folds))
    ahead = np.zeros_like(logs)
    for fold in range(config.folds):
        test, train = np.flatnonzero(folds == fold), votes.rows(np.flatnonzero(folds != fold))
        if not train.labels.any():
            return None
        seen = votes.labels[test].astype(int)
        share = (np.bincount(np.abs(train.labels.astype(int)), minlength=2) + 0.5) / (len(train.labels) + 1.0)
        chance[test] = np.log(np.where(seen == 0, share[0], share[1] / 2))
        scale = _scales(np.concatenate([train.first, train.second]))
        difference, unseen = (
            (train.first - train.second) / scale,
            (votes.first[test] - votes.second[test]) / scale,
        )
        for place, column in enumerate(columns):
            solution = _solve(difference[:, column], train, config)
            side = 0.0 if votes.sides is None else solution.side * votes.sides[test]
            m = unseen[:, column] @ solution.weights + side
            tie = max(solution.tie, MIN_TIE) if (seen == 0).any() else solution.tie
            logs[place, test] = log_probabilities(m, tie)[np.arange(len(test)), 1 - seen]
            ahead[place, test] = np.where(m * seen > 0, 1.0, np.where(m == 0, 0.5, 0.0))
    decided = votes.labels != 0
    means, hits = logs.mean(axis=1), ahead[:, decided].mean(axis=1)
    single = {name: (float(means[index]), float(hits[index])) for index, name in enumerate(features, start=1)}
    return Fit(len(folds), int(decided.sum()), float(means[0]), float(chance.mean()), float(hits[0]), single)
