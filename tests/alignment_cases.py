"""Small policies and batches for tests of alignment: every gradient can be worked out by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from model_cases import conditioning, present
from torch import Tensor

from finetune.sde import Kernel, step
from finetune.types import (
    Advantage,
    Key,
    ObjectiveLoss,
    Role,
    Rollout,
    RolloutsWithAdvantage,
    Trajectory,
    take,
)
from pretrain.sampling import LatentRates
from pretrain.types import Conditioning, Stream, Velocity

Gains = tuple[float, float]

KEY: Key = (7, 0, 0)
CLOCK = LatentRates(6.0, 25.0)
VIDEO, AUDIO = (3, 1, 10, 10), (1, 1)  # 300 elements of video to 1 of audio


class GainPolicy:
    """v = gain * state + level, one gain for each role and modality; those of `default` are trained."""

    def __init__(self, default: Gains, old: Gains = (0.3, 0.3), reference: Gains = (0.3, 0.3)) -> None:
        self.default = [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in default]
        self.gains: dict[str, Any] = {"default": self.default, "old": old, "reference": reference}
        self.asked: list[Role] = []

    def velocity(
        self, role: Role, video: Stream | None, audio: Stream | None, conditioning: Conditioning
    ) -> Velocity:
        self.asked.append(role)
        streams = (present(video), present(audio))
        parts = [
            gain * stream.latents + stream.sigma.to(stream.latents).view(-1, *[1] * (stream.latents.ndim - 1))
            for gain, stream in zip(self.gains[role], streams, strict=True)
        ]
        return Velocity(*parts)

    def gradients(self, loss: Tensor) -> Gains:
        """Of the two trained gains; 0 where the loss does not depend on one."""
        found = torch.autograd.grad(loss, self.default, allow_unused=True)
        return tuple(0.0 if part is None else float(part) for part in found)  # type: ignore[return-value]


class FreePolicy:
    """Answers with given tensors per role, whatever it is asked."""

    def __init__(self, **answers: Velocity) -> None:
        self.answers = answers

    def velocity(
        self, role: Role, video: Stream | None, audio: Stream | None, conditioning: Conditioning
    ) -> Velocity:
        return self.answers[role]


def rollout(
    batch: int = 4,
    video: tuple[int, ...] = VIDEO,
    audio: tuple[int, ...] = AUDIO,
    seed: int = 0,
    first_id: int = 100,
) -> Rollout:
    generator = torch.Generator().manual_seed(seed)
    return Rollout(
        video=torch.randn(batch, *video, generator=generator, dtype=torch.float64),
        audio=torch.randn(batch, *audio, generator=generator, dtype=torch.float64),
        conditioning=conditioning(batch),
        groups=torch.arange(batch) // 2,
        sample_ids=torch.arange(first_id, first_id + batch),
        rates=CLOCK,
    )


def advantage(
    video: list[float], audio: list[float], valid: list[bool] | None = None, **more: Any
) -> Advantage:
    kept = torch.tensor(valid or [True] * len(video))
    return Advantage(
        torch.tensor(video).double(), torch.tensor(audio).double(), kept, contrast=1.0, skipped=0, **more
    )


def with_trajectory(
    clips: Rollout, policy: GainPolicy, kernel: Kernel, levels: tuple[float, ...] = (0.9, 0.7, 0.4)
) -> Rollout:
    """The clips with stochastic steps of `policy` from their latents as first states."""
    generator = torch.Generator().manual_seed(5)
    video, audio, kept = clips.video, clips.audio, []
    table = torch.tensor(levels, dtype=torch.float64).expand(len(video), -1)
    for index in range(len(levels) - 1):
        now, then = table[:, index], table[:, index + 1]
        states = [
            Stream(x, torch.full((len(x),), x.shape[2]), now.float()[:, None], 6.0, 6.0)
            for x in (video, audio)
        ]
        answer = policy.velocity("default", states[0], states[1], clips.conditioning)
        steps = [
            step(
                kernel,
                x,
                present(v).detach(),
                now,
                then,
                torch.randn(x.shape, generator=generator, dtype=x.dtype),
            )
            for x, v in ((video, answer.video), (audio, answer.audio))
        ]
        kept.append(
            (video, audio, steps[0].next_state, steps[1].next_state, steps[0].log_prob, steps[1].log_prob)
        )
        video, audio = steps[0].next_state, steps[1].next_state
    before_v, before_a, after_v, after_a, lp_v, lp_a = (
        torch.stack(parts, dim=1) for parts in zip(*kept, strict=True)
    )
    policy.asked.clear()
    return replace(
        clips,
        trajectory=Trajectory(
            kernel, before_v, before_a, after_v, after_a, table[:, :-1], table[:, 1:], lp_v, lp_a
        ),
    )


def assert_parts_add_up(
    loss: Callable[..., ObjectiveLoss],
    count: Callable[..., Tensor],
    make: Callable[[], GainPolicy],
    batch: Any,
    config: Any,
) -> None:
    """One rank with all rows = two ranks with some rows each, in whatever order: loss, gradient, count and
    metrics."""
    whole_policy, part_policy = make(), make()
    whole = loss(whole_policy, batch, config, KEY)
    parts = [loss(part_policy, take(batch, torch.tensor(rows)), config, KEY) for rows in ([3, 0], [1], [2])]
    together = sum((part.loss for part in parts), torch.zeros(()))
    torch.testing.assert_close(together, whole.loss, check_dtype=False, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(
        torch.tensor(part_policy.gradients(together)),
        torch.tensor(whole_policy.gradients(whole.loss)),
        rtol=1e-8,
        atol=1e-12,
    )
    assert sum(float(part.count) for part in parts) == float(whole.count) == float(count(batch, config))
    for name, value in whole.metrics.items():
        torch.testing.assert_close(
            torch.stack([part.metrics[name] for part in parts]).sum(0), value, rtol=1e-9, atol=1e-12
        )


def scored(clips: Rollout, given: Advantage, on_policy: bool = False) -> RolloutsWithAdvantage:
    return RolloutsWithAdvantage(clips, given, on_policy)
