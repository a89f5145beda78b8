"""Noised clips at drawn sigmas (noise levels) as policy inputs; draws are keyed by clip, not by rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from finetune.sde import first_latents
from finetune.types import Key, Policy, Role, Rollout, RolloutsWithAdvantage
from pretrain.flow.path import LevelConfig, draw_sigma, interpolate, sigma_weight
from pretrain.randomness import generator_for
from pretrain.sampling import LatentRates
from pretrain.types import Conditioning, Stream, Velocity, sent


@dataclass(frozen=True, kw_only=True)
class Levels:
    """Sigmas that an objective trains at, as pretrain.flow.path.LevelConfig; flat weights by default.

    shift: None = that of the deployed sampler (AlignConfig.deployed), so that training takes place where that
    sampler steps.
    """

    draw: Literal["release", "logit_normal"] = "release"
    weight: Literal["release", "flat"] = "flat"
    shift: float | None = None
    logit_mean: float = 0.0
    logit_std: float = 1.0

    def __post_init__(self) -> None:
        (self if self.shift is not None else replace(self, shift=1.0)).config()

    def config(self) -> LevelConfig:
        """Raises ValueError as LevelConfig, and without a shift."""
        if self.shift is None:
            raise ValueError("levels.shift is not set; give one, or take the deployed sampler's")
        return LevelConfig(
            draw=self.draw,
            weight=self.weight,
            shift=self.shift,
            logit_mean=self.logit_mean,
            logit_std=self.logit_std,
        )


@dataclass(frozen=True)
class ClipNoise:
    """One sigma and one noise per clip."""

    levels: Tensor  # [B] fp32 in (0, 1]
    weight: Tensor  # [B] level weight
    video: Tensor  # [B, 48, F, H, W] standard normal
    audio: Tensor  # [B, 128, L]


def draw(rollout: Rollout, levels: Levels, key: Key) -> ClipNoise:
    """Sigma and noise of each clip from (key, its sample id).

    At a given first frame the noise is the clean latents: it stays clean, and its velocity target is 0.
    """
    ids, device, config = rollout.sample_ids.tolist(), rollout.video.device, levels.config()
    drawn = torch.tensor([draw_sigma(config, generator_for(*key, sample, "level")) for sample in ids])
    video, audio = (
        noise_like(clean, [(*key, sample, name) for sample in ids])
        for name, clean in (("video", rollout.video), ("audio", rollout.audio))
    )
    if rollout.given is not None:
        video = torch.where(first_latents(rollout.given, video), rollout.video, video)
    return ClipNoise(sent(drawn, device), sent(sigma_weight(drawn, config), device), video, audio)


def noise_like(latents: Tensor, keys: Sequence[Key]) -> Tensor:
    """Standard normal noise shaped like latents [B, ...], each clip's drawn on the host by its key."""
    drawn = [torch.randn(latents.shape[1:], generator=generator_for(*key)) for key in keys]
    return sent(torch.stack(drawn).to(latents.dtype), latents.device)


def noised(rollout: Rollout, drawn: ClipNoise) -> tuple[Stream, Stream]:
    """Both modalities of each clip at its sigma."""
    video = interpolate(rollout.video, drawn.video, over(drawn.levels, rollout.video))
    audio = interpolate(rollout.audio, drawn.audio, over(drawn.levels, rollout.audio))
    return streams_at(video, audio, drawn.levels, rollout.rates, rollout.given)


def usable(batch: RolloutsWithAdvantage, weights: bool = False) -> Rollout:
    """Copy with masked clips zeroed, because a NaN would reach the weights even through a loss of 0.

    Raises ValueError if weights were given for advantages or vice versa.
    """
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
    return rollout.changed(video=kept(rollout.video), audio=kept(rollout.audio), trajectory=steps)


def streams_at(
    video: Tensor, audio: Tensor, levels: Tensor, rates: LatentRates, given: Tensor | None = None
) -> tuple[Stream, Stream]:
    """States at sigmas [B] as the policy's inputs, all of full length.

    given: [B] bool, clips whose first latent frame is clean; None = no clip. Levels may be on the host.
    """
    sigma = sent(levels.float(), video.device)[:, None]
    of_video = sigma
    if given is not None:
        of_video = sigma.repeat(1, video.shape[2])
        of_video[:, 0] = torch.where(given, 0.0, of_video[:, 0])

    def stream(latents: Tensor, sigma: Tensor, rate_hz: float) -> Stream:
        return Stream(latents, torch.full((len(latents),), latents.shape[2]), sigma, rate_hz, rates.video_hz)

    return stream(video, of_video, rates.video_hz), stream(audio, sigma, rates.audio_hz)


def velocities(
    policy: Policy, role: Role, streams: tuple[Stream, Stream], conditioning: Conditioning
) -> tuple[Tensor, Tensor]:
    """The policy's (video, audio) velocities at noised clips, in fp32 or higher.

    Exactly 0 at a clean first frame (sigma 0, as `streams_at` makes it), whatever the policy answers there:
    with a velocity target of 0, no objective has a loss or a gradient from it.
    """
    video, audio = both(policy.velocity(role, *streams, conditioning))
    sigma = streams[0].sigma
    if sigma.shape[1] == video.shape[2]:  # one for each frame
        video = torch.where(first_latents(sigma[:, 0] == 0, video), 0.0, video)
    return video, audio


def both(velocity: Velocity) -> tuple[Tensor, Tensor]:
    """(video, audio) in fp32 or higher. Raises ValueError if the policy omitted one."""
    if velocity.video is None or velocity.audio is None:
        raise ValueError("the policy answered for one modality only; alignment needs both video and audio")
    video, audio = (
        part if part.dtype == torch.float64 else part.float() for part in (velocity.video, velocity.audio)
    )
    return video, audio


def mean_square(difference: Tensor) -> Tensor:
    """[B]: mean over a clip's elements, so that the larger modality has no larger weight.

    A given first frame counts as elements without difference.
    """
    return difference.square().flatten(1).mean(1)


def over(values: Tensor, latents: Tensor) -> Tensor:
    """[B] -> [B, 1, ...] in the dtype of `latents`."""
    return values.to(latents.dtype).view(-1, *[1] * (latents.ndim - 1))


def metric(values: Tensor, counted: Tensor | None = None) -> Tensor:
    """(sum, count) of per-clip values [B], fp64, detached; `counted` [B] bool selects the clips."""
    counted = torch.ones_like(values, dtype=torch.bool) if counted is None else counted
    total = torch.where(counted, values.detach().double(), 0.0).sum()
    return torch.stack([total, counted.sum().double()])
