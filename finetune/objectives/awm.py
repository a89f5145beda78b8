"""Advantage Weighted Matching: flow matching on the policy's own clips, times the signed advantage.

Xue et al. 2025, arXiv 2509.25050: minus the flow-matching error stands for a clip's log-likelihood, so that
the policy gradient has the loss of pretraining. One sigma s and one noise per clip, the same for both:

    l = s sqrt(mean((v - v*)^2)),  r = exp(l_old - l)
    loss = max(-A r, -A clip(r, 1 - c, 1 + c)) + k_old mean((v - v_old)^2) + k_ref mean((v - v_ref)^2)

for each modality, A clamped to [-max_advantage, max_advantage]. At v = v_old its gradient is A times that of
l: a good clip's error falls, a bad clip's grows. Nothing bounds that growth but the clip and the terms to
`old` and to the reference; peers report that it diverges without them.

This weighting of the error is the `huber` of the paper's code and of Flow-Factory (trainers/awm.py); the
paper's SD 3.5 runs take its `ghuber`, 4 s mse^(1/4). The gradient of the root does not grow with the error,
and l is of the size of sigma whatever the number of elements, so that one clip range serves both modalities.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from finetune.noising import Levels, draw, mean_square, metric, noised, usable, velocities
from finetune.objectives.anchors import Anchor, anchor, distance_metrics, held
from finetune.objectives.base import Passes, Phase, TrustRegionObjective, check_weights
from finetune.objectives.surrogate import clipped, clipped_loss
from finetune.types import Key, ObjectiveLoss, Policy, Role, RolloutsWithAdvantage
from pretrain.config import POSITIVE, check_bounds
from pretrain.flow.path import velocity_target

SMALLEST_SQUARE = 1e-10  # added to the mean square, whose root has no gradient at 0


@dataclass(frozen=True, kw_only=True)
class AwmConfig:
    """clip_range: c; old_weight and reference_weight: k_old and k_ref, weighted per modality like the rest.

    Raises ValueError for clip_range or max_advantage <= 0 or a negative weight.
    """

    clip_range: float = 0.02
    max_advantage: float = 2.0
    old_weight: float = 1.0
    reference_weight: float = 0.01
    video_weight: float = 3.0
    audio_weight: float = 1.0
    levels: Levels = field(default_factory=Levels)

    def __post_init__(self) -> None:
        check_bounds(self, {"clip_range": POSITIVE, "max_advantage": POSITIVE}, "awm: ")
        check_weights(self, ("old_weight", "reference_weight", "video_weight", "audio_weight"), "awm: ")


def matching_error(velocity: Tensor, target: Tensor, levels: Tensor) -> Tensor:
    """[B]: l of one modality. velocity, target [B, ...]; levels [B]."""
    return levels * (mean_square(velocity - target) + SMALLEST_SQUARE).sqrt()


def count(batch: RolloutsWithAdvantage, config: AwmConfig) -> Tensor:
    """Valid clips."""
    return batch.advantage.valid.sum().double()


def loss(policy: Policy, batch: RolloutsWithAdvantage, config: AwmConfig, key: Key) -> ObjectiveLoss:
    """Three forward passes (two without a reference term), one with gradient.

    Raises ValueError for rwr's weights.
    """
    rollout, given, valid = usable(batch), batch.advantage, batch.advantage.valid
    drawn = draw(rollout, config.levels, key)
    streams = noised(rollout, drawn)
    weights: dict[Role, float] = {"old": config.old_weight, "reference": config.reference_weight}
    anchors: dict[Role, Anchor] = {
        role: anchor(policy, role, weight, streams, rollout.conditioning)
        for role, weight in weights.items()
        if weight or role == "old"  # the ratio needs it without its term too
    }
    old = anchors["old"].velocities
    now = velocities(policy, "default", streams, rollout.conditioning)
    parts = (
        (rollout.video, drawn.video, given.video, config.video_weight, given.has_video, "video"),
        (rollout.audio, drawn.audio, given.audio, config.audio_weight, given.has_audio, "audio"),
    )
    metrics: dict[str, Tensor] = {}
    per_clip = torch.zeros_like(drawn.weight)
    for index, (clean, noise, advantage, share, spoken_of, name) in enumerate(parts):
        if spoken_of:
            target = velocity_target(clean, noise)
            errors = [matching_error(velocity[index], target, drawn.levels) for velocity in (old, now)]
            log_ratio = errors[0] - errors[1]
            terms = clipped_loss(log_ratio, advantage, config.clip_range, config.max_advantage)
            per_clip = per_clip + share * drawn.weight * terms
            held_back = clipped(log_ratio, advantage, config.clip_range)
            metrics[f"matching_{name}"] = metric(errors[1], valid)
            metrics[f"clip_fraction_{name}"] = metric(held_back.double(), valid)
            metrics[f"ratio_off_{name}"] = metric(torch.expm1(log_ratio).abs(), valid)
        per_clip, distances = held(per_clip, now[index], anchors, index, share)
        metrics |= distance_metrics(distances, name, valid)
    total = torch.where(valid, per_clip, 0.0).sum()
    return ObjectiveLoss(total, count(batch, config), {"loss": metric(per_clip, valid), **metrics})


@dataclass(frozen=True, kw_only=True)
class AwmPhase(Phase):
    """Rollouts without guidance; `old` is the policy that rolled out, copied after every round."""

    objective: AwmConfig = field(default_factory=AwmConfig)
    steps_per_epoch: int = 4
    lr: float = 2e-3


class Awm(TrustRegionObjective[AwmPhase]):
    name, phase_type = "awm", AwmPhase

    def count(self, batch: RolloutsWithAdvantage) -> Tensor:
        return count(batch, self.phase.objective)

    def loss(self, policy: Policy, batch: RolloutsWithAdvantage, key: Key) -> ObjectiveLoss:
        return loss(policy, batch, self.phase.objective, key)

    def passes(self) -> Passes:
        return Passes(frozen=1.0 + bool(self.phase.objective.reference_weight))
