"""Noising and loss: a clean batch -> inputs and targets -> sums normalised per modality."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from pretrain.config import NOT_NEGATIVE, check_bounds
from pretrain.dropout import DropoutConfig, Dropped, draw_dropout
from pretrain.flow.path import LevelConfig, draw_sigma, interpolate, sigma_weight, velocity_target
from pretrain.randomness import generator_for
from pretrain.tasks import TASKS
from pretrain.types import AVBatch, CleanStream, Conditioning, Stream, Task, Velocity, sent


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """Loss = video_weight * video mean + audio_weight * audio mean, each over its own noised elements.

    Raises ValueError for negative weights: their steps would raise the error.
    """

    video_weight: float = 1.0
    audio_weight: float = 0.2
    levels: LevelConfig = field(default_factory=LevelConfig)
    dropout: DropoutConfig = field(default_factory=DropoutConfig)

    def __post_init__(self) -> None:
        check_bounds(self, {"video_weight": NOT_NEGATIVE, "audio_weight": NOT_NEGATIVE}, "objective.")

    def check_trains(self, tasks: Mapping[str, float], where: str = "") -> None:
        """Raises ValueError where no task that is drawn has a loss of weight above 0."""
        drawn = [TASKS[Task(name)] for name, weight in tasks.items() if weight > 0]
        if any((self.video_weight and task.video) or (self.audio_weight and task.audio) for task in drawn):
            return
        raise ValueError(
            f"{where}tasks {dict(tasks)} with objective.video_weight {self.video_weight:g} and audio_weight "
            f"{self.audio_weight:g} train nothing; raise the weight of what the tasks generate"
        )


@dataclass(frozen=True)
class Corrupted:
    """A batch as the model sees it, with what it is asked for; absent modalities are None."""

    video: Stream | None
    audio: Stream | None
    conditioning: Conditioning
    video_target: Tensor | None  # [B, 48, F, H, W]
    audio_target: Tensor | None  # [B, 128, L]
    video_noised: Tensor | None  # [B, 1, F, 1, 1] bool: noised and not padding
    audio_noised: Tensor | None  # [B, 1, L] bool
    weight: Tensor  # [B] weight of the sample's sigma

    def to(self, device: torch.device) -> Corrupted:
        """The same on another device, without waiting for what is queued there."""
        tensors = ("video_target", "audio_target", "video_noised", "audio_noised", "weight")
        moved = {name: getattr(self, name) for name in tensors}
        return Corrupted(
            self.video and self.video.to(device),
            self.audio and self.audio.to(device),
            self.conditioning.to(device),
            **{name: None if value is None else sent(value, device) for name, value in moved.items()},
        )


class LossSums(NamedTuple):
    """Weighted squared errors and element counts; divide by counts summed over micro-batches and ranks."""

    video: Tensor  # scalar, fp32
    audio: Tensor
    video_count: Tensor  # scalar, fp64
    audio_count: Tensor

    def loss(
        self,
        video_count: Tensor | float,
        audio_count: Tensor | float,
        audio_weight: float,
        video_weight: float = 1.0,
    ) -> Tensor:
        """This micro-batch's share of the global loss; a modality nobody has counts as zero."""
        video = video_weight * self.video / max(float(video_count), 1.0)
        return video + audio_weight * self.audio / max(float(audio_count), 1.0)


def corrupt(batch: AVBatch, config: ObjectiveConfig, seed: int, sigmas: Tensor | None = None) -> Corrupted:
    """Noise a batch; draws are keyed by (seed, sample, epoch). `sigmas` [B] replaces the drawn sigmas.

    For a GPU: corrupt on the host, then `Corrupted.to`, which sends as many bytes and waits for nothing.
    """
    spec, device = TASKS[batch.task], batch.sample_ids.device
    keys = list(zip(batch.sample_ids.tolist(), batch.epochs.tolist(), strict=True))
    if sigmas is None:
        drawn = [draw_sigma(config.levels, generator_for(seed, *key, "level")) for key in keys]
        sigmas = torch.tensor(drawn, device=device)
    dropped = draw_dropout(batch, config.dropout, seed)
    video = audio = None
    video_target = audio_target = video_noised = audio_noised = None
    if spec.video:
        clean = _present(batch.video, "video", batch.task)
        noise = _noise(clean, keys, seed, "video")
        video, video_noised = _noised_video(
            clean, noise, sigmas, dropped.first_frame_given, batch.video_rate_hz
        )
        video_target = velocity_target(clean.latents, noise)
    if spec.audio:
        clean = _present(batch.audio, "audio", batch.task)
        noise = _noise(clean, keys, seed, "audio")
        latents = interpolate(clean.latents, noise, sigmas[:, None, None])
        audio = Stream(latents, clean.lengths, sigmas[:, None], clean.rate_hz, batch.video_rate_hz)
        audio_noised = _within(clean.lengths, clean.latents.shape[2])[:, None]
        audio_target = velocity_target(clean.latents, noise)
    return Corrupted(
        video,
        audio,
        _conditioning(batch.conditioning, dropped),
        video_target,
        audio_target,
        video_noised,
        audio_noised,
        sigma_weight(sigmas, config.levels),
    )


def velocity_loss(velocity: Velocity, corrupted: Corrupted) -> LossSums:
    """Sums of sigma-weighted squared velocity errors over noised elements, per modality, fp32."""
    video, video_count = _squared(
        velocity.video, corrupted.video_target, corrupted.video_noised, corrupted.weight
    )
    audio, audio_count = _squared(
        velocity.audio, corrupted.audio_target, corrupted.audio_noised, corrupted.weight
    )
    return LossSums(video, audio, video_count, audio_count)


def element_counts(corrupted: Corrupted) -> tuple[Tensor, Tensor]:
    """Noised (video, audio) elements, known before the forward pass; scalars, fp64."""
    pairs = (
        (corrupted.video_noised, corrupted.video_target),
        (corrupted.audio_noised, corrupted.audio_target),
    )
    counts = [
        _count(noised, target) if noised is not None and target is not None else _zero(corrupted.weight)
        for noised, target in pairs
    ]
    return counts[0], counts[1]


def _squared(
    answer: Tensor | None, target: Tensor | None, noised: Tensor | None, weight: Tensor
) -> tuple[Tensor, Tensor]:
    if answer is None or target is None or noised is None:
        return weight.new_zeros(()), _zero(weight)
    per_sample = ((answer.float() - target) ** 2 * noised).flatten(1).sum(1)
    return (per_sample * weight).sum(), _count(noised, target)


def _count(noised: Tensor, target: Tensor) -> Tensor:
    return noised.sum(dtype=torch.float64) * (target[0].numel() // noised[0].numel())


def _zero(like: Tensor) -> Tensor:
    return torch.zeros((), dtype=torch.float64, device=like.device)


def _noised_video(
    clean: CleanStream, noise: Tensor, sigmas: Tensor, first_frame_given: Tensor, video_rate_hz: float
) -> tuple[Stream, Tensor]:
    """A given first frame stays clean, has sigma 0 and is not in the loss."""
    frames = clean.latents.shape[2]
    sigma = sigmas[:, None].repeat(1, frames) if bool(first_frame_given.any()) else sigmas[:, None]
    noised = _within(clean.lengths, frames)
    if sigma.shape[1] > 1:
        sigma[:, 0] = torch.where(first_frame_given, 0.0, sigma[:, 0])
        noised[:, 0] &= ~first_frame_given
    latents = interpolate(clean.latents, noise, sigma[:, None, :, None, None])
    return Stream(latents, clean.lengths, sigma, clean.rate_hz, video_rate_hz), noised[:, None, :, None, None]


def _noise(clean: CleanStream, keys: list[tuple[int, int]], seed: int, name: str) -> Tensor:
    """Noise of each sample's own length, zero where padded, so the draw does not depend on padding."""
    noise = torch.zeros(clean.latents.shape)
    for row, key, length in zip(noise, keys, clean.lengths.tolist(), strict=True):
        shape = (row.shape[0], length, *row.shape[2:])
        row[:, :length] = torch.randn(shape, generator=generator_for(seed, *key, name))
    return noise.to(clean.latents.device)


def _within(lengths: Tensor, size: int) -> Tensor:
    return torch.arange(size, device=lengths.device) < lengths[:, None]


def _conditioning(given: Conditioning, dropped: Dropped) -> Conditioning:
    speakers = given.speakers * (dropped.timbre_kept & dropped.text_kept)[:, None, None]
    joined = dropped.modalities_joined & given.modalities_joined
    return replace(
        given, speakers=speakers, text_kept=dropped.text_kept & given.text_kept, modalities_joined=joined
    )


def _present(stream: CleanStream | None, name: str, task: str) -> CleanStream:
    if stream is None:
        raise ValueError(
            f"task {task} generates {name}, but the batch has none; choose a data set with {name} for it"
        )
    return stream
