"""Arms at one rollout budget: their alignment configs, with equal optimizer steps for votes and rewards."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from experiments.studies.objectives.config import (
    ALGORITHM,
    BASELINE,
    CHOSEN,
    NO_TIES,
    RANDOM,
    ObjectivesConfig,
)
from finetune.objectives.base import Phase
from finetune.recipe import AlignConfig


@dataclass(frozen=True)
class Arm:
    """One scored model: the pretrained one (`config` None), or an alignment of it with one seed."""

    name: str
    seed: int
    config: AlignConfig | None

    @property
    def label(self) -> str:
        return f"{self.name}-seed{self.seed}" if self.config else self.name

    @property
    def voted(self) -> bool:
        return ALGORITHM.get(self.name) == "gsb_dpo"

    @property
    def prompts(self) -> str:
        """Name of the arm's set of training prompts."""
        return {CHOSEN: "chosen", RANDOM: f"random-seed{self.seed}"}.get(self.name, "all")

    @property
    def aligned(self) -> AlignConfig:
        """The alignment config. Raises ValueError for the pretrained model."""
        if self.config is None:
            raise ValueError(f"{self.name} is not aligned")
        return self.config

    @property
    def phase(self) -> Phase:
        return self.aligned.objectives()[0].phase


def plan_arms(objectives: ObjectivesConfig, align: AlignConfig, ranks: int) -> list[Arm]:
    """Every arm and seed, pretrained first. Raises ValueError if groups do not divide over the ranks."""
    arms = [
        Arm(name, seed, align_config(name, seed, objectives, align, ranks))
        for seed in range(objectives.seeds)
        for name in objectives.arms
        if name != BASELINE
    ]
    for arm in arms:
        arm.aligned.check_ranks(ranks)
    return [Arm(BASELINE, 0, None), *arms]


def align_config(
    name: str, seed: int, objectives: ObjectivesConfig, align: AlignConfig, ranks: int
) -> AlignConfig:
    """The recipe's alignment as this arm: one phase of that many rounds, with nft's groups.

    No held-out prompts and no early stopping: stopping would make budgets unequal, and the recipe's held-out
    prompts are removed beforehand for all arms alike.
    """
    algorithm = ALGORITHM[name]
    phase: Any = align.phases[algorithm]
    if algorithm == "gsb_dpo":
        phase = votes_phase(align, objectives.rounds, ranks)
        phase = replace(
            phase, objective=replace(phase.objective, ties="drop" if name == NO_TIES else "model")
        )
    else:
        groups = {
            "prompts_per_round": align.phases["nft"].prompts_per_round,
            "clips_per_prompt": align.phases["nft"].clips_per_prompt,
        }
        phase = replace(phase, rounds=objectives.rounds, **groups)
    stop = replace(align.stop, prompts=0, patience=0)
    phases = {**align.phases, algorithm: phase}
    return replace(align, seed=seed, sequence=(algorithm,), stop=stop, phases=phases)


def votes_phase(align: AlignConfig, rounds: int, ranks: int, pairs: int | None = None) -> Phase:
    """gsb_dpo with nft's optimizer steps and, as nearly as the ranks allow, its clips per step.

    pairs: number of available pairs, if known.
    """
    nft = align.phases["nft"]
    pairs_per_step = nft.prompts_per_round * nft.clips_per_prompt / nft.steps_per_epoch / 2
    if pairs is not None:
        pairs_per_step = min(pairs_per_step, pairs // nft.steps_per_epoch)
    per_step = max(1, int(pairs_per_step // ranks)) * ranks
    return replace(
        align.phases["gsb_dpo"],
        rounds=rounds,
        epochs=nft.epochs,
        steps_per_epoch=nft.steps_per_epoch,
        clips_per_prompt=nft.clips_per_prompt,
        pairs_per_round=per_step * nft.steps_per_epoch,
    )


def fitted(arm: Arm, align: AlignConfig, ranks: int, pairs: int) -> Arm:
    """The arm adjusted to the number of available preference pairs."""
    phase = votes_phase(align, arm.phase.rounds, ranks, pairs)
    objective = arm.aligned.phases["gsb_dpo"].objective  # type: ignore[attr-defined]
    phases = {**arm.aligned.phases, "gsb_dpo": replace(phase, objective=objective)}
    return replace(arm, config=replace(arm.aligned, phases=phases))


def budget(objectives: ObjectivesConfig, align: AlignConfig) -> int:
    """Rollout budget of every arm, in clips."""
    return objectives.rounds * align.phases["nft"].clips_per_round


def store_sizes(clips: int, prompts: int) -> tuple[int, int]:
    """(prompts, clips of each) of a store of exactly `clips` clips with as many prompts as possible.

    Raises ValueError where fewer than two clips a prompt are left.
    """
    sizes = [
        (count, clips // count) for count in range(min(prompts, clips // 2), 0, -1) if clips % count == 0
    ]
    if not sizes:
        raise ValueError(
            f"a budget of {clips} clips makes no pair over {prompts} prompts; set objectives.rounds higher"
        )
    return sizes[0]


def optimizer_steps(phase: Phase) -> tuple[int, float]:
    """(optimizer steps of the alignment, clips per step)."""
    return phase.rounds * phase.epochs * phase.steps_per_epoch, phase.clips_per_round / phase.steps_per_epoch
