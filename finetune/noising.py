"""Clean clips -> what the policies are asked at drawn levels; every draw is keyed by the clip, never by rank
or micro-batch."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from finetune.types import Key, Rollout, RolloutsWithAdvantage
from pretrain.flow.path import LevelConfig, draw_level, interpolate, level_weight
from pretrain.randomness import generator_for
from pretrain.sampling import Clock
from pretrain.types import Stream, Velocity


@dataclass(frozen=True)
class ClipNoise:
    """One level and one noise per clip."""

    levels: Tensor  # [B] fp32 in (0, 1]
    weight: Tensor  # [B] level weight
    video: Tensor  # [B, 48, F, H, W] standard normal
    audio: Tensor  # [B, 128, L]


def draw(rollout: Rollout, levels: LevelConfig, key: Key) -> ClipNoise:
    """Level and noise of each clip from (key, its sample id)."""
    ids, device = rollout.sample_ids.tolist(), rollout.video.device
    drawn = torch.tensor(
        [draw_level(levels, generator_for(*key, sample, "level")) for sample in ids], device=device
    )
    video, audio = (
        torch.stack(
            [torch.randn(clean.shape[1:], generator=generator_for(*key, sample, name)) for sample in ids]
        ).to(clean)
        for name, clean in (("video", rollout.video), ("audio", rollout.audio))
    )
    return ClipNoise(drawn, level_weight(drawn, levels), video, audio)


def noised(rollout: Rollout, drawn: ClipNoise) -> tuple[Stream, Stream]:
    """Both modalities of each clip at its level."""
    video = interpolate(rollout.video, drawn.video, over(drawn.levels, rollout.video))
    audio = interpolate(rollout.audio, drawn.audio, over(drawn.levels, rollout.audio))
    return streams_at(video, audio, drawn.levels, rollout.clock)


def usable(batch: RolloutsWithAdvantage, weights: bool = False) -> Rollout:
    """The clips with those that take no part zeroed: one of NaN would reach the weights even through a loss
    of 0. Raises ValueError where weights were given for advantages or the other way round."""
    if batch.advantage.are_weights != weights:
        wanted = (
            "weights: turn a round's advantages into them by rwr.group_weights"
            if weights
            else "advantages, got rwr's weights"
        )
        raise ValueError(f"this objective reads {wanted}")
    rollout, valid = batch.rollout, batch.advantage.valid

    def kept(latents: Tensor) -> Tensor:
        return torch.where(valid.view(-1, *[1] * (latents.ndim - 1)), latents, 0.0)

    steps = rollout.trajectory
    if steps is not None:
        steps = replace(
            steps,
            video=kept(steps.video),
            audio=kept(steps.audio),
            next_video=kept(steps.next_video),
            next_audio=kept(steps.next_audio),
            log_prob_video=kept(steps.log_prob_video),
            log_prob_audio=kept(steps.log_prob_audio),
        )
    return replace(rollout, video=kept(rollout.video), audio=kept(rollout.audio), trajectory=steps)


def streams_at(video: Tensor, audio: Tensor, levels: Tensor, clock: Clock) -> tuple[Stream, Stream]:
    """States at levels [B] as the policy's inputs, all of full length."""
    sigma = levels.float()[:, None]

    def stream(latents: Tensor, rate_hz: float) -> Stream:
        return Stream(latents, torch.full((len(latents),), latents.shape[2]), sigma, rate_hz, clock.video_hz)

    return stream(video, clock.video_hz), stream(audio, clock.audio_hz)


def both(velocity: Velocity) -> tuple[Tensor, Tensor]:
    """(video, audio) in fp32 or more. Raises ValueError where the policy left one out."""
    if velocity.video is None or velocity.audio is None:
        raise ValueError("the policy answered for one modality only; alignment needs both video and audio")
    video, audio = (
        part if part.dtype == torch.float64 else part.float() for part in (velocity.video, velocity.audio)
    )
    return video, audio


def mean_square(difference: Tensor) -> Tensor:
    """[B]: mean over a clip's elements, so that the modality with more of them does not weigh more."""
    return difference.square().flatten(1).mean(1)


def over(values: Tensor, latents: Tensor) -> Tensor:
    """[B] -> [B, 1, ...] in the latents' precision."""
    return values.to(latents.dtype).view(-1, *[1] * (latents.ndim - 1))


def metric(values: Tensor, counted: Tensor | None = None) -> Tensor:
    """(sum, how many) of per-clip values [B], fp64, without gradient; `counted` [B] bool leaves the others
    out."""
    counted = torch.ones_like(values, dtype=torch.bool) if counted is None else counted
    total = torch.where(counted, values.detach().double(), 0.0).sum()
    return torch.stack([total, counted.sum().double()])
