"""Two scalar targets per clip: the weighted rewards of the rubric, and the simulated raters' judges."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.studies.objectives.config import ALGORITHM
from finetune.gsb.simulated_raters import JudgeFeature
from finetune.recipe import RubricConfig
from rewards.catalog import metric

RUBRIC, PANEL = "rubric", "panel"
# metric -> (weight, origin, unit)
Units = Mapping[str, tuple[float, float, float]]


def higher_is_better(name: str, features: Sequence[JudgeFeature] = ()) -> bool:
    """True for a total; a judge's part has the sign of its unit."""
    units = {feature.name: feature.unit for feature in features}
    return name in (RUBRIC, PANEL) or (units[name] > 0 if name in units else not metric(name).lower_is_better)


def target_of(arm: str) -> str:
    """The total that an arm optimises."""
    return PANEL if ALGORITHM.get(arm) == "gsb_dpo" else RUBRIC


def units_of(
    rubric: RubricConfig, features: Sequence[JudgeFeature], base: Mapping[str, Any]
) -> dict[str, Units]:
    """Scales of rewards (standard deviations over pretrained clips) and of judges (raters' units)."""
    rewards = {}
    for name, route in rubric.routes().items():
        mean, deviation = _moments(base["metrics"][name])
        rewards[name] = (route.weight, mean, deviation if higher_is_better(name) else -deviation)
    judges = {
        feature.name: (feature.weight, _moments(base["metrics"][feature.name])[0], feature.unit)
        for feature in features
    }
    return {RUBRIC: rewards, PANEL: judges}


def with_totals(scores: Mapping[str, Any], units: Mapping[str, Units]) -> dict[str, Any]:
    """The metrics plus both totals; a clip that lacks a part has no total."""
    found = dict(scores["metrics"])
    for total, parts in units.items():
        columns = [found[name] for name in parts]
        found[total] = [_total(list(pairs), list(parts.values())) for pairs in zip(*columns, strict=True)]
    return found


def _total(
    pairs: Sequence[Sequence[float] | None], parts: Sequence[tuple[float, float, float]]
) -> list[float] | None:
    if any(not pair or not pair[1] for pair in pairs):
        return None
    moved = [
        weight * (pair[0] / pair[1] - zero) / unit
        for pair, (weight, zero, unit) in zip(pairs, parts, strict=True)
        if pair
    ]
    return [sum(moved) / sum(weight for weight, _, _ in parts), 1.0]


def _moments(pairs: Sequence[Sequence[float] | None]) -> tuple[float, float]:
    values = [pair[0] / pair[1] for pair in pairs if pair and pair[1]]
    mean = sum(values) / len(values) if values else 0.0
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / len(values)) if values else 0.0
    return mean, deviation or 1.0
