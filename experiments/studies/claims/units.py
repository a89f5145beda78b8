"""What is run: an arm with a seed, its training if it has one, and the clips that are made of it."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from experiments.studies.claims.config import ClaimsConfig
from experiments.studies.claims.registry import Claim, ClaimCell
from experiments.studies.claims.trainings import Trainings
from experiments.studies.harness import Run, mark_of
from experiments.studies.said import said_by_prompts
from pretrain.config import to_json
from pretrain.generation.config import GenerateConfig
from pretrain.recipe import PretrainConfig

GENERATED_SHARE = 0.15  # of a training's work: generating and scoring a sampling of it


@dataclass(frozen=True)
class Sampled:
    """Clips of a unit: `scores` is the file that their scores are written to."""

    config: GenerateConfig
    prompts: str
    scores: Path


@dataclass(frozen=True)
class ClaimUnit:
    """An arm with a seed. Without a training, clips of the model that is there, by a seed of the noise.

    rate: of a trial, the factor of the learning rates that it tries.
    """

    arm: str
    seed: int
    folder: Path
    training: PretrainConfig | None = None
    samples: Mapping[Path, Sampled] = field(default_factory=dict)  # by their scores
    rate: float | None = None

    @property
    def label(self) -> str:
        return f"{self.arm}-seed{self.seed}" + ("" if self.rate is None else f" at {self.rate:g} of its rate")

    @property
    def run(self) -> Run:
        """As the harness runs it; the result stands for all its samples."""
        steps = {name: stage.steps for name, stage in (self.training.stages if self.training else {}).items()}
        whole = float(sum(steps.values())) or 1.0
        stages = {name: (float(count), count) for name, count in steps.items()}
        mark = mark_of(sorted(path.name for path in self.samples))
        scoring = GENERATED_SHARE * whole * len(self.samples)
        return Run(self.label, self.folder, mark, stages, scoring, tuple(self.samples))

    def beside(self, other: ClaimUnit) -> ClaimUnit:
        """The same unit with the samples of both."""
        return replace(self, samples={**self.samples, **other.samples})


@dataclass(frozen=True)
class ClaimUnits:
    """Makes the units of claims.

    model: id of the one that rows which only sample take. scored: what scores depend on beside the clips.
    prompts: folder of the prompt sets.
    """

    config: ClaimsConfig
    generate: GenerateConfig
    trainings: Trainings
    model: str
    scored: Mapping[str, Any]
    prompts: Path

    def of(self, claim: Claim, cell: ClaimCell, seed: int) -> tuple[ClaimUnit, Path] | None:
        """The unit of a cell and the file of its scores; None where its training is not known yet."""
        name, sampling = cell
        training = None
        if claim.trains:
            training = self.trainings.of(claim.arms[name], seed)
            if training is None:
                return None
            folder = self.trainings.folder(seed, training)
        else:
            folder = self.trainings.runs / f"{name}-seed{seed}-{mark_of(self.model)}"
        guidance = claim.samplings[sampling]
        config = self.generate if training else replace(self.generate, seed=self.generate.seed + seed)
        if guidance is not None:
            config = replace(config, sampler=replace(config.sampler, guidance=guidance))
        measured = mark_of(to_json(config), claim.prompts, self.config.num_prompts, self.scored)
        scores = folder / f"scores-{re.sub(r'[^a-z0-9]+', '-', sampling)}-{measured}.json"
        sampled = Sampled(config, claim.prompts, scores)
        return ClaimUnit(name, seed, folder, training, {scores: sampled}), scores

    def said(self, claim: Claim, data_ids: Sequence[str]) -> list[Hashable]:
        """The words and voices that each prompt asks for: prompts of the same ones fail alike.

        Raises FileNotFoundError or ValueError in one line where the prompts cannot be read.
        """
        return said_by_prompts(self.prompts / f"{claim.prompts}.jsonl", data_ids)

    def seeds(self, claim: Claim) -> range:
        return range(self.config.seeds if claim.trains else self.config.noise_seeds)

    def needed(self, claims: Sequence[Claim]) -> list[ClaimUnit]:
        """Every unit that is known, once, with the samples of all claims; first the trials of learning rates,
        then by seed."""
        found: dict[Path, ClaimUnit] = {}
        for name, arm in {name: arm for claim in claims for name, arm in claim.arms.items()}.items():
            for rate, trial in self.trainings.trials(arm).items() if arm.own_rate else ():
                folder = self.trainings.folder(0, trial)
                found[folder] = ClaimUnit(name, 0, folder, trial, rate=rate)
        asked = [(seed, claim) for claim in claims for seed in self.seeds(claim)]
        for seed, claim in sorted(asked, key=lambda pair: pair[0]):
            for cell in claim.cells:
                if (known := self.of(claim, cell, seed)) is not None:
                    unit = known[0]
                    there = found.get(unit.folder)
                    found[unit.folder] = there.beside(unit) if there else unit
        return list(found.values())
