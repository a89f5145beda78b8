"""Reward-weighted regression: flow matching on the policy's own clips, weighted by reward (alignment.md 2.7).

Weights are a softmax over the group, scaled to mean 1 and clipped: all are positive, so alone it distils the
policy's own blurrier samples and collapses. It is therefore tied to the reference by a velocity term and may
be given clips out of the pretraining data beside the rollouts (`data_batch`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from finetune.noising import Levels, draw, mean_square, metric, noised, usable, velocities
from finetune.objectives.base import Objective, Phase
from finetune.types import Advantage, Key, ObjectiveLoss, Policy, Rollout, RolloutsWithAdvantage
from pretrain.flow.guidance import GuidanceScales
from pretrain.flow.path import velocity_target
from pretrain.sampling import SamplerConfig


@dataclass(frozen=True, kw_only=True)
class RwrConfig:
    """temperature and max_weight of the softmax over advantages; reference_weight: of mean((v - v_ref)^2).

    data_weight: weight of a data clip. Raises ValueError for values <= 0 (weights: < 0).
    """

    temperature: float = 0.5
    max_weight: float = 4.0
    reference_weight: float = 0.5
    data_weight: float = 1.0
    video_weight: float = 1.0
    audio_weight: float = 1.0
    levels: Levels = field(default_factory=Levels)

    def __post_init__(self) -> None:
        if self.temperature <= 0 or self.max_weight <= 0:
            raise ValueError(
                f"rwr: temperature and max_weight must be positive, got {self.temperature} and "
                f"{self.max_weight}"
            )
        if min(self.reference_weight, self.data_weight, self.video_weight, self.audio_weight) < 0:
            raise ValueError(
                "rwr: reference_weight, data_weight, video_weight and audio_weight must not be negative"
            )


def softmax_weights(
    advantage: Tensor, groups: Tensor, valid: Tensor, temperature: float, max_weight: float
) -> Tensor:
    """[B] >= 0, mean 1 over a group's valid clips before the clip at max_weight; 0 where not valid.

    Also 0 in a group without contrast in this modality, which would only distil its own samples.
    """
    index = torch.unique(groups, return_inverse=True)[1]
    size = int(index.max()) + 1 if len(index) else 0
    scores = torch.where(valid, advantage.double() / temperature, -torch.inf)

    def per_group(values: Tensor, reduce: str, start: float) -> Tensor:
        empty = torch.full((size,), start, dtype=torch.float64, device=values.device)
        return empty.scatter_reduce(0, index, values, reduce)

    top = per_group(scores, "amax", -torch.inf)
    low = per_group(torch.where(valid, scores, torch.inf), "amin", torch.inf)
    raised = torch.where(valid, torch.exp(scores - top[index]), 0.0)
    weights = (
        raised
        / per_group(raised, "sum", 0.0)[index].clamp_min(1e-300)
        * per_group(valid.double(), "sum", 0.0)[index]
    )
    return torch.where((top > low)[index] & valid, weights.clamp_max(max_weight), 0.0).to(advantage.dtype)


def group_weights(advantage: Advantage, groups: Tensor, config: RwrConfig) -> Advantage:
    """A round's advantages (gathered over all ranks) as the weights that `loss` reads. groups [B] int64.

    groups [B] int64.
    """
    video, audio = (
        softmax_weights(values, groups, advantage.valid, config.temperature, config.max_weight)
        for values in (advantage.video, advantage.audio)
    )
    return replace(advantage, video=video, audio=audio, are_weights=True)


def data_batch(rollout: Rollout, config: RwrConfig) -> RolloutsWithAdvantage:
    """Clips of the pretraining data with one weight, as a batch of this objective."""
    weight = torch.full((len(rollout.groups),), config.data_weight, device=rollout.video.device)
    valid = torch.ones_like(weight, dtype=torch.bool)
    return RolloutsWithAdvantage(
        rollout, Advantage(weight, weight, valid, contrast=0.0, skipped=0, are_weights=True)
    )


def rwr_terms(velocity: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """[B]: weighted flow-matching loss of one modality. velocity, target [B, ...]; weight [B]."""
    return weight * mean_square(velocity - target)


def count(batch: RolloutsWithAdvantage, config: RwrConfig) -> Tensor:
    """Valid clips."""
    return batch.advantage.valid.sum().double()


def loss(policy: Policy, batch: RolloutsWithAdvantage, config: RwrConfig, key: Key) -> ObjectiveLoss:
    """Two forward passes (one without a reference term). Raises ValueError for advantages instead of weights.

    Raises ValueError on advantages that are not weights.
    """
    rollout, given, valid = usable(batch, weights=True), batch.advantage, batch.advantage.valid
    drawn = draw(rollout, config.levels, key)
    streams = noised(rollout, drawn)
    reference = None
    if config.reference_weight:
        with torch.no_grad():
            reference = velocities(policy, "reference", streams, rollout.conditioning)
    now = velocities(policy, "default", streams, rollout.conditioning)
    parts = (
        (rollout.video, drawn.video, given.video, config.video_weight, given.has_video, "video"),
        (rollout.audio, drawn.audio, given.audio, config.audio_weight, given.has_audio, "audio"),
    )
    metrics: dict[str, Tensor] = {}
    per_clip = torch.zeros_like(drawn.weight)
    for index, (clean, noise, weight, share, spoken_of, name) in enumerate(parts):
        if spoken_of:
            terms = rwr_terms(now[index], velocity_target(clean, noise), weight)
            per_clip = per_clip + share * drawn.weight * terms
            metrics[f"regression_{name}"] = metric(terms, valid)
            metrics[f"weight_squared_{name}"] = metric(weight.square(), valid)
        if reference is not None:
            away = mean_square(now[index] - reference[index])
            per_clip = per_clip + config.reference_weight * share * away
            metrics[f"from_reference_{name}"] = metric(away, valid)
    total = torch.where(valid, per_clip, 0.0).sum()
    return ObjectiveLoss(total, count(batch, config), {"loss": metric(per_clip, valid), **metrics})


@dataclass(frozen=True, kw_only=True)
class RwrPhase(Phase):
    """Guided rollouts, because unguided ones would distil blurrier samples (DESIGN.md, decision 8).

    Measured on the mini, quality still falls: the distilled guidance is applied again at evaluation
    (docs/study/objectives.md).
    """

    objective: RwrConfig = field(default_factory=RwrConfig)
    epochs: int = 2
    steps_per_epoch: int = 4
    lr: float = 1e-3
    sampler: SamplerConfig = field(
        default_factory=lambda: SamplerConfig(
            solver="euler",
            steps=16,
            shift=5.0,
            guidance=GuidanceScales(
                text_video=0.0,
                text_audio=2.0,
                align_video=2.0,
                align_audio=0.0,
                timbre_audio=0.0,
                timbre_video=0.0,
            ),
        )
    )


class Rwr(Objective[RwrPhase]):
    name, phase_type = "rwr", RwrPhase

    def targets(self, advantage: Advantage, groups: Tensor) -> Advantage:
        return group_weights(advantage, groups, self.phase.objective)

    def count(self, batch: RolloutsWithAdvantage) -> Tensor:
        return count(batch, self.phase.objective)

    def loss(self, policy: Policy, batch: RolloutsWithAdvantage, key: Key) -> ObjectiveLoss:
        return loss(policy, batch, self.phase.objective, key)
