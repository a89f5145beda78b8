"""A reward learned from votes: Bradley-Terry with ties on the features that other rewards give.

Rao-Kupper's ties: with m = utility(first) - utility(second) and a >= 0,
    P(first) = sigmoid(m - a)   P(second) = sigmoid(-m - a)   P(tie) = 1 - P(first) - P(second)
Chosen over Davidson's since it is what raters do, Same where a difference stays below what they notice (a
logistic threshold model), and because the flow-DPO loss has the same ties, so that one theta = exp(a) serves
both. Rao and Kupper 1967.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rewards.base import Reward
from rewards.options import nearest, one_line
from rewards.types import Clip, Score, split_part

FORMAT = "nava preference 1"
_VECTORS = ("mean", "scale", "weights", "weight_errors")


@dataclass(frozen=True)
class Fit:
    """Cross-validated (over groups) fit to held-out votes; natural logarithms, per vote.

    `accuracy`: of the side preferred, among `decided` votes; chance is 0.5. `chance_log_likelihood`: always
    the shares of the answers. `single`: feature -> (log-likelihood, accuracy) of a model with this feature
    alone.
    """

    votes: int
    decided: int
    log_likelihood: float
    chance_log_likelihood: float
    accuracy: float
    single: Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class PreferenceModel:
    """Utility of a clip: sum of weight * (feature - mean) / scale. One unit is one logit of preference.

    `features`: rewards' names, or `reward.part`. Errors are standard errors (of the penalised likelihood's
    exact Hessian), NaN for what was fixed. `tie` is a = ln theta; `side` is added to m where the first clip
    was left. Raises ValueError for lengths that disagree, a scale that is not positive, a negative tie and a
    number that is not finite.
    """

    features: tuple[str, ...]
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    weights: tuple[float, ...]
    weight_errors: tuple[float, ...]
    tie: float
    tie_error: float
    side: float
    side_error: float
    num_votes: int
    skipped: int  # votes with a feature missing
    simulated: bool  # from votes no person gave
    held_out: Fit | None = None

    def __post_init__(self) -> None:
        if len(set(self.features)) != len(self.features) or not self.features:
            raise ValueError(f"preference model: expected distinct features, got {list(self.features)}")
        for name in _VECTORS:
            if len(getattr(self, name)) != len(self.features):
                raise ValueError(
                    f"preference model: {len(getattr(self, name))} of {name} for {len(self.features)} "
                    "features"
                )
        if not np.isfinite([*self.mean, *self.scale, *self.weights, self.tie, self.side]).all():
            raise ValueError("preference model: a number is not finite; fit it again")
        if min(self.scale) <= 0 or self.tie < 0:
            raise ValueError(
                "preference model: scales must be positive and the tie parameter at least 0; fit it again"
            )

    @property
    def theta(self) -> float:
        """Rao-Kupper's tie parameter; 1 = never a tie.

        Two equal clips tie with probability (theta - 1) / (theta + 1).
        """
        return math.exp(self.tie)

    def terms(self, values: np.ndarray) -> np.ndarray:
        """Contribution of each feature to the utility, [N, F] -> [N, F]; NaN where the feature is NaN."""
        values = np.asarray(values, np.float64)
        if values.ndim != 2 or values.shape[1] != len(self.features):
            raise ValueError(
                f"preference model: expected features [N, {len(self.features)}], got {list(values.shape)}"
            )
        return (values - self.mean) / self.scale * self.weights

    def utility(self, values: np.ndarray) -> np.ndarray:
        """[N, F] -> [N]; NaN where a feature is."""
        return self.terms(values).sum(axis=1)

    def probabilities(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """[N, F] each -> [N, 3]: the first is preferred, neither, the second; without side effect."""
        return np.exp(log_probabilities(self.utility(first) - self.utility(second), self.tie))

    def scores(self, found: Mapping[str, Sequence[Score]]) -> list[Score]:
        """Utilities from each reward's scores of the same clips; parts are the features' contributions.

        NaN, with the reasons, where a feature is missing. Raises ValueError for a reward that is not there.
        """
        columns = [_column(feature, found) for feature in self.features]
        if len({len(column) for column in columns}) > 1:
            raise ValueError(
                f"preference model: unlike numbers of scores, {[len(column) for column in columns]}"
            )
        terms = self.terms(
            np.array([[score.value for score in row] for row in zip(*columns, strict=True)]).reshape(
                -1, len(columns)
            )
        )
        return [self._score(row, term) for row, term in zip(zip(*columns, strict=True), terms, strict=True)]

    def _score(self, row: Sequence[Score], terms: np.ndarray) -> Score:
        missing = [
            f"{name}: {score.reason or 'NaN'}"
            for name, score in zip(self.features, row, strict=True)
            if score.reason or not math.isfinite(score.value)
        ]
        if missing:
            return Score(math.nan, "; ".join(missing))
        return Score(float(terms.sum()), parts=dict(zip(self.features, map(float, terms), strict=True)))

    def save(self, path: Path) -> None:
        """Write the model as JSON, atomically."""
        content = {"format": FORMAT, **_without_nan(dataclasses.asdict(self))}
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path) -> PreferenceModel:
        """What `save` wrote. Raises FileNotFoundError, or ValueError naming the file, for anything else."""
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file; fit a preference model from votes first")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
                raise ValueError(f"not a preference model ({FORMAT!r})")
            if not isinstance(content["simulated"], bool):
                raise ValueError(f"simulated: expected true or false, got {content['simulated']!r}")
            held_out = _fit_from(content.pop("held_out"))
            vectors = {name: tuple(map(_number, content.pop(name))) for name in _VECTORS}
            errors = {name: _number(content.pop(name)) for name in ("tie_error", "side_error")}
            return cls(
                features=tuple(content.pop("features")), **vectors, **errors, **content, held_out=held_out
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}: {one_line(error)}; fit it again") from None


class PreferenceReward:
    """Utility of a clip by a learned model, for a rubric: weighs the given rewards as the votes did.

    Called `preference`, or `preference_simulated` where no person voted. Score.parts: what each feature adds;
    they sum to the value. NaN with the reasons where a needed feature is. Raises ValueError for a reward that
    the model needs and that is not given.
    """

    def __init__(self, rewards: Sequence[Reward], model: PreferenceModel) -> None:
        self.name = "preference_simulated" if model.simulated else "preference"
        self.model = model
        given = {reward.name: reward for reward in rewards}
        self._rewards = {}
        for feature in model.features:
            name, _ = split_part(feature, given)
            if name not in given:
                raise ValueError(f"{self.name}: needs {name!r}; {nearest(name, given)}")
            self._rewards[name] = given[name]

    def score(self, clips: Sequence[Clip]) -> list[Score]:
        found = {name: reward.score(clips) for name, reward in self._rewards.items()}
        seconds = [sum(score.seconds for score in row) for row in zip(*found.values(), strict=True)]
        return [
            dataclasses.replace(score, seconds=spent)
            for score, spent in zip(self.model.scores(found), seconds, strict=True)
        ]


def log_probabilities(m: np.ndarray, tie: float) -> np.ndarray:
    """[N] -> [N, 3]: ln of first, tie (-inf at tie 0), second; finite for any finite m and tie > 0."""
    first, second = _log_sigmoid(m - tie), _log_sigmoid(-m - tie)
    middle = 2 * tie + math.log(-math.expm1(-2 * tie)) if tie > 0 else -math.inf
    return np.stack([first, first + second + middle, second], axis=1)


def _log_sigmoid(x: np.ndarray) -> np.ndarray:
    return -np.logaddexp(0.0, -x)


def _column(feature: str, found: Mapping[str, Sequence[Score]]) -> list[Score]:
    name, part = split_part(feature, found)
    if name not in found:
        raise ValueError(f"preference model: {name!r} was not scored; {nearest(name, found)}")
    return [score.part(part) for score in found[name]]


def _fit_from(content: dict[str, Any] | None) -> Fit | None:
    if content is None:
        return None
    single = {name: (_number(pair[0]), _number(pair[1])) for name, pair in content["single"].items()}
    votes, decided = int(content["votes"]), int(content["decided"])
    logs = _number(content["log_likelihood"]), _number(content["chance_log_likelihood"])
    return Fit(votes, decided, *logs, _number(content["accuracy"]), single)


def _without_nan(value: Any) -> Any:
    """JSON has no NaN: null."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _number(value: Any) -> float:
    if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
        raise ValueError(f"expected a number, got {value!r}")
    return math.nan if value is None else float(value)
