"""The alignment part of a recipe: a frozen tree, written as JSON for the ranks and read back strictly."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self, get_args

from finetune.advantage import AdvantageConfig, Floor, Route
from finetune.lora import LoraConfig
from finetune.objectives.base import Objective, Phase, RolloutPlan
from finetune.objectives.registry import SHIPPED, default_phases, objective_type, sections
from pretrain.config import (
    ADDED,
    BELOW_ONE,
    FROM_ONE,
    INLINE,
    MEMBER,
    NOT_NEGATIVE,
    POSITIVE,
    check_bounds,
    nearest,
)
from pretrain.generation.config import GenerateConfig
from pretrain.model.moments_format import MomentsFormat
from pretrain.recipe import ParallelConfig, check_grad_clip
from pretrain.sampling import SamplerConfig


@dataclass(frozen=True, kw_only=True)
class RubricConfig:
    """Weights and floors of the rewards, by the modality they are routed to.

    Higher is better: a reward that is better when lower is negated, and so is its floor.
    """

    video: Mapping[str, float] = field(default_factory=dict)
    audio: Mapping[str, float] = field(
        default_factory=lambda: {"intelligibility_pocketsphinx": 1.0, "sim_resemblyzer": 0.25}
    )
    sync: Mapping[str, float] = field(default_factory=lambda: {"sync_mini": 1.0})  # to both modalities
    floors: Mapping[str, Floor] = field(default_factory=dict, metadata={MEMBER: Floor})
    watched: tuple[str, ...] = ()  # judges: measured on the held-out prompts, never rewarded
    allow_prompt_blind: bool = False  # rewards that all see the clip alone, whatever the prompt says
    advantage: AdvantageConfig = field(default_factory=AdvantageConfig)

    def __post_init__(self) -> None:
        names = [name for part in (self.video, self.audio, self.sync) for name in part]
        if doubled := {name for name in names if names.count(name) > 1}:
            raise ValueError(
                f"rubric: {sorted(doubled)[0]!r} is under two of video, audio and sync; sync leads to both"
            )
        if not names:
            raise ValueError("rubric: no reward; name one under video, audio or sync")
        if rewarded := set(self.watched) & set(names):
            raise ValueError(f"rubric.watched: {min(rewarded)!r} is rewarded; a judge must stay apart")
        for name in self.floors.keys() - set(names):
            raise ValueError(f"rubric.floors: {name!r} has no weight; {nearest(name, names)}")
        self.routes()

    def routes(self) -> dict[str, Route]:
        """Route of each reward. Raises ValueError for a weight <= 0."""
        parts: dict[Literal["video", "audio", "both"], Mapping[str, float]] = {
            "video": self.video,
            "audio": self.audio,
            "both": self.sync,
        }
        return {
            name: Route(modality=modality, weight=weight, floor=self.floors.get(name))
            for modality, weights in parts.items()
            for name, weight in weights.items()
        }

    def weights(self) -> dict[str, float]:
        """Weight of each reward, on any route."""
        return {name: route.weight for name, route in self.routes().items()}


@dataclass(frozen=True, kw_only=True)
class StopConfig:
    """Early stopping: `prompts` held-out prompts are scored every `every` rounds, one clip each.

    A phase ends after `patience` scorings without a better rubric total (0 = never), and the run ends with
    the best weights seen.
    """

    prompts: int = 24
    every: int = 2
    patience: int = 0

    def __post_init__(self) -> None:
        if self.prompts < 0 or self.every < 1 or self.patience < 0:
            raise ValueError(
                f"stop: prompts and patience must not be negative and every at least 1, got {self}"
            )
        if self.patience and not self.prompts:
            raise ValueError("stop.patience needs prompts to score; set stop.prompts")


_NUMBERS = {
    **dict.fromkeys(("checkpoint_every", "keep_last", "max_flat_rounds", "max_skips"), FROM_ONE),
    "ema_decay": BELOW_ONE,
    "weight_decay": NOT_NEGATIVE,
    "samples": NOT_NEGATIVE,
    "fps": POSITIVE,
}


@dataclass(frozen=True, kw_only=True)
class AlignConfig:
    """All settings of alignment; `sequence` lists the objectives to run (finetune.objectives.registry).

    In files and overrides the members of `phases` are beside the other fields, under their objectives'
    names. It has the section of every shipped objective and of each in the sequence. Raises ValueError where
    parts do not fit.
    """

    sequence: tuple[str, ...] = ("nft",)
    phases: Mapping[str, Phase] = field(default_factory=default_phases, metadata={INLINE: sections})
    lora: LoraConfig = field(default_factory=LoraConfig)
    rubric: RubricConfig = field(default_factory=RubricConfig)
    # in addition to options set by the pipeline
    reward_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    guardrails: Mapping[str, float] = field(default_factory=dict)  # limits other than rewards.guardrails' own
    stop: StopConfig = field(default_factory=StopConfig)
    # the sampler that the model will be used with, for `nava align` generate.sampler: held-out prompts are
    # rolled out by it, and objectives train where it steps
    deployed: SamplerConfig = field(default_factory=lambda: GenerateConfig().sampler)
    curated_prompts: bool = True  # the pipeline gives the curated ones, False: all that are not held out
    seed: int = 0
    ema_decay: float = 0.9
    weight_decay: float = 1e-4
    grad_clip: float = 1.0  # as of pretraining
    # 8bit: AdamW's moments as codes with scales, as of pretraining; rows that 64 does not divide (B's, unless
    # it divides the rank) stay fp32
    moments: MomentsFormat = field(default="fp32", metadata={ADDED: True})
    mixed_precision: Literal["fp32", "bf16"] = "bf16"
    parallel: ParallelConfig = field(default_factory=lambda: ParallelConfig(shard_blocks=False))
    checkpoint_every: int = 1  # rounds
    keep_last: int = 2
    max_flat_rounds: int = 2  # rounds in a row without any contrast between clips end the run
    max_skips: int = 5  # optimizer steps in a row with a gradient that is not finite end the run
    samples: int = 4  # clips of the first held-out prompts that are logged whenever those are scored
    num_frames: int = 25  # of prompts that do not say
    fps: float = 24.0
    height: int = 64  # pixels
    width: int = 64

    def __post_init__(self) -> None:
        if not self.sequence:
            raise ValueError(f"sequence is empty; name algorithms: {', '.join(SHIPPED)}")
        for entry in self.sequence:
            objective_type(entry)
        known = default_phases(self.sequence)
        if taken := known.keys() & {item.name for item in dataclasses.fields(self)}:
            raise ValueError(f"sequence: an objective cannot be called {min(taken)!r}; rename it")
        # sections of objectives that the sequence does not name any longer are left out
        object.__setattr__(self, "phases", {name: self.phases.get(name, known[name]) for name in known})
        if self.mixed_precision not in ("fp32", "bf16"):
            raise ValueError(f"mixed_precision: expected fp32 or bf16, got {self.mixed_precision!r}")
        if self.moments not in get_args(MomentsFormat):
            raise ValueError(f"moments: expected fp32 or 8bit, got {self.moments!r}")
        if self.parallel.context < 1 or self.parallel.replicas < 1:
            raise ValueError(
                f"parallel.context and parallel.replicas must be at least 1, got {self.parallel}"
            )
        check_bounds(self, _NUMBERS)
        check_grad_clip(self.grad_clip)

    def objectives(self) -> tuple[Objective[Any], ...]:
        """Fresh ones, in the order of the sequence; an entry that comes twice is one objective."""
        types = {entry: objective_type(entry) for entry in self.sequence}
        made = {
            entry: each(self.phases[each.name].with_levels_of(self.deployed)) for entry, each in types.items()
        }
        return tuple(made[entry] for entry in self.sequence)

    def with_phase(self, name: str, **changes: Any) -> Self:
        """The config with fields of an objective's section changed."""
        return dataclasses.replace(
            self, phases={**self.phases, name: dataclasses.replace(self.phases[name], **changes)}
        )

    @property
    def num_rounds(self) -> int:
        return sum(objective.phase.rounds for objective in self.objectives())

    @property
    def needs_pairs(self) -> bool:
        """Some objective learns from preference pairs."""
        return any(objective.needs_pairs for objective in self.objectives())

    def held_out_plan(self) -> RolloutPlan:
        """One clip of each held-out prompt, by the deployed sampler."""
        phase = self.objectives()[0].phase
        return RolloutPlan("default", self.stop.prompts, 1, self.deployed, phase.rollout_batch)

    def check_objectives(self) -> None:
        """Raises ValueError if an objective cannot roll out as set, or learn from the rubric's rewards."""
        for objective in self.objectives():
            objective.rollout()
            objective.check_routes(self.rubric.routes(), self.rubric.advantage.routed)

    def check_ranks(self, world_size: int) -> None:
        """Raises ValueError if ranks do not divide into context groups, or a phase's groups over those, and
        as `check_objectives`."""
        self.check_objectives()
        parts = self.parallel.context * self.parallel.replicas
        if world_size % parts:
            raise ValueError(
                f"parallel.replicas {self.parallel.replicas} x parallel.context {self.parallel.context} does "
                f"not divide {world_size} ranks; choose divisors"
            )
        for objective in self.objectives():
            objective.check_ranks(world_size // self.parallel.context)
