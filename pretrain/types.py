"""Types of pretraining, with the shape and unit of every tensor.

Letters: B samples, F latent video frames, H and W latent rows and columns, L audio tokens,
S context tokens, D context width, R voice references. Latents are standardised per channel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:  # checking a prompts file does not import torch
    import torch
    from torch import Tensor

VIDEO_CHANNELS = 48
AUDIO_CHANNELS = 128
SPEAKER_DIM = 192
VIDEO_FRAMES_PER_LATENT = 4
MAX_FRAMES = 100_001  # of one clip: over an hour at 24 a second
PIXELS_PER_LATENT = 16
AUDIO_SAMPLE_RATE_HZ = 16_000
AUDIO_SAMPLES_PER_TOKEN = 640
AUDIO_TOKENS_PER_S = AUDIO_SAMPLE_RATE_HZ / AUDIO_SAMPLES_PER_TOKEN


class Task(StrEnum):
    """Tasks (paper section 3): T text, I first image, A reference voice or sound, V video."""

    T2AV = "T2AV"
    TI2AV = "TI2AV"
    T2A = "T2A"
    T2V = "T2V"
    TIA2AV = "TIA2AV"


@dataclass(frozen=True)
class Conditioning:
    """Conditions besides clean latents.

    Properties are cached: on a GPU each one that is asked for the first time synchronises, but for those that
    `to` has taken from the host and `with_known` was told.
    """

    text: Tensor  # [B, S, D] frozen text encoder's hidden states, zero where padded
    text_mask: Tensor  # [B, S] bool, True = a real token
    speakers: Tensor  # [B, R, 192] reference voice embeddings; all zeros = no reference (null token)
    speaker_positions: Tensor  # [B, R] int64, index along S of the span's timbre token; -1 = no such span
    text_kept: Tensor  # [B] bool, False = unconditional: cross-attention contributes nothing
    modalities_joined: Tensor  # [B] bool, False = video attends only to video, audio only to audio

    def to(self, device: torch.device) -> Conditioning:
        """The same on another device; what the host can tell about it is known there."""
        if self.text.device.type == "cpu" != device.type:
            cache_flags(self)
        moved = Conditioning(*(sent(getattr(self, item.name), device) for item in fields(self)))
        self._tell(moved, *_FLAGS)
        if rows := self.__dict__.get("rows_by_joining"):
            moved.__dict__["rows_by_joining"] = tuple(sent(part, device) for part in rows)
        return moved

    def _tell(self, other: Conditioning, *names: str, **known: bool) -> Conditioning:
        """`other`, which has the properties `names` in common, with those of them that are known."""
        shared = {name: self.__dict__[name] for name in names if name in self.__dict__}
        other.__dict__.update({**shared, **known})
        return other

    @cached_property
    def all_joined(self) -> bool:
        return bool(self.modalities_joined.all())

    @cached_property
    def any_joined(self) -> bool:
        return bool(self.modalities_joined.any())

    @cached_property
    def rows_by_joining(self) -> tuple[Tensor, Tensor]:
        """Indices of the samples whose modalities are joined, and of those where they are apart."""
        return self.modalities_joined.nonzero()[:, 0], (~self.modalities_joined).nonzero()[:, 0]

    @cached_property
    def all_kept(self) -> bool:
        return bool(self.text_kept.all())

    @cached_property
    def text_padded(self) -> bool:
        return not bool(self.text_mask.all())

    @cached_property
    def voiced(self) -> bool:
        """Some sample has a reference voice."""
        return bool((self.speakers != 0).any())

    @cached_property
    def without_text(self) -> Conditioning:
        """Text and its timbre tokens dropped."""
        dropped = replace(self, text_kept=_zeros(self.text_kept), speakers=_zeros(self.speakers))
        names = ("all_joined", "any_joined", "rows_by_joining", "text_padded")
        return self._tell(dropped, *names, all_kept=False, voiced=False)

    def beside(self, other: Conditioning) -> Conditioning:
        """The rows of both."""
        pairs = ((getattr(self, item.name), getattr(other, item.name)) for item in fields(self))
        rows = Conditioning(*(_cat(first, second) for first, second in pairs))
        every, some = ("all_joined", "all_kept"), ("any_joined", "text_padded", "voiced")
        for name in (*every, *some):
            if name in self.__dict__ and name in other.__dict__:
                both = self.__dict__[name], other.__dict__[name]
                rows.__dict__[name] = all(both) if name in every else any(both)
        return rows

    @cached_property
    def zeros_for_dropped_text(self) -> Conditioning:
        """Dropped texts as rows of zeros without timbre tokens, which are attended to."""
        kept = self.text_kept[:, None]
        changed = replace(
            self,
            text=self.text * kept[..., None],
            speaker_positions=self.speaker_positions.masked_fill(~kept, -1),
            text_kept=self.text_kept | True,
        )
        names = ("all_joined", "any_joined", "rows_by_joining", "text_padded", "voiced")
        return self._tell(changed, *names, all_kept=True)

    @cached_property
    def without_alignment(self) -> Conditioning:
        """Same context, the modalities kept apart."""
        apart = replace(self, modalities_joined=_zeros(self.modalities_joined))
        return self._tell(apart, "all_kept", "text_padded", "voiced", all_joined=False, any_joined=False)

    @cached_property
    def without_timbre(self) -> Conditioning:
        """Same text, null timbre tokens."""
        names = ("all_joined", "any_joined", "rows_by_joining", "text_padded", "all_kept")
        return self._tell(replace(self, speakers=_zeros(self.speakers)), *names, voiced=False)


_FLAGS = ("all_joined", "any_joined", "all_kept", "text_padded", "voiced")


@dataclass(frozen=True)
class Stream:
    """One modality as the model's input."""

    latents: Tensor  # video [B, 48, F, H, W]; audio [B, 128, L]; noised, or clean where sigma is 0
    lengths: Tensor  # [B] int64, valid latent frames (video) or tokens (audio); the rest is padding
    # [B, G]; noise level in [0, 1] of G equal groups along time (video: G = F or 1, audio: G = 1 or L)
    sigma: Tensor
    rate_hz: float  # latent frames (video) or tokens (audio) per second
    # video latent frames per second: the unit of RoPE time for both modalities
    video_rate_hz: float

    @cached_property
    def padded(self) -> bool:
        """Cached: on a GPU this synchronises, if `lengths` is there and `to` has not told."""
        return not bool((self.lengths == self.latents.shape[2]).all())

    def to(self, device: torch.device) -> Stream:
        """The same on another device; whether it is padded is known there."""
        padded = self.padded
        tensors = {name: sent(getattr(self, name), device) for name in ("latents", "lengths", "sigma")}
        moved = replace(self, **tensors)
        moved.__dict__["padded"] = padded
        return moved


def cache_flags(*parts: Stream | Conditioning | None) -> None:
    """Cache all properties a forward pass uses while no kernel is queued, so the pass never synchronises."""
    for item in parts:
        if isinstance(item, Stream):
            _ = item.padded
        elif item:
            _ = item.all_joined, item.any_joined, item.all_kept, item.text_padded, item.voiced
            if item.any_joined and not item.all_joined:
                _ = item.rows_by_joining


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device; towards a GPU without waiting for what is queued there."""
    return tensor.to(device, non_blocking=device.type != "cpu")


def _zeros(like: Tensor) -> Tensor:
    return like.new_zeros(like.shape)


def _cat(*tensors: Tensor) -> Tensor:
    import torch  # late: checking a prompts file does not need it

    return torch.cat(tensors)


class Velocity(NamedTuple):
    """The model's output, shaped like its input latents; None for an absent modality."""

    video: Tensor | None  # [B, 48, F, H, W]
    audio: Tensor | None  # [B, 128, L]


@dataclass(frozen=True)
class CleanStream:
    """One modality of the data, without noise."""

    latents: Tensor  # video [B, 48, F, H, W]; audio [B, 128, L]
    lengths: Tensor  # [B] int64
    rate_hz: float


@dataclass(frozen=True)
class AVBatch:
    """A training batch of one task; absent modalities are None. Random draws: (seed, sample id, epoch)."""

    task: Task
    video: CleanStream | None
    audio: CleanStream | None
    conditioning: Conditioning
    sample_ids: Tensor  # [B] int64, stable hash of the data id
    epochs: Tensor  # [B] int64
    video_rate_hz: float  # video latent frames per second of these clips, also for audio-only tasks


class Tracker(Protocol):
    """Where a trainer reports to; `experiments.runs.tracker` injects MLflow, tests inject a list."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None: ...

    def log_artifact(self, path: str, folder: str = "") -> None: ...

    def set_tags(self, tags: Mapping[str, str]) -> None: ...


def num_video_latents(num_frames: int) -> int:
    """Latent frames of a clip; raises ValueError unless num_frames is 1 + 4n and at most MAX_FRAMES."""
    if num_frames < 1 or (num_frames - 1) % VIDEO_FRAMES_PER_LATENT:
        raise ValueError(f"num_frames must be 1 + 4n (1, 5, 9, ...), got {num_frames}")
    if num_frames > MAX_FRAMES:
        raise ValueError(f"num_frames must be at most {MAX_FRAMES}, got {num_frames:.6g}")
    return 1 + (num_frames - 1) // VIDEO_FRAMES_PER_LATENT


def num_audio_tokens(num_frames: int, fps: float) -> int:
    """Audio tokens beside `num_frames` of video: round(seconds * 25)."""
    return round(num_frames / fps * AUDIO_TOKENS_PER_S)
