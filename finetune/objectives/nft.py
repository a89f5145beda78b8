"""DiffusionNFT: implicit positive and negative policies around `old`, on clean estimates (alignment.md 2.5).

    v+ = b v + (1 - b) v_old,  v- = (1 + b) v_old - b v,  e = (x_s - s v) - x0
    r = clamp(A / c) / 2 + 1/2,  w = mean|e| without gradient
    loss = c (r mean(e+^2) / w+ + (1 - r) mean(e-^2) / w-) / b + k mean((v - v_ref)^2)

At v = v_old its gradient is A times that of mean(e^2) / w, although its value does not depend on A.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from finetune.noising import Levels, draw, mean_square, metric, noised, over, usable, velocities
from finetune.objectives.base import Objective, OldPolicy, Passes, Phase, RolloutPlan, check_weights
from finetune.types import Key, ObjectiveLoss, Policy, RolloutsWithAdvantage
from pretrain.config import BELOW_ONE, NOT_NEGATIVE, POSITIVE, check_bounds

SMALLEST_ERROR = 1e-5


@dataclass(frozen=True, kw_only=True)
class NftConfig:
    """beta: distance of the implicit policies from `old`; max_advantage: c; reference_weight: k.

    The reference term is weighted per modality like the rest. Raises ValueError for beta or c <= 0 or a
    negative weight.
    """

    beta: float = 1.0
    max_advantage: float = 5.0
    reference_weight: float = 1e-2
    video_weight: float = 1.0
    audio_weight: float = 1.0
    levels: Levels = field(default_factory=Levels)

    def __post_init__(self) -> None:
        check_bounds(self, {"beta": POSITIVE, "max_advantage": POSITIVE}, "nft: ")
        check_weights(self, ("reference_weight", "video_weight", "audio_weight"), "nft: ")


def nft_terms(
    velocity: Tensor,
    old: Tensor,
    state: Tensor,
    clean: Tensor,
    levels: Tensor,
    advantage: Tensor,
    beta: float,
    max_advantage: float,
) -> Tensor:
    """[B]: the contrastive loss of one modality; levels, advantage [B], the others [B, ...]."""
    better = beta * velocity + (1 - beta) * old
    worse = (1 + beta) * old - beta * velocity
    share = (advantage / max_advantage).clamp(-1, 1) / 2 + 0.5
    positive, negative = (_normalised_error(policy, state, clean, levels) for policy in (better, worse))
    return max_advantage * (share * positive + (1 - share) * negative) / beta


def _normalised_error(velocity: Tensor, state: Tensor, clean: Tensor, levels: Tensor) -> Tensor:
    """[B]: mean(e^2) / w; w is one number per clip, so it divides the mean."""
    error = (state - over(levels, state) * velocity) - clean
    with torch.no_grad():  # the weight is a constant, otherwise scaling the error would change nothing
        size = error.double().abs().flatten(1).mean(1).clamp_min(SMALLEST_ERROR)
    return mean_square(error) / size


def count(batch: RolloutsWithAdvantage, config: NftConfig) -> Tensor:
    """Valid clips."""
    return batch.advantage.valid.sum().double()


def loss(policy: Policy, batch: RolloutsWithAdvantage, config: NftConfig, key: Key) -> ObjectiveLoss:
    """Three forward passes (two without a reference term), one with gradient. Raises ValueError for rwr
    weights.
    """
    rollout, given, valid = usable(batch), batch.advantage, batch.advantage.valid
    drawn = draw(rollout, config.levels, key)
    streams = video, audio = noised(rollout, drawn)
    with torch.no_grad():
        old = velocities(policy, "old", streams, rollout.conditioning)
        reference = (
            velocities(policy, "reference", streams, rollout.conditioning)
            if config.reference_weight
            else None
        )
    now = velocities(policy, "default", streams, rollout.conditioning)
    parts = (
        (video.latents, rollout.video, given.video, config.video_weight, given.has_video, "video"),
        (audio.latents, rollout.audio, given.audio, config.audio_weight, given.has_audio, "audio"),
    )
    metrics: dict[str, Tensor] = {}
    per_clip = torch.zeros_like(drawn.weight, dtype=torch.float64)
    for index, (state, clean, advantage, weight, spoken_of, name) in enumerate(parts):
        if spoken_of:
            terms = nft_terms(
                now[index],
                old[index],
                state,
                clean,
                drawn.levels,
                advantage,
                config.beta,
                config.max_advantage,
            )
            per_clip = per_clip + weight * drawn.weight * terms
            metrics[f"nft_{name}"] = metric(terms, valid)
        metrics[f"from_old_{name}"] = metric(mean_square(now[index] - old[index]), valid)
        if reference is not None:
            away = mean_square(now[index] - reference[index])
            per_clip = per_clip + config.reference_weight * weight * away
            metrics[f"from_reference_{name}"] = metric(away, valid)
    total = torch.where(valid, per_clip, 0.0).sum()
    return ObjectiveLoss(total, count(batch, config), {"loss": metric(per_clip, valid), **metrics})


@dataclass(frozen=True, kw_only=True)
class OldSchedule:
    """Decay of `old` at update n: min(slope (n - flat_steps), limit), 0 before (alignment.md 2.5).

    NVlabs' types: 0 = (0, 0, 0), a copy every time; 1 = (0, 0.001, 0.5); 2 = (75, 0.0075, 0.999). Raises
    ValueError on a limit outside [0, 1) or negative numbers.
    """

    flat_steps: int = 0
    slope: float = 0.001
    limit: float = 0.5

    def __post_init__(self) -> None:
        check_bounds(self, {"flat_steps": NOT_NEGATIVE, "slope": NOT_NEGATIVE, "limit": BELOW_ONE}, "old.")

    def decay(self, update: int) -> float:
        """Decay of update 0, 1, 2, ..."""
        return min(self.slope * max(update - self.flat_steps, 0), self.limit)


@dataclass(frozen=True, kw_only=True)
class NftPhase(Phase):
    """`old` rolls out and follows `default` once per round.

    max_advantage bounds what a round can change: its loss is least at v_old + A / max_advantage (v* - v_old).
    Measured on the mini: at 5, right for hundreds of rounds, the distance from `old` saturates at the same
    value for lr 1e-3 and 3e-3; ten rounds need 1.
    """

    objective: NftConfig = field(default_factory=lambda: NftConfig(max_advantage=1.0))
    steps_per_epoch: int = 4
    lr: float = 1e-3
    old: OldSchedule = field(default_factory=lambda: OldSchedule(slope=0.1, limit=0.5))


class Nft(Objective[NftPhase]):
    name, phase_type = "nft", NftPhase

    def rollout(self) -> RolloutPlan:
        return self._plan("old")

    def count(self, batch: RolloutsWithAdvantage) -> Tensor:
        return count(batch, self.phase.objective)

    def loss(self, policy: Policy, batch: RolloutsWithAdvantage, key: Key) -> ObjectiveLoss:
        return loss(policy, batch, self.phase.objective, key)

    def passes(self) -> Passes:
        return Passes(frozen=1.0 + bool(self.phase.objective.reference_weight))

    def after_round(self, rounds: int, executor: OldPolicy) -> Mapping[str, float]:
        decay = self.phase.old.decay(rounds)
        executor.update_old(decay)
        return {"old_decay": decay}
