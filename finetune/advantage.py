"""Rewards of a round -> advantages per modality: group-normalised, weighted, whitened (alignment.md 2.9).

Normalising each reward before the sum keeps apart what a sum confuses: in two groups of two clips, one better
in both rewards (sums 0, 2) and one better in one of them (sums 0, 1), the first difference stays twice the
second. Pure: the caller gathers the rewards of all ranks first, so that every rank works out the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from finetune.types import Advantage
from pretrain.config import NOT_NEGATIVE, check_bounds, nearest

ROUNDING = 1e-6  # totals of a group within this share of the weights are equal: opposite rewards cancel to it


@dataclass(frozen=True, kw_only=True)
class Floor:
    """Least value of a reward that no other reward can pay for, as in rewards.rubric.

    A clip below it gets the lowest total of its group in both modalities (`lowest`), or is not valid (`nan`).
    Rewards are higher = better here: one that is better when lower has a negative floor.
    """

    floor: float
    below: Literal["lowest", "nan"] = "lowest"

    def __post_init__(self) -> None:
        if math.isnan(self.floor) or self.below not in ("lowest", "nan"):
            raise ValueError(
                f"a floor is a number with below lowest or nan, got {self.floor} and {self.below!r}"
            )


@dataclass(frozen=True, kw_only=True)
class Route:
    """Modality and weight of a reward, and its floor. Raises ValueError for another modality or a weight
    <= 0."""

    modality: Literal["video", "audio", "both"]
    weight: float = 1.0
    floor: Floor | None = None

    def __post_init__(self) -> None:
        if self.modality not in ("video", "audio", "both") or not 0 < self.weight < math.inf:
            raise ValueError(
                f"a route leads to video, audio or both with a weight above 0, got {self.modality!r} and "
                f"{self.weight}"
            )


@dataclass(frozen=True, kw_only=True)
class AdvantageConfig:
    """How rewards become advantages.

    routed: False gives both modalities the full sum; whiten: each modality's sum to mean 0 and deviation 1
    over the round; min_spread: rewards of a group within this range count as equal, in the reward's unit;
    eps: added to deviations. std: what a reward's distance from its group's mean is divided by: the deviation
    within the group, or the one pooled over the groups that the reward applies to, so that a group whose
    clips are nearly alike counts less than one that fails and succeeds. Raises ValueError on others.
    """

    routed: bool = True
    std: Literal["group", "pooled"] = "group"
    whiten: bool = True
    min_spread: float = 1e-6
    eps: float = 1e-6

    def __post_init__(self) -> None:
        if self.std not in ("group", "pooled"):
            raise ValueError(f"advantage.std: expected group or pooled, got {self.std!r}")
        check_bounds(self, {"min_spread": NOT_NEGATIVE, "eps": NOT_NEGATIVE}, "advantage.")


class ClipGroups(NamedTuple):
    """Sums and extremes over the clips of a group."""

    index: Tensor  # [B] int64, 0 .. size - 1
    size: int

    @classmethod
    def of(cls, groups: Tensor) -> ClipGroups:
        """groups [B] int64: ids."""
        labels, index = torch.unique(groups, return_inverse=True)
        return cls(index, len(labels))

    def reduced(self, values: Tensor, reduce: str, start: float = 0.0) -> Tensor:
        """[B] fp64 -> [size]."""
        return values.new_full((self.size,), start).scatter_reduce(0, self.index, values, reduce)

    def of_clips(self, values: Tensor, reduce: str, start: float = 0.0) -> Tensor:
        """[B] fp64 -> [B]: what `reduced` finds for each clip's group."""
        return self.reduced(values, reduce, start)[self.index]


def advantages(
    rewards: Mapping[str, Tensor], groups: Tensor, routes: Mapping[str, Route], config: AdvantageConfig
) -> Advantage:
    """rewards: name -> [B], NaN where a clip could not be scored; groups [B] int64.

    A clip that one reward could not score, while it scored others of its group, leaves all statistics and is
    not valid; a reward that scored none of a group (such as a voice reward without a reference) does not
    apply to that group. A clip beyond a floor leaves all statistics too, or keeps its place in them and gets
    the lowest total of its group (Floor.below). A group whose totals are all equal in both modalities is
    skipped: no reward differs, or all of its clips are beyond a floor; where they are equal in one modality,
    that one's advantage is 0. Raises ValueError on infinite rewards, other lengths, and names without a route
    or a reward.
    """
    _check(rewards, groups, routes)
    cells = ClipGroups.of(groups)
    index = cells.index
    # fp64, because deviations of nearly equal rewards cancel
    values = {name: rewards[name].detach().double() for name in routes}
    known = {name: ~value.isnan() for name, value in values.items()}
    applies = {name: cells.reduced(some.double(), "amax")[index] > 0 for name, some in known.items()}
    scored = torch.stack(list(applies.values())).any(0)
    for name in routes:
        scored = scored & (known[name] | ~applies[name])
    scored = scored & ~_beyond(values, routes, "nan")
    lowest = _beyond(values, routes, "lowest")
    normalised = {name: _normalised(values[name], scored & known[name], cells, config) for name in routes}
    totals = {
        modality: _totals(
            [
                (route.weight, normalised[name])
                for name, route in routes.items()
                if not config.routed or route.modality in (modality, "both")
            ],
            scored,
            lowest,
            cells,
        )
        for modality in ("video", "audio")
    }
    differs = torch.stack([contrast for _, contrast in totals.values()]).any(0)
    valid = scored & differs[index]
    parts = {
        modality: _whitened(total, valid & contrast[index], config)
        for modality, (total, contrast) in totals.items()
    }
    routed = {
        modality: not config.routed or any(route.modality in (modality, "both") for route in routes.values())
        for modality in parts
    }
    contrast = float(differs.double().mean()) if cells.size else 0.0
    return Advantage(
        parts["video"].float(),
        parts["audio"].float(),
        valid,
        contrast,
        int((~differs).sum()),
        routed["video"],
        routed["audio"],
    )


def _normalised(values: Tensor, usable: Tensor, cells: ClipGroups, config: AdvantageConfig) -> Tensor:
    """(r - mean_g) / (std + eps) [B]; 0 if unusable or in a group without contrast."""
    number = cells.reduced(usable.double(), "sum").clamp_min(1)
    top = cells.reduced(torch.where(usable, values, -torch.inf), "amax", -torch.inf)
    low = cells.reduced(torch.where(usable, values, torch.inf), "amin", torch.inf)
    mean = cells.reduced(torch.where(usable, values, 0.0), "sum") / number
    away = torch.where(usable, values - mean[cells.index], 0.0)
    squares, freedom = cells.reduced(away.square(), "sum"), number - 1
    if config.std == "pooled":  # a group with one scored clip or none has no degree of freedom
        squares, freedom = squares.sum().expand_as(squares), freedom.sum().expand_as(freedom)
    std = (squares / freedom.clamp_min(1)).sqrt()
    # by range, not by std: rounding gives equal values a tiny std, which would blow up to an advantage
    differs = top - low > config.min_spread
    return torch.where(differs[cells.index], away / (std[cells.index] + config.eps), 0.0)


def _beyond(values: Mapping[str, Tensor], routes: Mapping[str, Route], below: str) -> Tensor:
    """[B] bool: clips beyond some floor of this kind."""
    found = torch.zeros_like(next(iter(values.values())), dtype=torch.bool)
    for name, route in routes.items():
        if route.floor is not None and route.floor.below == below:
            found = found | (values[name] < route.floor.floor)  # False for NaN
    return found


def _totals(
    used: list[tuple[float, Tensor]], scored: Tensor, lowest: Tensor, cells: ClipGroups
) -> tuple[Tensor, Tensor]:
    """(weighted sum [B] of one modality's normalised rewards, groups with contrast [G]).

    lowest [B] bool: clips that get the lowest sum of their group's scored ones; the group's mean is then
    taken off again, because advantages compare the clips of one prompt and not prompts. A group in which all
    sums are equal has no contrast.
    """
    total = torch.zeros(len(scored), dtype=torch.float64, device=scored.device)
    for weight, normalised in used:
        total = total + weight * normalised
    lowest = lowest & scored
    least = cells.of_clips(torch.where(scored, total, torch.inf), "amin", torch.inf)
    total = torch.where(lowest, least, total)
    mean = cells.of_clips(torch.where(scored, total, 0.0), "sum")
    mean = mean / cells.of_clips(scored.double(), "sum").clamp_min(1)
    # only where it moved: elsewhere it is 0 but for rounding
    total = torch.where(cells.of_clips(lowest.double(), "amax") > 0, total - mean, total)
    top = cells.reduced(torch.where(scored, total, -torch.inf), "amax", -torch.inf)
    low = cells.reduced(torch.where(scored, total, torch.inf), "amin", torch.inf)
    return total, top - low > ROUNDING * sum(weight for weight, _ in used)


def _whitened(total: Tensor, counted: Tensor, config: AdvantageConfig) -> Tensor:
    """total [B], to mean 0 and deviation 1 over the counted clips if so configured; 0 for the others."""
    if config.whiten and int(counted.sum()) > 1:
        total = (total - total[counted].mean()) / (total[counted].std() + config.eps)
    return torch.where(counted, total, 0.0)


def _check(rewards: Mapping[str, Tensor], groups: Tensor, routes: Mapping[str, Route]) -> None:
    if not routes:
        raise ValueError("advantages: no reward has a route; name at least one")
    for name in routes.keys() - rewards.keys():
        raise ValueError(
            f"advantages: a route for {name!r}, but no such reward; {nearest(name, list(rewards))}"
        )
    for name in rewards.keys() - routes.keys():
        raise ValueError(f"advantages: no route for reward {name!r}; {nearest(name, list(routes))}")
    for name, values in rewards.items():
        if values.shape != groups.shape:
            raise ValueError(
                f"advantages: reward {name!r} has {tuple(values.shape)} values for {len(groups)} clips"
            )
        if bool(values.isinf().any()):
            raise ValueError(
                f"advantages: reward {name!r} is infinite for some clip; a clip that cannot be scored is NaN"
            )
