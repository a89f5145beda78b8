"""Trainings of the study, each with its schedule."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.studies.paradigms.config import FLOPS, PARADIGMS, REFERENCE, STEPS, StudyConfig
from experiments.studies.paradigms.flops import matched_steps, steps_of, total_flops
from pretrain.model.flavors import flavor
from pretrain.model.plan import plan_model
from pretrain.recipe import PretrainConfig

LONGEST = 3  # times the reference's steps whose batches are counted
ByStage = Mapping[str, int]


@dataclass(frozen=True)
class Training:
    """One training from scratch through all stages."""

    paradigm: str
    budget: str  # equal_steps or equal_flops
    seed: int
    config: PretrainConfig
    flops: ByStage

    @property
    def label(self) -> str:
        return f"{self.paradigm}-{self.budget}-seed{self.seed}"


@dataclass(frozen=True)
class StudyPlan:
    """All trainings; `served` lists paradigms whose equal-steps runs also count as equal FLOPs."""

    trainings: tuple[Training, ...]
    served: tuple[str, ...]
    steps: Mapping[str, Mapping[str, ByStage]]  # budget -> paradigm -> stage -> steps
    flops: Mapping[str, Mapping[str, ByStage]]  # the same, training FLOPs

    def of(self, paradigm: str, budget: str) -> list[Training]:
        """Trainings for a paradigm at a budget, by seed."""
        made_at = STEPS if paradigm in self.served else budget
        return [item for item in self.trainings if (item.paradigm, item.budget) == (paradigm, made_at)]

    def facts(self) -> dict[str, dict[str, Any]]:
        """Size and cost of each paradigm; FLOPs per step are the mean over the equal-steps schedule."""
        steps = sum(self.steps[STEPS][REFERENCE].values())
        totals = {name: sum(self.flops[STEPS][name].values()) for name in PARADIGMS}
        facts = {}
        for paradigm, name in PARADIGMS.items():
            args = flavor(name)
            facts[paradigm] = {
                "flavor": name,
                "width": args.width,
                "blocks": args.num_alignment_blocks + args.num_fusion_blocks,
                "params": plan_model(name)["params_total"],
                "flops_per_step": round(totals[paradigm] / steps),
                "flops_per_step_of_nava": round(totals[paradigm] / totals[REFERENCE], 4),
                "steps_at_equal_flops": sum(self.steps[FLOPS][paradigm].values()),
            }
        return facts


def plan_study(config: StudyConfig, recipe: PretrainConfig, latents: Path) -> StudyPlan:
    """The plan; batches are counted on the first seed's data.

    Raises FileNotFoundError or ValueError for unusable latents.
    """
    scaled = {name: max(1, round(stage.steps * config.steps_factor)) for name, stage in recipe.stages.items()}
    batches = {name: steps_of(recipe, name, latents, LONGEST * count) for name, count in scaled.items()}
    steps: dict[str, dict[str, ByStage]] = {STEPS: {}, FLOPS: {}}
    flops: dict[str, dict[str, ByStage]] = {STEPS: {}, FLOPS: {}}
    served, reference = [], flavor(PARADIGMS[REFERENCE])
    for paradigm, name in PARADIGMS.items():
        args = flavor(name)
        matched = {
            stage: matched_steps(args, reference, batches[stage], count) for stage, count in scaled.items()
        }
        if abs(sum(matched.values()) / sum(scaled.values()) - 1) < config.same_within:
            served.append(paradigm)
            matched = scaled
        for budget, counts in ((STEPS, scaled), (FLOPS, matched)):
            steps[budget][paradigm] = counts
            flops[budget][paradigm] = {
                stage: total_flops(args, batches[stage], count) for stage, count in counts.items()
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


def _pretrain(recipe: PretrainConfig, paradigm: str, seed: int, steps: ByStage) -> PretrainConfig:
    """The recipe's schedule with another length; warm-up and decay keep their share."""
    stages = {
        name: dataclasses.replace(
            stage, steps=steps[name], warmup_steps=round(stage.warmup_steps * steps[name] / stage.steps)
        )
        for name, stage in recipe.stages.items()
    }
    return dataclasses.replace(
        recipe,
        flavor=PARADIGMS[paradigm],
        seed=recipe.seed + seed,
        stages=stages,
        checkpoint=dataclasses.replace(recipe.checkpoint, keep_last=1, keep_every=0),
        validate_every=0,
    )
