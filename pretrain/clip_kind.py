"""Kinds of clips: those of one batch have one length, one size, and all or none a given first frame, picture
and sound."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Protocol

import psutil

from pretrain.prompt import PromptRow
from pretrain.tasks import TASKS
from pretrain.types import (
    AUDIO_CHANNELS,
    AUDIO_TOKENS_PER_S,
    PIXELS_PER_LATENT,
    VIDEO_CHANNELS,
    num_audio_tokens,
    num_video_latents,
)

MAX_CLIP_BYTES = 16 * 2**30  # of one clip's frames and samples, as media are read
SAMPLES_PER_S = 48_000


class ClipSizes(Protocol):
    """Sizes of clips whose prompts do not say: a GenerateConfig or an AlignConfig."""

    @property
    def num_frames(self) -> int: ...
    @property
    def height(self) -> int: ...
    @property
    def width(self) -> int: ...


class ClipKind(NamedTuple):
    """Sizes are in pixels, 0 without a picture; first_frame: it is given."""

    num_frames: int
    height: int
    width: int
    first_frame: bool
    video: bool = True
    audio: bool = True

    @property
    def video_shape(self) -> tuple[int, ...]:
        """(48, F, H, W) of the latents."""
        grid = (self.height // PIXELS_PER_LATENT, self.width // PIXELS_PER_LATENT)
        return (VIDEO_CHANNELS, num_video_latents(self.num_frames), *grid)

    def audio_shape(self, fps: float) -> tuple[int, ...]:
        """(128, L) of the latents."""
        return (AUDIO_CHANNELS, num_audio_tokens(self.num_frames, fps))

    def __str__(self) -> str:
        if not self.video:
            return f"the sound of {self.num_frames} frames"
        given = "with" if self.first_frame else "without"
        sound = "" if self.audio else ", without sound"
        return f"{self.num_frames} frames of {self.width}x{self.height} pixels {given} a first frame{sound}"


def kind_of(row: PromptRow, sizes: ClipSizes) -> ClipKind:
    """The kind of the clips that a prompt asks for."""
    num_frames = row.num_frames or sizes.num_frames
    spec = TASKS[row.task] if row.task else None
    if spec and not spec.video:
        return ClipKind(num_frames, 0, 0, False, video=False)
    height, width = row.height or sizes.height, row.width or sizes.width
    return ClipKind(num_frames, height, width, row.image_path is not None, audio=not spec or spec.audio)


def check_memory(rows: Iterable[PromptRow], sizes: ClipSizes, fps: float, batch: int = 1) -> None:
    """Raises ValueError, with the prompt's `file:line`, for a clip that is too large when decoded, and for
    `batch` clips, which are decoded at once, that are more than this machine's memory."""
    memory = psutil.virtual_memory().total
    for kind, some in by_kind(rows, sizes).items():
        num_bytes = 3 * kind.num_frames * kind.height * kind.width
        num_bytes += int(4 * SAMPLES_PER_S * kind.num_frames / fps)
        asked = (
            f"{kind.num_frames} frames of {kind.width}x{kind.height} pixels are {num_bytes / 2**30:,.1f} GiB"
        )
        if num_bytes > MAX_CLIP_BYTES:
            raise ValueError(
                f"{some[0].where}: {asked} when decoded, at most {MAX_CLIP_BYTES >> 30}; ask for less"
            )
        if (at_once := min(len(some), batch)) * num_bytes > memory:
            raise ValueError(
                f"{some[0].where}: {asked} when decoded, and {at_once} at once are more than the "
                f"{memory / 2**30:,.0f} GiB of this machine; lower batch_size"
            )


def check_sound(rows: Iterable[PromptRow], sizes: ClipSizes, fps: float) -> None:
    """Raises ValueError, with the prompt's `file:line`, for a clip too short for one token of sound."""
    for kind, some in by_kind(rows, sizes).items():
        if kind.audio and not num_audio_tokens(kind.num_frames, fps):
            raise ValueError(
                f"{some[0].where}: num_frames {kind.num_frames} at {fps:g} a second last "
                f"{kind.num_frames / fps:.3g} s, less than half a token of sound "
                f"({1 / AUDIO_TOKENS_PER_S:g} s); ask for more"
            )


def by_kind(rows: Iterable[PromptRow], sizes: ClipSizes) -> dict[ClipKind, list[PromptRow]]:
    """The rows of each kind in their order; kinds in the order in which they first come."""
    kinds: dict[ClipKind, list[PromptRow]] = {}
    for row in rows:
        kinds.setdefault(kind_of(row, sizes), []).append(row)
    return kinds
