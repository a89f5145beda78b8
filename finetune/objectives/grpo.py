"""Flow-GRPO: clipped policy ratios over stochastic steps, both modalities (alignment.md 2.2, 2.3, 2.8).

    joint:   r = exp(w dlp_v + (1 - w) dlp_a),  loss = max(-A r, -A clip(r))
    routed:  a ratio and an advantage for each modality,  loss = w loss_v + (1 - w) loss_a
    both:    + k (w mean((v - v_ref)^2) + (1 - w) the same of audio)

The log-ratios dlp are normalised (sde.normalised_log_ratio, GRPO-Guard's RatioNorm): where the old policy
took the step they are normal around 0 with the deviation rms(mu - mu_old), for a sound of 19 thousand
elements as for a video of 6 million, so that one clip range serves both and neither outweighs the joint
ratio. Means over elements alone would have 1/sqrt(N) of it, and a bias beyond that for the video. `old` is
copied at the start of every round; log-ratios are relative to it, also where a rollout on Ray is a version
older.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from finetune.advantage import Route
from finetune.noising import mean_square, metric, streams_at, usable, velocities
from finetune.objectives.base import (
    Passes,
    Phase,
    RolloutPlan,
    TrustRegionObjective,
    check_exact_steps,
)
from finetune.objectives.surrogate import clipped, clipped_loss
from finetune.sde import Kernel, StochasticSteps, joint_log_prob, normalised_log_ratio, replay
from finetune.types import Key, ObjectiveLoss, Policy, Rollout, RolloutsWithAdvantage, Trajectory
from pretrain.config import NOT_NEGATIVE, POSITIVE, SHARE, check_bounds
from pretrain.flow.guidance import NO_GUIDANCE


@dataclass(frozen=True, kw_only=True)
class GrpoConfig:
    """clip_range: in the unit of a state, as the normalised log-ratio; video_share: w; reference_weight: k.

    routed: separate ratio and advantage per modality; ratio_tolerance: of the on-policy check, on means over
    elements. Raises ValueError for values out of range.
    """

    clip_range: float = 4e-3
    max_advantage: float = 5.0
    video_share: float = 0.5
    reference_weight: float = 4e-2
    routed: bool = False
    ratio_tolerance: float = 1e-5

    def __post_init__(self) -> None:
        positive = dict.fromkeys(("clip_range", "max_advantage", "ratio_tolerance"), POSITIVE)
        shares = {"video_share": SHARE, "reference_weight": NOT_NEGATIVE}
        check_bounds(self, positive | shares, "grpo: ")


def check_on_policy(log_ratio: Tensor, tolerance: float = 1e-5) -> None:
    """Raises ValueError unless every ratio is 1 within `tolerance` (NaN fails).

    Before the first update the trained policy must equal the one that rolled out.
    """
    worst = float(torch.expm1(log_ratio.detach().double()).abs().max()) if log_ratio.numel() else 0.0
    if not worst <= tolerance:  # negated, so that NaN fails
        raise ValueError(
            f"not on policy before the first update: |ratio - 1| is {worst:.2e}, allowed {tolerance:.0e}; "
            "compare precision, guidance, levels and the adapters of rollout and training"
        )


def count(batch: RolloutsWithAdvantage, config: GrpoConfig) -> Tensor:
    """Valid clips times trained steps."""
    return batch.advantage.valid.sum().double() * _trajectory(batch.rollout).levels.shape[1]


def loss(policy: Policy, batch: RolloutsWithAdvantage, config: GrpoConfig, key: Key) -> ObjectiveLoss:
    """A forward pass per trained step, and one without gradient for each of `old` and the reference.

    `old` is not asked while the batch is on policy, nor the reference without its term; `key` is unused.

    Raises ValueError without a trajectory, if a batch marked on_policy is not, and for a joint ratio with two
    advantages.
    """
    rollout, given = usable(batch), batch.advantage
    steps = _trajectory(rollout)
    if not config.routed and not given.one_for_both:
        raise ValueError(
            "grpo: a joint ratio needs one advantage for both modalities; set grpo.routed, or do not route "
            "the rewards"
        )
    log_ratios, away = zip(
        *(_one_step(policy, batch, rollout, index, config) for index in range(steps.levels.shape[1])),
        strict=True,
    )
    video, audio = (torch.stack([ratios[part] for ratios in log_ratios], dim=1) for part in (0, 1))
    w = config.video_share
    if config.routed:
        terms = [
            (w * given.has_video, video, given.video[:, None], "video"),
            ((1 - w) * given.has_audio, audio, given.audio[:, None], "audio"),
        ]
    else:
        terms = [(1.0, joint_log_prob(video, audio, w), given.video[:, None], "joint")]
    valid = given.valid[:, None].expand_as(video)
    per_step = config.reference_weight * torch.stack(away, dim=1)
    metrics = {"from_reference": metric(torch.stack(away, dim=1), valid)}
    for share, log_ratio, advantage, name in terms:
        if share:
            per_step = per_step + share * clipped_loss(
                log_ratio, advantage, config.clip_range, config.max_advantage
            )
        metrics[f"clip_fraction_{name}"] = metric(
            clipped(log_ratio, advantage, config.clip_range).double(), valid
        )
        metrics[f"ratio_off_{name}"] = metric(torch.expm1(log_ratio).abs(), valid)
        metrics[f"ratio_bias_{name}"] = metric(torch.expm1(log_ratio), valid)
    total = torch.where(valid, per_step, 0.0).sum()
    return ObjectiveLoss(total, count(batch, config), {"loss": metric(per_step, valid), **metrics})


def _one_step(
    policy: Policy, batch: RolloutsWithAdvantage, rollout: Rollout, index: int, config: GrpoConfig
) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Log-ratios (video, audio) and the squared distance from the reference at one trained step, each [B]."""
    steps = _trajectory(rollout)
    levels, next_levels = steps.levels[:, index], steps.next_levels[:, index]
    streams = streams_at(steps.video[:, index], steps.audio[:, index], levels, rollout.rates, rollout.given)
    away = torch.zeros_like(steps.log_prob_video[:, index])
    now = velocities(policy, "default", streams, rollout.conditioning)
    if batch.on_policy:
        _check_step(batch, rollout, index, now, config)
        old = now
    else:
        with torch.no_grad():
            old = velocities(policy, "old", streams, rollout.conditioning)
    if config.reference_weight:
        with torch.no_grad():
            reference = velocities(policy, "reference", streams, rollout.conditioning)
        far_video, far_audio = (
            mean_square(velocity - before) for velocity, before in zip(now, reference, strict=True)
        )
        away = config.video_share * far_video + (1 - config.video_share) * far_audio
    reached = steps.next_video[:, index], steps.next_audio[:, index]
    video, audio = (
        normalised_log_ratio(
            steps.kernel, stream.latents, velocity, before, levels, next_levels, state, given
        )
        for stream, velocity, before, state, given in zip(
            streams, now, old, reached, (rollout.given, None), strict=True
        )
    )
    return (video, audio), away


def _check_step(
    batch: RolloutsWithAdvantage,
    rollout: Rollout,
    index: int,
    now: tuple[Tensor, Tensor],
    config: GrpoConfig,
) -> None:
    """`check_on_policy` of a step's stored log-probabilities."""
    steps, valid = _trajectory(rollout), batch.advantage.valid
    for name, velocity, given in zip(("video", "audio"), now, (rollout.given, None), strict=True):
        state, reached, known = (
            getattr(steps, field_name)[:, index] for field_name in (name, f"next_{name}", f"log_prob_{name}")
        )
        levels = steps.levels[:, index], steps.next_levels[:, index]
        found = replay(steps.kernel, state, velocity.detach(), *levels, reached, given)
        check_on_policy((found - known)[valid], config.ratio_tolerance)


def _trajectory(rollout: Rollout) -> Trajectory:
    if rollout.trajectory is None:
        raise ValueError("grpo: the rollout has no trajectory; sample it with stochastic steps")
    return rollout.trajectory


@dataclass(frozen=True, kw_only=True)
class GrpoPhase(Phase):
    """`window` stochastic steps at the same position for a whole group, among the first `first_steps`.

    All other steps of the sampler are Euler's.
    """

    objective: GrpoConfig = field(default_factory=lambda: GrpoConfig(routed=True))
    kernel: Kernel = field(default_factory=Kernel)
    window: int = 2
    first_steps: int = 10
    epochs: int = 2
    steps_per_epoch: int = 4
    lr: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.window <= self.first_steps <= self.sampler.steps - 1:
            got = f"window {self.window}, first_steps {self.first_steps}, sampler.steps {self.sampler.steps}"
            raise ValueError(
                "grpo: expected 1 <= window <= first_steps < sampler.steps (the last step is "
                f"deterministic), got {got}"
            )
        if self.sampler.solver != "euler" or self.sampler.guidance != NO_GUIDANCE:
            raise ValueError(
                "grpo: rollouts are of Euler steps without guidance, or the ratio is not that of the "
                "trained policy"
            )
        check_exact_steps(self.sampler, "grpo: ")


class Grpo(TrustRegionObjective[GrpoPhase]):
    name, phase_type = "grpo", GrpoPhase

    def rollout(self) -> RolloutPlan:
        phase = self.phase
        steps = StochasticSteps(kernel=phase.kernel, window=phase.window, first_steps=phase.first_steps)
        return self._plan(stochastic=steps)

    def check_routes(self, routes: Mapping[str, Route], routed: bool) -> None:
        apart = [name for name, route in routes.items() if route.modality != "both"]
        if routed and apart and not self.phase.objective.routed:
            raise ValueError(
                "grpo.objective.routed=false: a joint ratio needs one advantage for both modalities, but "
                f"{apart[0]} is about {routes[apart[0]].modality} alone; set "
                "align.grpo.objective.routed=true, or align.rubric.advantage.routed=false"
            )

    def count(self, batch: RolloutsWithAdvantage) -> Tensor:
        return count(batch, self.phase.objective)

    def loss(self, policy: Policy, batch: RolloutsWithAdvantage, key: Key) -> ObjectiveLoss:
        return loss(policy, batch, self.phase.objective, key)

    def passes(self) -> Passes:
        """`old` is not asked in the first of a round's optimizer steps, which is on policy."""
        phase = self.phase
        asked = 1.0 - 1.0 / (phase.epochs * phase.steps_per_epoch)
        return Passes(phase.window, phase.window * (asked + bool(phase.objective.reference_weight)))
