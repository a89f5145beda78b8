"""Kinds of clips: those of one batch have one length, one size, and all or none a given first frame."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Protocol

from pretrain.prompt import PromptRow
from pretrain.types import (
    AUDIO_CHANNELS,
    PIXELS_PER_LATENT,
    VIDEO_CHANNELS,
    num_audio_tokens,
    num_video_latents,
)


class ClipSizes(Protocol):
    """Sizes of clips whose prompts do not say: a GenerateConfig or an AlignConfig."""

    @property
    def num_frames(self) -> int: ...
    @property
    def height(self) -> int: ...
    @property
    def width(self) -> int: ...


class ClipKind(NamedTuple):
    """Sizes are in pixels; first_frame: it is given."""

    num_frames: int
    height: int
    width: int
    first_frame: bool

    @property
    def video_shape(self) -> tuple[int, ...]:
        """(48, F, H, W) of the latents."""
        grid = (self.height // PIXELS_PER_LATENT, self.width // PIXELS_PER_LATENT)
        return (VIDEO_CHANNELS, num_video_latents(self.num_frames), *grid)

    def audio_shape(self, fps: float) -> tuple[int, ...]:
        """(128, L) of the latents."""
        return (AUDIO_CHANNELS, num_audio_tokens(self.num_frames, fps))

    def __str__(self) -> str:
        given = "with" if self.first_frame else "without"
        return f"{self.num_frames} frames of {self.width}x{self.height} pixels {given} a first frame"


def kind_of(row: PromptRow, sizes: ClipSizes) -> ClipKind:
    """The kind of the clips that a prompt asks for."""
    return ClipKind(
        row.num_frames or sizes.num_frames,
        row.height or sizes.height,
        row.width or sizes.width,
        row.image_path is not None,
    )


def by_kind(rows: Iterable[PromptRow], sizes: ClipSizes) -> dict[ClipKind, list[PromptRow]]:
    """The rows of each kind in their order; kinds in the order in which they first come."""
    kinds: dict[ClipKind, list[PromptRow]] = {}
    for row in rows:
        kinds.setdefault(kind_of(row, sizes), []).append(row)
    return kinds
