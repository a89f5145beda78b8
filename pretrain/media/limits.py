"""How large a media file may be, held against its header before anything is decoded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import av

from pretrain.media.errors import MediaLimitError

Admit = Callable[[av.VideoFrame | av.AudioFrame], None]


def everything(frame: av.VideoFrame | av.AudioFrame) -> None:
    """Admits any frame: for files one trusts."""


@dataclass(frozen=True, kw_only=True)
class MediaLimits:
    """Of one file; the defaults are wide, for files that one chose oneself."""

    pixels: int = 128 * 2**20  # of one picture, as shown
    frames: int = 500_000
    seconds: float = 4 * 3600.0
    decoded_bytes: int = 16 * 2**30  # of all pictures and samples

    def check_picture(self, path: Path, width: int, height: int, frames: int = 1) -> None:
        """Raises MediaLimitError for `frames` pictures of this size that are too large or too many."""
        if width * height > self.pixels:
            raise MediaLimitError(
                f"{path}: {width}x{height} pixels, at most {self.pixels} in all are taken; make it smaller"
            )
        if frames > self.frames:
            raise MediaLimitError(f"{path}: {frames} frames, at most {self.frames} are taken; cut it")
        self.check_bytes(path, 3 * width * height * frames)

    def check_seconds(self, path: Path, seconds: float) -> None:
        if not abs(seconds) <= self.seconds:
            raise MediaLimitError(f"{path}: {seconds:g} s long, at most {self.seconds:g} s are taken; cut it")

    def check_bytes(self, path: Path, num_bytes: int) -> None:
        if num_bytes > self.decoded_bytes:
            raise MediaLimitError(
                f"{path}: {num_bytes / 2**30:.3g} GiB when decoded, at most "
                f"{self.decoded_bytes / 2**30:.3g} are taken; cut or shrink it"
            )


LOCAL_LIMITS = MediaLimits()
