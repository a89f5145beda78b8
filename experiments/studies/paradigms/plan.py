"""Which trainings the study consists of, each with its own schedule, and what of it changes when it must be
made anew."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.studies.paradigms.config import FLOPS, PARADIGMS, REFERENCE, STEPS, StudyConfig
from experiments.studies.paradigms.flops import Step, matched_steps, steps_of, total_flops
from pretrain.config import to_json
from pretrain.model.flavors import flavor
from pretrain.randomness import stable_hash
from pretrain.recipe import PretrainConfig

LONGEST = 3  # times the reference's steps whose batches are counted


@dataclass(frozen=True)
class Training:
    """One training from scratch through all stages."""

    paradigm: str
    budget: str  # equal_steps or equal_flops
    seed: int
    config: PretrainConfig
    flops: Mapping[str, int]  # training FLOPs by stage

    @property
    def label(self) -> str:
        return f"{self.paradigm}-{self.budget}-seed{self.seed}"

    def folder(self, data: Mapping[str, str]) -> str:
        """Name that differs where settings or `data` differ, so that no training goes on with another's
        weights."""
        return f"{self.label}-{mark_of(to_json(self.config), data)}"


def mark_of(*parts: Any) -> str:
    """Eight hex digits that stand for plain values."""
    return f"{stable_hash(json.dumps(parts, sort_keys=True)):016x}"[:8]


@dataclass(frozen=True)
class StudyPlan:
    """All trainings; `served` says which paradigms' equal-steps runs stand for equal FLOPs as well."""

    trainings: tuple[Training, ...]
    served: tuple[str, ...]
    steps: Mapping[str, Mapping[str, Mapping[str, int]]]  # budget -> paradigm -> stage -> steps
    flops: Mapping[str, Mapping[str, Mapping[str, int]]]  # the same, training FLOPs

    def of(self, paradigm: str, budget: str) -> list[Training]:
        """The trainings that answer for a paradigm at a budget, by seed."""
        made_at = STEPS if paradigm in self.served else budget
        return [item for item in self.trainings if (item.paradigm, item.budget) == (paradigm, made_at)]


def plan_study(config: StudyConfig, recipe: PretrainConfig, latents: Path) -> StudyPlan:
    """The plan; batches are counted on the first seed's data. Raises FileNotFoundError or ValueError for
    unusable latents."""
    scaled = {name: max(1, round(stage.steps * config.steps_factor)) for name, stage in recipe.stages.items()}
    batches = {name: steps_of(recipe, name, latents, LONGEST * count) for name, count in scaled.items()}
    steps: dict[str, dict[str, dict[str, int]]] = {STEPS: {}, FLOPS: {}}
    flops: dict[str, dict[str, dict[str, int]]] = {STEPS: {}, FLOPS: {}}
    served = []
    for paradigm in PARADIGMS:
        matched = _matched(paradigm, batches, scaled)
        if abs(sum(matched.values()) / sum(scaled.values()) - 1) < config.same_within:
            served.append(paradigm)
            matched = scaled
        for budget, counts in ((STEPS, scaled), (FLOPS, matched)):
            steps[budget][paradigm] = counts
            flops[budget][paradigm] = {
                name: _flops(paradigm, batches[name], count) for name, count in counts.items()
            }
    trainings = [
        Training(
            paradigm,
            budget,
            seed,
            _pretrain(recipe, paradigm, seed, steps[budget][paradigm]),
            flops[budget][paradigm],
        )
        for seed in range(config.seeds)
        for budget in (STEPS, FLOPS)
        for paradigm in PARADIGMS
        if budget == STEPS or paradigm not in served
    ]
    return StudyPlan(tuple(trainings), tuple(served), steps, flops)


def _matched(
    paradigm: str, batches: Mapping[str, Sequence[Step]], scaled: Mapping[str, int]
) -> dict[str, int]:
    ours, reference = flavor(PARADIGMS[paradigm]), flavor(PARADIGMS[REFERENCE])
    return {name: matched_steps(ours, reference, batches[name], count) for name, count in scaled.items()}


def _flops(paradigm: str, steps: Sequence[Step], count: int) -> int:
    args = flavor(PARADIGMS[paradigm])
    counted = total_flops(args, steps[:count])
    return counted if count <= len(steps) else round(counted * count / len(steps))


def _pretrain(recipe: PretrainConfig, paradigm: str, seed: int, steps: Mapping[str, int]) -> PretrainConfig:
    """The recipe's schedule at another length: warm-up and decay keep their share."""
    stages = {
        name: dataclasses.replace(
            stage, steps=steps[name], warmup_steps=round(stage.warmup_steps * steps[name] / stage.steps)
        )
        for name, stage in recipe.stages.items()
    }
    checkpoint = dataclasses.replace(recipe.checkpoint, keep_last=1, keep_every=0)
    return dataclasses.replace(
        recipe,
        flavor=PARADIGMS[paradigm],
        seed=recipe.seed + seed,
        stages=stages,
        checkpoint=checkpoint,
        validate_every=0,
    )
