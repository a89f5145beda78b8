"""The schedule of an arm and seed: at the recipe's training FLOPs, at its own best learning rate if asked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from experiments.studies.claims.config import ClaimsConfig
from experiments.studies.claims.registry import VALIDATION, ClaimArm
from experiments.studies.harness import mark_of
from experiments.studies.paradigms.flops import StepShape, step_flops, steps_of
from pretrain.config import to_json
from pretrain.files import read_json
from pretrain.model.flavors import flavor
from pretrain.model.plan import plan_model
from pretrain.recipe import PretrainConfig

COUNTED = 100  # batches of a stage whose FLOPs are counted; their mean stands for the rest
SAME_WITHIN = 0.02  # of the budget; nearer, the arm keeps the recipe's steps


@dataclass
class Trainings:
    """Schedules by arm. `runs`: the folder of the units; `data`: digests of what is trained on."""

    config: ClaimsConfig
    recipe: PretrainConfig
    latents: Path
    runs: Path
    data: Mapping[str, str]
    _shapes: dict[str, list[StepShape]] = field(default_factory=dict)
    _fitted: dict[ClaimArm, PretrainConfig] = field(default_factory=dict)

    def of(self, arm: ClaimArm, seed: int) -> PretrainConfig | None:
        """The arm's schedule; None where its learning rate is still to be chosen.

        Raises FileNotFoundError or ValueError for latents that cannot be read.
        """
        factor = self.best_rate(arm) if arm.own_rate else 1.0
        return None if factor is None else self.at_rate(arm, seed, factor)

    def trials(self, arm: ClaimArm) -> dict[float, PretrainConfig]:
        """The first seed at every learning rate that is tried, by its factor."""
        return {factor: self.at_rate(arm, 0, factor) for factor in self.config.lr_factors}

    def at_rate(self, arm: ClaimArm, seed: int, factor: float) -> PretrainConfig:
        """The schedule with the recipe's learning rates times `factor`."""
        if arm not in self._fitted:
            self._fitted[arm] = self._at_budget(arm)
        fitted = self._fitted[arm]
        stages = {name: replace(stage, lr=stage.lr * factor) for name, stage in fitted.stages.items()}
        return replace(fitted, stages=stages, seed=self.recipe.seed + seed)

    def best_rate(self, arm: ClaimArm) -> float | None:
        """The factor with the lowest loss on the validation clips (weighed as in training) after the last
        stage of the first seed; None until all were tried. Raises ValueError where that was not measured."""
        losses = self.tried(arm)
        return min(losses, key=lambda factor: losses[factor]) if losses else None

    def tried(self, arm: ClaimArm) -> dict[float, float]:
        """The losses by which `best_rate` chooses; {} until all rates were tried. Raises as it does."""
        losses: dict[float, float] = {}
        for factor in self.config.lr_factors:
            path = self.folder(0, self.at_rate(arm, 0, factor)) / VALIDATION
            if not path.is_file():
                return {}
            last = list(read_json(path, f"remove {path.parent}").values())[-1]
            if not {"validation/video", "validation/audio"} <= last.keys():
                raise ValueError(
                    f"{path}: no validation loss to choose a learning rate by; encode the set `validation` "
                    f"and remove {path.parent}"
                )
            weights = self.recipe.objective
            video, audio = (last[f"validation/{stream}"] for stream in ("video", "audio"))
            losses[factor] = weights.video_weight * video + weights.audio_weight * audio
        return losses

    def described(self, arm: ClaimArm) -> dict[str, Any]:
        """`{flavor, parameters, batch, steps, steps_beyond, flops, rates}`: steps_beyond, of the stages
        beyond the budget; flops, of all stages; rates, the losses by factor of those tried. Raises as
        `of`."""
        training = self.at_rate(arm, 0, 1.0)
        steps = {name: stage.steps for name, stage in training.stages.items()}
        beyond = sum(steps[name] for name in arm.beyond_budget)
        return {
            "flavor": training.flavor,
            "parameters": plan_model(training.flavor)["params_total"],
            "batch": training.global_batch_size,
            "steps": sum(steps.values()) - beyond,
            "steps_beyond": beyond,
            "flops": self._flops(training, list(steps)),
            "rates": {f"{factor:g}": loss for factor, loss in self.tried(arm).items()}
            if arm.own_rate
            else {},
        }

    def folder(self, seed: int, training: PretrainConfig) -> Path:
        """Depends on all that changes the training, and on nothing else: none resumes from foreign weights,
        and arms that come to the same training share it."""
        return self.runs / f"{training.flavor}-seed{seed}-{mark_of(to_json(training), self.data)}"

    def _at_budget(self, arm: ClaimArm) -> PretrainConfig:
        """The arm with steps and warm-up such that its stages but those beyond the budget cost as much."""
        recipe = self._scaled(self._with_smaller_batches(), self.config.steps_factor)
        changed = arm.change(recipe)
        budget = self._flops(recipe, list(recipe.stages))
        counted = [name for name in changed.stages if name not in arm.beyond_budget]
        factor = budget / self._flops(changed, counted)
        if abs(factor - 1) >= SAME_WITHIN:
            longer = self._scaled(changed, factor).stages
            kept = {name: changed.stages[name] for name in arm.beyond_budget}
            changed = replace(changed, stages={**longer, **kept})
        checkpoint = replace(self.recipe.checkpoint, keep_last=1, keep_every=0)
        return replace(changed, checkpoint=checkpoint, validate_every=0)

    def _with_smaller_batches(self) -> PretrainConfig:
        """The recipe with `batch_factor` of its batch; learning rates by the square root, as Adam's noise."""
        factor = self.config.batch_factor
        batch = max(1, round(self.recipe.global_batch_size * factor))
        stages = {
            name: replace(stage, lr=stage.lr * math.sqrt(factor))
            for name, stage in self.recipe.stages.items()
        }
        return replace(self.recipe, global_batch_size=batch, stages=stages)

    def _flops(self, config: PretrainConfig, stages: list[str]) -> float:
        args, total = flavor(config.flavor), 0.0
        for name in stages:
            shapes = self._counted(config, name)
            total += config.stages[name].steps * fmean(step_flops(args, shape) for shape in shapes)
        return total

    def _counted(self, config: PretrainConfig, name: str) -> list[StepShape]:
        """Sizes of the stage's first batches, which do not depend on the model."""
        stage = config.stages[name]
        key = mark_of(name, dict(stage.tasks), dict(stage.sets), dict(stage.audio_sets))
        if key not in self._shapes:
            self._shapes[key] = steps_of(config, name, self.latents, COUNTED)
        return self._shapes[key]

    @staticmethod
    def _scaled(config: PretrainConfig, factor: float) -> PretrainConfig:
        stages = {
            name: replace(
                stage,
                steps=max(1, round(stage.steps * factor)),
                warmup_steps=round(stage.warmup_steps * factor),
            )
            for name, stage in config.stages.items()
        }
        return replace(config, stages=stages)
