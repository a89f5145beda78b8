"""Reward-weighted regression: flow matching on the policy's own clips, weighted by reward (alignment.md 2.7).

    w = softmax(A / temperature) over the group, times its size, at most max_weight
    loss = (w - mean_g w) mean((v - v*)^2) + k_old mean((v - v_old)^2) + k_ref mean((v - v_ref)^2)

The gradient of E[w l] is that of E[(w - 1) l], which the reward is in, plus that of E[l], which distils the
policy's own samples and their guidance whatever the reward is; on the mini it is the larger and the more
consistent of the two, and the policy collapses. `centred` weights sum to 0 over each group, which leaves the
first part alone. A negative weight has no optimum, hence the trust region around the policy that rolled out.
`weighted` leaves w as it is (Peng et al. 2019, arXiv 1910.00177; online for flow matching: Fan et al. 2025,
ORW-CFM-W2).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from finetune.advantage import ClipGroups
from finetune.noising import Levels, draw, mean_square, metric, noised, usable, velocities
from finetune.objectives.anchors import Anchor, anchor, distance_metrics, held
from finetune.objectives.base import Passes, Phase, TrustRegionObjective, check_weights
from finetune.types import Advantage, Key, ObjectiveLoss, Policy, Role, RolloutsWithAdvantage
from pretrain.config import POSITIVE, check_bounds
from pretrain.flow.guidance import GuidanceScales
from pretrain.flow.path import velocity_target
from pretrain.sampling import SamplerConfig


@dataclass(frozen=True, kw_only=True)
class RwrConfig:
    """form: weights less their group's mean, or as they are; temperature and max_weight: of the softmax.

    old_weight: of mean((v - v_old)^2); reference_weight: of mean((v - v_ref)^2); both are weighted per
    modality like the rest. Raises ValueError for an unknown form and for values <= 0 (weights: < 0).
    """

    form: Literal["centred", "weighted"] = "centred"
    temperature: float = 0.5
    max_weight: float = 4.0
    old_weight: float = 1.0
    reference_weight: float = 0.0
    video_weight: float = 1.0
    audio_weight: float = 1.0
    levels: Levels = field(default_factory=Levels)

    def __post_init__(self) -> None:
        if self.form not in ("centred", "weighted"):
            raise ValueError(f"rwr: form must be centred or weighted, got {self.form!r}")
        check_bounds(self, {"temperature": POSITIVE, "max_weight": POSITIVE}, "rwr: ")
        check_weights(self, ("old_weight", "reference_weight", "video_weight", "audio_weight"), "rwr: ")


def softmax_weights(
    advantage: Tensor, groups: Tensor, valid: Tensor, temperature: float, max_weight: float
) -> Tensor:
    """[B] >= 0, mean 1 over a group's valid clips before the clip at max_weight; 0 where not valid.

    Also 0 in a group without contrast in this modality, which would only distil its own samples.
    """
    cells, scores = ClipGroups.of(groups), advantage.double() / temperature
    top = cells.of_clips(torch.where(valid, scores, -torch.inf), "amax", -torch.inf)
    low = cells.of_clips(torch.where(valid, scores, torch.inf), "amin", torch.inf)
    raised = torch.where(valid, torch.exp(scores - top), 0.0)
    number = cells.of_clips(valid.double(), "sum")
    weights = raised / cells.of_clips(raised, "sum").clamp_min(1e-300) * number
    return torch.where((top > low) & valid, weights.clamp_max(max_weight), 0.0).to(advantage.dtype)


def centred_weights(weights: Tensor, groups: Tensor, valid: Tensor) -> Tensor:
    """[B]: weights less the mean over their group's valid clips, so that it sums to 0; 0 if not valid."""
    cells, exact = ClipGroups.of(groups), weights.double()
    number = cells.of_clips(valid.double(), "sum").clamp_min(1)
    centred = exact - cells.of_clips(torch.where(valid, exact, 0.0), "sum") / number
    return torch.where(valid, centred, 0.0).to(weights.dtype)


def group_weights(advantage: Advantage, groups: Tensor, config: RwrConfig) -> Advantage:
    """A round's advantages (gathered over all ranks) as the weights that `loss` reads. groups [B] int64."""
    video, audio = (
        softmax_weights(values, groups, advantage.valid, config.temperature, config.max_weight)
        for values in (advantage.video, advantage.audio)
    )
    if config.form == "centred":
        video, audio = (centred_weights(weights, groups, advantage.valid) for weights in (video, audio))
    return replace(advantage, video=video, audio=audio, are_weights=True)


def rwr_terms(velocity: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """[B]: weighted flow-matching loss of one modality. velocity, target [B, ...]; weight [B]."""
    return weight * mean_square(velocity - target)


def count(batch: RolloutsWithAdvantage, config: RwrConfig) -> Tensor:
    """Valid clips."""
    return batch.advantage.valid.sum().double()


def loss(policy: Policy, batch: RolloutsWithAdvantage, config: RwrConfig, key: Key) -> ObjectiveLoss:
    """A forward pass, and one without gradient for each of `old` and `reference` that has a weight.

    Raises ValueError on advantages that are not weights.
    """
    rollout, given, valid = usable(batch, weights=True), batch.advantage, batch.advantage.valid
    drawn = draw(rollout, config.levels, key)
    streams = noised(rollout, drawn)
    weights: dict[Role, float] = {"old": config.old_weight, "reference": config.reference_weight}
    anchors: dict[Role, Anchor] = {
        role: anchor(policy, role, weight, streams, rollout.conditioning)
        for role, weight in weights.items()
        if weight
    }
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
        per_clip, distances = held(per_clip, now[index], anchors, index, share)
        metrics |= distance_metrics(distances, name, valid)
    total = torch.where(valid, per_clip, 0.0).sum()
    return ObjectiveLoss(total, count(batch, config), {"loss": metric(per_clip, valid), **metrics})


@dataclass(frozen=True, kw_only=True)
class RwrPhase(Phase):
    """Guided rollouts; `old` is the policy that rolled out, copied after every round.

    The clips are guided as evaluation's are, and the centred weights compare them with each other only: what
    guidance has done to all of them is not distilled.
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


class Rwr(TrustRegionObjective[RwrPhase]):
    name, phase_type = "rwr", RwrPhase

    def targets(self, advantage: Advantage, groups: Tensor) -> Advantage:
        return group_weights(advantage, groups, self.phase.objective)

    def count(self, batch: RolloutsWithAdvantage) -> Tensor:
        return count(batch, self.phase.objective)

    def loss(self, policy: Policy, batch: RolloutsWithAdvantage, key: Key) -> ObjectiveLoss:
        return loss(policy, batch, self.phase.objective, key)

    def passes(self) -> Passes:
        config = self.phase.objective
        return Passes(frozen=float(bool(config.old_weight) + bool(config.reference_weight)))
