"""A rubric: weighted, normalised rewards summed to one total per clip. Pure functions of scores."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from rewards.normalisation import Moments, group_z
from rewards.options import fill, nearest
from rewards.types import Score, split_part

Normalise = Literal["none", "group", "batch", "running"]
FLOOR_PART = "floor"


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
    prompt; batch = z among all clips given; running = z against all values up to and including this call.
    Weight 0 is logged and not counted. `floor` is the worst raw value allowed, a minimum for a positive and a
    maximum for a negative weight. A clip beyond it gets the lowest total of its group (`below: lowest`), so
    that no other reward can pay for it, or NaN (`nan`). `route` is for alignment: the modality that the item
    teaches, "" = the one it sees; totals do not depend on it.
    """

    reward: str = ""


@dataclass(frozen=True)
class RubricScores:
    """`totals`: one Score per clip; its parts are the weighted terms and sum to the value.

    The part `floor` is what a floor subtracted. `no_contrast`: item -> groups in which all clips had the same
    value; `floored`: item -> clips beyond its floor; `running`: item -> moments to give to the next call.
    `normalised`: item -> the clip's value as it was weighted.
    """

    totals: list[Score]
    normalised: dict[str, np.ndarray]
    no_contrast: dict[str, int]
    floored: dict[str, int]
    running: dict[str, Moments]


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
        statistics, nor does a clip beyond a floor with `below: nan`. Raises ValueError for a reward or part
        that is not there.
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
        terms = {item.reward: item.weight * columns[item.reward] for item in self.items if item.weight}
        sums = np.sum(list(terms.values()), axis=0)
        lowered = _lowered(
            sums,
            [beyond[item.reward] for item in self.items if item.floor is not None and item.below == "lowest"],
            groups,
        )
        totals = []
        for index, reason in enumerate(reasons):
            if reason:
                totals.append(Score(math.nan, "; ".join(reason)))
                continue
            parts = {name: float(column[index]) for name, column in terms.items()}
            if lowered[index] != sums[index]:
                parts[FLOOR_PART] = float(lowered[index] - sums[index])
            totals.append(Score(float(lowered[index]), parts=parts))
        return RubricScores(
            totals, columns, flat, {name: int(mask.sum()) for name, mask in beyond.items()}, moments
        )


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


def _lowered(sums: np.ndarray, masks: Sequence[np.ndarray], groups: Sequence[Hashable]) -> np.ndarray:
    """Give clips beyond a floor the lowest total of their group."""
    if not masks:
        return sums
    lowest: dict[Hashable, float] = {}
    for total, group in zip(sums, groups, strict=True):
        if not math.isnan(total):
            lowest[group] = min(total, lowest.get(group, math.inf))
    floors = np.array([lowest.get(group, math.nan) for group in groups])
    return np.where(np.any(masks, axis=0), floors, sums)
