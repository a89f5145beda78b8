"""A rubric: weighted, normalised rewards summed to one total per clip. Pure functions of scores."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from rewards.normalisation import Moments, group_z
from rewards.options import fill, nearest
from rewards.types import Score, split_part

Normalise = Literal["none", "group", "batch", "running"]
FLOOR_PART = "floor"
# why a clip has no total, by normalise
ALONE: Mapping[str, str] = {
    "group": "normalise: group has no other scored clip of its prompt to compare with; set batch or none, or "
    "score several clips of each prompt",
    "batch": "normalise: batch has no other scored clip to compare with; set none, or score several clips",
    "running": "normalise: running has no other value to compare with; set none, or score several clips",
}


@dataclass(frozen=True)
class ItemOptions:
    """How one reward counts; see `RubricItem`."""

    weight: float = 1.0
    normalise: Normalise = "group"
    floor: float | None = None
    below: Literal["lowest", "nan"] = "lowest"
    route: Literal["", "video", "audio", "both"] = ""

    def __post_init__(self) -> None:
        if not math.isfinite(self.weight):
            raise ValueError(f"weight must be finite, got {self.weight}")
        if self.floor is not None and (self.weight == 0 or math.isnan(self.floor)):
            raise ValueError(
                "a floor needs a weight other than 0 (its sign says which side is worse) and a number"
            )


@dataclass(frozen=True)
class RubricItem(ItemOptions):
    """One term of the total: weight * normalised value.

    `reward` is a reward's name, or `name.part` for one of its parts. A reward that is better when lower (WER,
    Sync-D, FD) takes a NEGATIVE weight. `normalise`: none = the raw value; group = z among the clips of one
    prompt; batch = z among all clips given; running = z against all values up to and including this call. A
    z-score needs two values: the only clip of its prompt (group), or of all (batch, running), has no total.
    Weight 0 is logged and not counted. `floor` is the worst raw value allowed, a minimum for a positive and a
    maximum for a negative weight. A clip beyond it gets the lowest total of its group (`below: lowest`), of
    all clips where it is alone in its group, so that no other reward can pay for it, or NaN (`nan`; also
    where there is no other clip). `route` is for alignment: the modality that the item teaches, "" = the one
    it sees; totals do not depend on it.
    """

    reward: str = ""


@dataclass(frozen=True)
class RubricScores:
    """`totals`: one Score per clip; its parts are the weighted terms and sum to the value.

    The part `floor` is what a floor subtracted. `no_contrast`: item -> groups in which all clips had the
    same value; `floored`: item -> clips beyond its floor, `beyond` which [N]; `running`: item ->
    moments to give to the next call. `normalised`: item -> the clip's value as it was weighted.
    """

    totals: list[Score]
    normalised: dict[str, np.ndarray]
    no_contrast: dict[str, int]
    floored: dict[str, int]
    running: dict[str, Moments]
    beyond: dict[str, np.ndarray] = field(default_factory=dict)  # bool [N]


@dataclass(frozen=True)
class Rubric:
    """Weighted items. `total` is a pure function of scores, groups and running moments."""

    items: tuple[RubricItem, ...] = field(default_factory=tuple)

    def __post_init__(self) -> None:
        names = [item.reward for item in self.items]
        if not any(item.weight for item in self.items):
            raise ValueError("rubric: no item with a weight other than 0")
        if doubled := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"rubric: {sorted(doubled)[0]!r} is there twice")

    @property
    def relative(self) -> bool:
        """A total is about the other clips that it was formed with: those of two sets cannot be compared."""
        return any(item.weight and item.normalise != "none" for item in self.items)

    @classmethod
    def from_config(cls, config: Any, where: str = "items") -> Rubric:
        """Build from `{reward: {weight, normalise, floor, below, route}}`.

        Raises ValueError naming the nearest key for an unknown one.
        """
        if not isinstance(config, Mapping) or not config:
            raise ValueError(f"{where}: expected a mapping of rewards to options, got {config!r}")
        items = []
        for name, options in config.items():
            filled = fill(ItemOptions, options, f"{where}.{name}")
            items.append(RubricItem(**vars(filled), reward=str(name)))
        return cls(tuple(items))

    def total(
        self,
        scores: Mapping[str, Sequence[Score]],
        groups: Sequence[Hashable],
        running: Mapping[str, Moments] | None = None,
    ) -> RubricScores:
        """Totals of N clips from each reward's N scores; `groups` [N]: equal for clips of one prompt.

        A clip without a value in any item that counts is NaN with those reasons and takes no part in any
        statistics, nor does a clip beyond a floor with `below: nan`. A clip that an item has nothing to
        compare with is NaN too. Raises ValueError for a reward or part that is not there.
        """
        raw = {item.reward: _values(item.reward, scores, len(groups)) for item in self.items}
        reasons = [
            _reasons(self.items, {name: column[index] for name, column in raw.items()})
            for index in range(len(groups))
        ]
        beyond = {
            item.reward: _beyond(item, raw[item.reward]) for item in self.items if item.floor is not None
        }
        for item in self.items:
            if item.floor is not None and item.below == "nan":
                for index in np.flatnonzero(beyond[item.reward]):
                    reasons[index] += [
                        f"{item.reward}: {raw[item.reward][index].value:.4g} is beyond the floor "
                        f"{item.floor:.4g}"
                    ]
        kept = np.array([not reason for reason in reasons], dtype=bool)
        columns, flat, moments = _normalised(self.items, raw, kept, groups, running or {})
        for item in self.items:
            for index in np.flatnonzero(kept & _incomparable(item, kept, groups, moments)):
                reasons[index] += [f"{item.reward}: {ALONE[item.normalise]}"]
        formed = np.array([not reason for reason in reasons], dtype=bool)
        terms = {item.reward: item.weight * columns[item.reward] for item in self.items if item.weight}
        sums = np.where(formed, np.sum(list(terms.values()), axis=0), np.nan)
        lowest = [item for item in self.items if item.floor is not None and item.below == "lowest"]
        lowered, alone = _lowered(sums, [beyond[item.reward] for item in lowest], groups)
        for index in np.flatnonzero(alone):
            reasons[index] += [
                f"{item.reward}: {raw[item.reward][index].value:.4g} is beyond the floor {item.floor:.4g}, "
                "and there is no other clip whose lowest total it could get; set below: nan"
                for item in lowest
                if beyond[item.reward][index]
            ]
        totals = [_total(index, reason, terms, sums, lowered) for index, reason in enumerate(reasons)]
        counts = {name: int(mask.sum()) for name, mask in beyond.items()}
        return RubricScores(totals, columns, flat, counts, moments, beyond)


def _total(
    index: int, reason: list[str], terms: Mapping[str, np.ndarray], sums: np.ndarray, lowered: np.ndarray
) -> Score:
    """A clip's total with its weighted terms as parts."""
    if reason:
        return Score(math.nan, "; ".join(reason))
    parts = {name: float(column[index]) for name, column in terms.items()}
    if lowered[index] != sums[index]:
        parts[FLOOR_PART] = float(lowered[index] - sums[index])
    return Score(float(lowered[index]), parts=parts)


def _incomparable(
    item: RubricItem, kept: np.ndarray, groups: Sequence[Hashable], moments: Mapping[str, Moments]
) -> np.ndarray:
    """bool [N]: clips whose value a z-score has no second value for."""
    if not item.weight or item.normalise == "none":
        return np.zeros(len(kept), dtype=bool)
    if item.normalise == "running":
        return np.full(len(kept), moments[item.reward].count < 2)
    if item.normalise == "batch":
        return np.full(len(kept), kept.sum() < 2)
    counts = Counter(group for group, valued in zip(groups, kept, strict=True) if valued)
    return np.array([counts[group] < 2 for group in groups], dtype=bool)


def _values(name: str, scores: Mapping[str, Sequence[Score]], num_clips: int) -> list[Score]:
    """The scores of a reward, or of one of its parts."""
    reward, part = split_part(name, scores)
    if reward not in scores:
        raise ValueError(f"rubric: {reward!r} was not scored; {nearest(reward, scores)}")
    found = list(scores[reward])
    if len(found) != num_clips:
        raise ValueError(f"rubric: {len(found)} scores of {reward!r} for {num_clips} clips")
    known = {key for score in found if not score.reason for key in score.parts}
    if part and known and part not in known:
        raise ValueError(f"rubric: {reward!r} has no part {part!r}; {nearest(part, known)}")
    return [score.part(part) for score in found]


def _reasons(items: Sequence[RubricItem], row: Mapping[str, Score]) -> list[str]:
    """Why a clip has no total; empty when it has one."""
    found = [(item.reward, row[item.reward]) for item in items if item.weight]
    return [
        f"{name}: {score.reason or 'NaN'}" for name, score in found if score.reason or math.isnan(score.value)
    ]


def _beyond(item: RubricItem, column: Sequence[Score]) -> np.ndarray:
    assert item.floor is not None
    values = np.array([score.value for score in column], dtype=np.float64)
    with np.errstate(invalid="ignore"):
        return values < item.floor if item.weight > 0 else values > item.floor


def _normalised(
    items: Sequence[RubricItem],
    raw: Mapping[str, Sequence[Score]],
    kept: np.ndarray,
    groups: Sequence[Hashable],
    running: Mapping[str, Moments],
) -> tuple[dict[str, np.ndarray], dict[str, int], dict[str, Moments]]:
    columns, flat, moments = {}, {}, dict(running)
    for item in items:
        name = item.reward
        values = np.where(kept, [score.value for score in raw[name]], np.nan)
        if item.normalise == "none":
            columns[name] = values
        elif item.normalise == "running":
            moments[name] = moments.get(name, Moments()).merged(values)
            columns[name] = moments[name].z(values)
            flat[name] = int(not moments[name].has_contrast)
        else:
            columns[name], flat[name] = group_z(
                values, groups if item.normalise == "group" else [None] * len(groups)
            )
    return columns, flat, moments


def _lowered(
    sums: np.ndarray, masks: Sequence[np.ndarray], groups: Sequence[Hashable]
) -> tuple[np.ndarray, np.ndarray]:
    """Totals [N] in which clips beyond a floor have the lowest of their group, or of all clips where they are
    alone in it, and which [N] have no other clip at all."""
    if not masks:
        return sums, np.zeros(len(sums), dtype=bool)
    known = ~np.isnan(sums)
    counts = Counter(group for group, valued in zip(groups, known, strict=True) if valued)
    lowest: dict[Hashable, float] = {}
    for total, group in zip(sums, groups, strict=True):
        if not math.isnan(total):
            lowest[group] = min(total, lowest.get(group, math.inf))
    of_all = min(lowest.values(), default=math.nan)
    floors = [lowest.get(group, math.nan) if counts[group] > 1 else of_all for group in groups]
    beyond = np.any(masks, axis=0) & known
    return np.where(beyond, floors, sums), beyond & (known.sum() < 2)
