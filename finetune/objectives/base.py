"""Base classes of objectives: config section, rollouts, batches, loss, end-of-round hook.

The loop and the executors are independent of concrete objectives. An objective lives in one file: a `Phase`
subclass and an `Objective` subclass that names it as `phase_type`. A recipe names it in `align.sequence`, by
a shipped name or as "package.module:Objective", and sets its fields under `align.<name>`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

import torch
from torch import Tensor

from finetune.advantage import Route
from finetune.noising import Levels
from finetune.sde import StochasticSteps
from finetune.types import (
    Advantage,
    Key,
    LearningBatch,
    ObjectiveLoss,
    Policy,
    Role,
    RolloutsWithAdvantage,
)
from pretrain.codecs.base import Codecs
from pretrain.config import FROM_ONE, NOT_NEGATIVE, POSITIVE, check_bounds
from pretrain.flow.guidance import NO_GUIDANCE
from pretrain.randomness import generator_for
from pretrain.sampling import SamplerConfig


def check_exact_steps(sampler: SamplerConfig, where: str = "") -> None:
    """Raises ValueError for a sampler with a feature cache, whose steps have no likelihood of their own."""
    if sampler.cache.enabled:
        raise ValueError(
            f"{where}sampler.cache.sigma_drop {sampler.cache.sigma_drop:g}: a likelihood ratio needs the "
            "velocity of every step as the policy gives it; set it to 0, or take an objective that learns "
            "from finished clips (nft, awm, rwr)"
        )


def _unguided_sampler() -> SamplerConfig:
    return SamplerConfig(solver="euler", steps=16, shift=5.0, guidance=NO_GUIDANCE)


_COUNTS = (
    "rounds",
    "prompts_per_round",
    "clips_per_prompt",
    "epochs",
    "steps_per_epoch",
    "micro_batch",
    "rollout_batch",
)


def check_weights(config: object, names: Sequence[str], where: str) -> None:
    """Raises ValueError for a negative weight, and where those of both modalities are 0."""
    check_bounds(config, dict.fromkeys(names, NOT_NEGATIVE), where)
    if not any(getattr(config, name) for name in ("video_weight", "audio_weight")):
        raise ValueError(
            f"{where}video_weight and {where}audio_weight are both 0; raise one, or nothing is learnt"
        )


@dataclass(frozen=True, kw_only=True)
class Phase:
    """Fields common to all objectives.

    A round has epochs * steps_per_epoch optimizer steps, each with an equal part of every group. Raises
    ValueError for inconsistent numbers.
    """

    rounds: int = 10
    prompts_per_round: int = 24
    clips_per_prompt: int = 8  # K
    epochs: int = 4
    steps_per_epoch: int = 1
    micro_batch: int = 32  # clips per rank and forward pass
    lr: float = 3e-4
    sampler: SamplerConfig = field(default_factory=_unguided_sampler)
    rollout_batch: int = 96  # clips per rank and forward pass while sampling

    def __post_init__(self) -> None:
        check_bounds(self, {**dict.fromkeys(_COUNTS, FROM_ONE), "lr": POSITIVE})
        self._check_steps()

    @property
    def clips_per_round(self) -> int:
        return self.prompts_per_round * self.clips_per_prompt

    def with_levels_of(self, sampler: SamplerConfig) -> Self:
        """The phase whose objective, if it has `levels` without a shift, trains at those of `sampler`."""
        objective = getattr(self, "objective", None)
        levels = getattr(objective, "levels", None)
        if objective is None or not isinstance(levels, Levels) or levels.shift is not None:
            return self
        found = replace(objective, levels=replace(levels, shift=sampler.shift))
        return replace(self, **{"objective": found})

    def _check_steps(self) -> None:
        if self.clips_per_prompt % self.steps_per_epoch:
            raise ValueError(
                f"steps_per_epoch {self.steps_per_epoch} must divide clips_per_prompt "
                f"{self.clips_per_prompt}: every step takes an equal part of every group"
            )


@dataclass(frozen=True)
class RolloutPlan:
    """What to roll out: `clips_per_prompt` clips of `prompts` prompts by one policy role.

    Raises ValueError where the steps of a trajectory would come from a feature cache.
    """

    role: Role
    prompts: int
    clips_per_prompt: int
    sampler: SamplerConfig
    batch: int  # clips per rank and forward pass
    stochastic: StochasticSteps | None = None  # the steps to keep as a trajectory

    def __post_init__(self) -> None:
        if self.stochastic is not None:
            check_exact_steps(self.sampler)


@dataclass(frozen=True)
class Passes:
    """Forward passes of the model that a loss takes for one clip, in one epoch."""

    trained: float = 1.0  # with gradient
    frozen: float = 2.0  # without: of `old` and of the reference


class PreferenceFiles(Protocol):
    """Paths of preference data; implemented by AlignRun."""

    @property
    def pairs(self) -> Path | None: ...
    @property
    def clips(self) -> Path | None: ...
    @property
    def codec(self) -> Path: ...


class OldPolicy(Protocol):
    """Can update the policy `old`; implemented by every executor."""

    def update_old(self, decay: float) -> None:
        """old <- decay * old + (1 - decay) * default."""
        ...


PhaseT = TypeVar("PhaseT", bound=Phase)


class Objective(ABC, Generic[PhaseT]):
    """One phase of an alignment.

    All methods are called on every rank, except `prepare` and `given_batch`, which run on learning ranks
    only.
    """

    name: ClassVar[str]  # of its section in the recipe and of its metrics
    phase_type: ClassVar[type[Phase]]
    needs_pairs: ClassVar[bool] = False  # reads preference pairs and the store of their clips

    def __init__(self, phase: PhaseT) -> None:
        self.phase = phase

    def rollout(self) -> RolloutPlan | None:
        """What each round rolls out and scores; None for an objective with given batches (`given_batch`)."""
        return self._plan()

    def check_ranks(self, world_size: int) -> None:
        """Raises ValueError if a round's groups do not divide over the ranks."""
        self._check_divides("prompts_per_round", world_size, world_size)

    def check_routes(self, routes: Mapping[str, Route], routed: bool) -> None:
        """Raises ValueError if the loss cannot learn from these rewards.

        routed: each modality has the advantage of its own rewards (AdvantageConfig.routed).
        """

    def prepare(self, files: PreferenceFiles, codecs: Codecs | None) -> None:
        """Open inputs other than rollouts. Raises ValueError or FileNotFoundError in one line."""

    def given_batch(self, seed: int, index: int, rank: int, world_size: int) -> LearningBatch:
        """This rank's batch of round `index`, where nothing is rolled out."""
        raise NotImplementedError(f"{self.name}: neither rolls out nor has batches of its own")

    def given_facts(self) -> Mapping[str, float]:
        """Metrics of a round without rollouts."""
        return {}

    def targets(self, advantage: Advantage, groups: Tensor) -> Advantage:
        """Loss targets from the advantages of a round over all ranks. groups [B] int64. groups [B] int64."""
        return advantage

    def step_rows(self, batch: Any, key: Key) -> list[Tensor]:
        """This rank's rows of each optimizer step of an epoch: an equal, random part of every group.

        The draw is keyed by the group.
        """
        assert isinstance(batch, RolloutsWithAdvantage)
        size, groups = self.phase.clips_per_prompt, batch.rollout.groups
        orders = [
            start + torch.randperm(size, generator=generator_for(*key, int(groups[start]), "order"))
            for start in range(0, len(groups), size)
        ]
        return [part.flatten() for part in torch.stack(orders).chunk(self.phase.steps_per_epoch, dim=1)]

    @abstractmethod
    def count(self, batch: Any) -> Tensor:
        """Scalar fp64: contribution of the batch to the divisor of an optimizer step."""

    @abstractmethod
    def loss(self, policy: Policy, batch: Any, key: Key) -> ObjectiveLoss:
        """The SUM over what `count` counts, with gradient."""

    def passes(self) -> Passes:
        """What `loss` costs, for `nava plan --align`."""
        return Passes()

    def after_round(self, rounds: int, executor: OldPolicy) -> Mapping[str, float]:
        """Called after the updates of a round; `rounds` of this phase came before it. Returns metrics.

        Returns metrics.
        """
        return {}

    def _plan(self, role: Role = "default", stochastic: StochasticSteps | None = None) -> RolloutPlan:
        phase = self.phase
        return RolloutPlan(
            role,
            phase.prompts_per_round,
            phase.clips_per_prompt,
            phase.sampler,
            phase.rollout_batch,
            stochastic,
        )

    def _check_divides(self, field_name: str, parts: int, world_size: int) -> None:
        value = getattr(self.phase, field_name)
        if value % parts:
            raise ValueError(
                f"{self.name}.{field_name} {value} does not divide into {parts} equal parts "
                f"({world_size} ranks); change it"
            )


class TrustRegionObjective(Objective[PhaseT]):
    """An objective that is held near the policy that rolled out, `old`, which is copied after every round."""

    def after_round(self, rounds: int, executor: OldPolicy) -> Mapping[str, float]:
        executor.update_old(0.0)
        return {}
