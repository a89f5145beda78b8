"""Simulated raters for the demo: tastes, noise, ties and side bias over what the JUDGES measured.

A rater's preference is the weighted mean of judge differences (in noticeable units) plus the rater's side
bias and noise; below the rater's tie width it is Same. Judges must not be in the rubric (`check_apart`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from finetune.gsb.pairs import ClipRef
from finetune.gsb.votes import AXES
from pretrain.config import nearest
from pretrain.randomness import stable_hash

# (model, clip id) -> judge -> value, NaN = could not be scored
JudgeScores = Mapping[tuple[str, str], Mapping[str, float]]
VoteRow = dict[str, Any]
SPOILT = " spoilt"  # ends the name of an attention check's copy


@dataclass(frozen=True)
class JudgeFeature:
    """One judge metric as raters use it. `unit`: difference that counts as one, negative where lower is
    better; `weight`: mean over raters; `axis`: the question it informs besides overall. Raises ValueError."""

    name: str
    axis: str
    unit: float
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.axis not in AXES:
            raise ValueError(
                f"panel.features.{self.name}.axis: unknown {self.axis!r}; {nearest(self.axis, AXES)}"
            )
        if not (math.isfinite(self.unit) and self.unit and math.isfinite(self.weight) and self.weight > 0):
            raise ValueError(
                f"panel.features.{self.name}: unit must not be 0 and weight positive, got {self.unit} and "
                f"{self.weight}"
            )


# units: about one standard deviation over clips of the pretrained mini
JUDGES = (
    JudgeFeature("sync_judge", "sync", 0.15),
    JudgeFeature("intelligibility_pocketsphinx_judge", "voice", 0.25),
    JudgeFeature("picture_noise_judge", "picture", -0.3, 0.5),
)


@dataclass(frozen=True, kw_only=True)
class SimulatedRatersConfig:
    """Simulated raters; differences in judge units. Raises ValueError for impossible numbers."""

    seed: int = 0
    raters: int = 12
    votes_per_pair: int = 3  # raters per pair
    axes: tuple[str, ...] = AXES  # questions of each showing
    features: tuple[JudgeFeature, ...] = JUDGES
    taste_spread: float = 0.5  # log-normal, of the raters' weights
    manner_spread: float = 0.3  # log-normal, of their noise and tie width
    noise: float = 0.6  # standard deviation, drawn per vote
    tie_width: float = 0.3  # a smaller difference is Same
    side_bias: float = 0.1  # pull to the left: mean over raters, and their spread
    lapses: float = 0.02  # share of random votes
    repeat_share: float = 0.05  # of showings, shown again with sides swapped
    attention_share: float = 0.05  # of showings, as many checks with a spoilt copy
    spoilt_gap: float = 3.0  # how much worse a spoilt copy looks
    # gap of a clip that a judge could not score (silent, black) against one that it could
    unscorable_gap: float = 3.0

    def __post_init__(self) -> None:
        if not 1 <= self.votes_per_pair <= self.raters:
            raise ValueError(
                f"panel.votes_per_pair: expected 1 to {self.raters} (panel.raters), got {self.votes_per_pair}"
            )
        for name in (
            "taste_spread",
            "manner_spread",
            "noise",
            "tie_width",
            "side_bias",
            "spoilt_gap",
            "unscorable_gap",
        ):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ValueError(f"panel.{name}: expected a number from 0, got {getattr(self, name)}")
        for name in ("lapses", "repeat_share", "attention_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"panel.{name}: expected a share in [0, 1], got {getattr(self, name)}")
        names = [feature.name for feature in self.features]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"panel.features: expected distinct judges, got {names}")
        for axis in self.axes:
            if axis not in AXES:
                raise ValueError(f"panel.axes: unknown {axis!r}; {nearest(axis, AXES)}")
            if not self.about(axis):
                raise ValueError(
                    f"panel.axes: no feature speaks about {axis!r}; leave the axis out or name a judge for it"
                )
        if not self.axes or len(set(self.axes)) < len(self.axes):
            raise ValueError(f"panel.axes: expected distinct axes, got {list(self.axes)}")

    def about(self, axis: str) -> list[int]:
        """Indices of the features of a question; overall uses all."""
        return [place for place, feature in enumerate(self.features) if axis in ("overall", feature.axis)]


@dataclass(frozen=True)
class Rater:
    """One simulated rater: positive feature weights and draws of `noise`, `tie_width`, `side_bias`."""

    user_id: str
    weights: tuple[float, ...]
    noise: float
    tie_width: float
    side_bias: float


@dataclass(frozen=True)
class ClipPair:
    """Two clips of one case, under two models' names. Raises ValueError where they are not."""

    first: ClipRef
    second: ClipRef

    def __post_init__(self) -> None:
        if self.first.case_id != self.second.case_id or self.first.prompt != self.second.prompt:
            raise ValueError(
                f"panel: {self.first.clip_id!r} and {self.second.clip_id!r} do not answer the same case and "
                "prompt"
            )
        if self.first.model == self.second.model:
            raise ValueError(
                f"panel: {self.first.model!r} on both sides of case {self.first.case_id!r}; give its two "
                "clips two names"
            )

    @property
    def key(self) -> tuple[str, ...]:
        return (self.first.case_id, *sorted((self.first.model, self.second.model)))


@dataclass(frozen=True)
class _Showing:
    """A pair shown to a rater; `attention`: one side is the spoilt copy of the other."""

    pair: ClipPair
    rater: Rater
    first_is_left: bool
    repeat: int = 0
    attention: bool = False


def check_apart(config: SimulatedRatersConfig, weights: Mapping[str, float]) -> None:
    """Raises ValueError where a rewarded item (rubric or preference feature) is a feature of the raters."""
    watched = {feature.name.partition(".")[0] for feature in config.features}
    for name, weight in weights.items():
        if weight and name.partition(".")[0] in watched:
            raise ValueError(
                f"panel.features: {name!r} is rewarded, so the panel must not look at it; use another judge "
                "for its axis"
            )


def simulated_raters(config: SimulatedRatersConfig) -> list[Rater]:
    """The raters, from the seed alone."""
    raters = []
    for index in range(config.raters):
        rng = np.random.default_rng(stable_hash("rater", config.seed, index))
        tastes = np.exp(config.taste_spread * rng.standard_normal(len(config.features)))
        manner = np.exp(config.manner_spread * rng.standard_normal(2))
        pull = config.side_bias * (1 + rng.standard_normal())
        weights = tuple(
            float(feature.weight * taste) for feature, taste in zip(config.features, tastes, strict=True)
        )
        raters.append(
            Rater(
                f"simulated-{index:02d}",
                weights,
                config.noise * manner[0],
                config.tie_width * manner[1],
                pull,
            )
        )
    return raters


def vote(
    config: SimulatedRatersConfig, pairs: Sequence[ClipPair], scores: JudgeScores, ours: str | None = None
) -> list[VoteRow]:
    """Simulated votes in the public format (finetune.gsb.votes): first ones, repeats, attention checks.

    Raters see equally many pairs, sides are balanced for each rater and pair of models. A judge that could
    score neither clip is ignored, an axis without judges is skipped; where it could score one, the other
    loses by `unscorable_gap`. Votes depend on seed, rater, case, models, axis and repeat, not on the
    order of `pairs`. Raises ValueError for no pairs, the same pair twice, a clip or judge without an entry in
    `scores`, an infinite score.
    """
    if not pairs:
        raise ValueError("panel: no pairs to vote on")
    if doubled := [key for key, count in Counter(pair.key for pair in pairs).items() if count > 1]:
        raise ValueError(f"panel: the pair {doubled[0]} is there twice")
    values = {pair.key: _gaps(config, pair, scores) for pair in pairs}
    showings = _showings(config, pairs)
    rows: list[VoteRow] = []
    for showing in [*showings, *_repeats(config, showings)]:
        for axis in config.axes:
            gaps = values[showing.pair.key]
            if np.isfinite(gaps[config.about(axis)]).any():
                rows.append(_row(config, showing, axis, _answer(config, showing, axis, gaps), ours))
    for showing in _attention_checks(config, showings):
        axis = "sync" if "sync" in config.axes else config.axes[0]
        rows.append(
            _row(
                config,
                showing,
                axis,
                _answer(config, showing, axis, np.full(len(config.features), config.spoilt_gap)),
                ours,
            )
        )
    return rows


def _gaps(config: SimulatedRatersConfig, pair: ClipPair, scores: JudgeScores) -> np.ndarray:
    """First minus second in judge units [F]; NaN where neither could be scored."""
    values = np.array(
        [[_value(clip, feature, scores) for feature in config.features] for clip in (pair.first, pair.second)]
    )
    first, second = values / [feature.unit for feature in config.features]
    one_sided = config.unscorable_gap * (np.isnan(second).astype(float) - np.isnan(first))
    return np.where(np.isnan(first) ^ np.isnan(second), one_sided, first - second)


def _value(clip: ClipRef, feature: JudgeFeature, scores: JudgeScores) -> float:
    found = scores.get((clip.model, clip.clip_id))
    if found is None or feature.name not in found:
        what = f"no {feature.name!r} for" if found is not None else "no scores of"
        raise ValueError(
            f"panel: {what} clip {clip.clip_id!r} of {clip.model!r}; score it with every judge of "
            "panel.features"
        )
    if math.isinf(found[feature.name]):
        raise ValueError(f"panel: {feature.name!r} of clip {clip.clip_id!r} of {clip.model!r} is infinite")
    return found[feature.name]


def _showings(config: SimulatedRatersConfig, pairs: Sequence[ClipPair]) -> list[_Showing]:
    """Each pair before the raters who have seen fewest, in an order that only depends on the pairs' names."""
    raters = simulated_raters(config)
    seen = [0] * len(raters)
    assigned: list[tuple[int, Rater]] = []
    for index in sorted(range(len(pairs)), key=lambda i: stable_hash("pair", config.seed, *pairs[i].key)):
        draw = {
            place: stable_hash("who", config.seed, *pairs[index].key, place) for place in range(len(raters))
        }
        for place in sorted(draw, key=lambda place: (seen[place], draw[place]))[: config.votes_per_pair]:
            seen[place] += 1
            assigned.append((index, raters[place]))
    turn: Counter[tuple[str, ...]] = Counter()
    showings = []
    for index, rater in assigned:
        pair = pairs[index]
        table = (rater.user_id, *pair.key[1:])
        alphabetical_is_left = (turn[table] + stable_hash("side", config.seed, *table)) % 2 == 0
        turn[table] += 1
        showings.append(
            (index, _Showing(pair, rater, alphabetical_is_left == (pair.first.model == pair.key[1])))
        )
    return [showing for _, showing in sorted(showings, key=lambda entry: entry[0])]


def _chosen(
    config: SimulatedRatersConfig, showings: Sequence[_Showing], share: float, what: str
) -> Iterator[_Showing]:
    order = sorted(
        showings, key=lambda showing: stable_hash(what, config.seed, showing.rater.user_id, *showing.pair.key)
    )
    yield from order[: round(share * len(showings))]


def _repeats(config: SimulatedRatersConfig, showings: Sequence[_Showing]) -> list[_Showing]:
    again = _chosen(config, showings, config.repeat_share, "repeat")
    return [_Showing(showing.pair, showing.rater, not showing.first_is_left, repeat=1) for showing in again]


def _attention_checks(config: SimulatedRatersConfig, showings: Sequence[_Showing]) -> list[_Showing]:
    """The first clip against its spoilt copy; once for a rater and clip."""
    checks: dict[tuple[str, ...], _Showing] = {}
    for showing in _chosen(config, showings, config.attention_share, "attention"):
        clip = showing.pair.first
        copy = ClipRef(clip.clip_id, clip.model + SPOILT, clip.case_id, clip.prompt, None)
        left = stable_hash("attention side", config.seed, showing.rater.user_id, *showing.pair.key) % 2 == 0
        checks.setdefault(
            (showing.rater.user_id, clip.case_id, clip.model),
            _Showing(ClipPair(clip, copy), showing.rater, left, attention=True),
        )
    return list(checks.values())


def _answer(config: SimulatedRatersConfig, showing: _Showing, axis: str, gaps: np.ndarray) -> str:
    rater = showing.rater
    rng = np.random.default_rng(
        stable_hash("answer", config.seed, rater.user_id, *showing.pair.key, axis, showing.repeat)
    )
    lapse, noise = rng.random(), float(rng.standard_normal())
    if lapse < config.lapses:
        return str(rng.choice(("left", "right", "tie")))
    used = [place for place in config.about(axis) if math.isfinite(gaps[place])]
    weights = np.array(rater.weights)[used]
    first_ahead = float(weights @ gaps[used] / weights.sum())
    latent = (first_ahead if showing.first_is_left else -first_ahead) + rater.side_bias + rater.noise * noise
    return "tie" if abs(latent) <= rater.tie_width else "left" if latent > 0 else "right"


def _row(
    config: SimulatedRatersConfig, showing: _Showing, axis: str, choice: str, ours: str | None
) -> VoteRow:
    first, second = showing.pair.first, showing.pair.second
    left, right = (first, second) if showing.first_is_left else (second, first)
    ours = first.model if showing.attention else ours  # in attention checks, the untouched original
    return {
        "user_id": showing.rater.user_id,
        "left_model": left.model,
        "right_model": right.model,
        "choice": choice,
        "ours_side": "left" if left.model == ours else "right" if right.model == ours else None,
        "case_id": first.case_id,
        "axis": axis,
        "repeat": showing.repeat,
        "seed": config.seed,
        **({"left_sha256": left.sha256} if left.sha256 else {}),
        **({"right_sha256": right.sha256} if right.sha256 else {}),
        **({"attention": True} if showing.attention else {}),
        "simulated": True,
    }
