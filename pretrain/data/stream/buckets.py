"""Buckets: every clip is fitted to one of few picture sizes and lengths, so that batches need no padding.

Pure functions; a clip that fits nowhere raises ValueError with the reason its row is rejected for.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pretrain.types import PIXELS_PER_LATENT, num_audio_tokens, num_video_latents

if TYPE_CHECKING:
    from torch import Tensor

_SIZE = re.compile(r"(\d+)x(\d+)")
_PIXELS_PER_TOKEN = 2 * PIXELS_PER_LATENT  # the model's patches are 2 x 2 latents
_SAME_ASPECT = math.log(1.05)
_FRAMES_AT_ONCE = 16


@dataclass(frozen=True, kw_only=True)
class BucketConfig:
    """Sizes and lengths of buckets; an empty list keeps the clip's. Raises ValueError for impossible ones."""

    sizes: tuple[str, ...] = ()  # "HEIGHTxWIDTH" in pixels, e.g. "704x1280"; multiples of 32
    frames: tuple[
        int, ...
    ] = ()  # numbers of frames, 1 + 4n; sounds alone get the audio tokens beside that many frames
    max_upscale: float = 1.0  # a clip that had to be enlarged by more is rejected

    def __post_init__(self) -> None:
        for height, width in self.pixels:
            if min(height, width) < 1 or height % _PIXELS_PER_TOKEN or width % _PIXELS_PER_TOKEN:
                raise ValueError(
                    f"sizes: height and width must be multiples of {_PIXELS_PER_TOKEN}, got {height}x{width}"
                )
        for count in self.frames:
            num_video_latents(count)
        if not (math.isfinite(self.max_upscale) and self.max_upscale >= 1):
            raise ValueError(f"max_upscale: expected a number of 1 or more, got {self.max_upscale}")

    @property
    def pixels(self) -> list[tuple[int, int]]:
        """(height, width) of each size."""
        found = [_SIZE.fullmatch(size) for size in self.sizes]
        if None in found:
            raise ValueError(
                f"sizes: expected HEIGHTxWIDTH such as 704x1280, got {self.sizes[found.index(None)]!r}"
            )
        return [(int(match[1]), int(match[2])) for match in found if match]


def choose_size(
    height: int, width: int, sizes: Sequence[tuple[int, int]], max_upscale: float = 1.0
) -> tuple[int, int]:
    """The (height, width) of nearest aspect ratio, enlarging the clip by at most `max_upscale`.

    Of aspects that are within 5 % of the nearest one the largest: a crop by so little is better than half the
    resolution. Raises ValueError where the clip is too small for all.
    """
    covered = [size for size in sizes if cover_scale(height, width, size) <= max_upscale + 1e-9]
    if not covered:
        least = min(cover_scale(height, width, size) for size in sizes)
        raise ValueError(
            f"{width}x{height} pixels would be enlarged {least:.2f} times, at most {max_upscale:g} is allowed"
        )
    distance = {size: abs(math.log(size[0] * width / (size[1] * height))) for size in covered}
    near = [size for size in covered if distance[size] <= min(distance.values()) + _SAME_ASPECT]
    return max(near, key=lambda size: (size[0] * size[1], -distance[size], size))


def cover_scale(height: int, width: int, size: tuple[int, int]) -> float:
    """Factor by which a picture must be resized to cover `size`."""
    return max(size[0] / height, size[1] / width)


def choose_length(length: int, allowed: Sequence[int], unit: str) -> int:
    """The longest allowed length that is not longer. Raises ValueError where the clip is shorter than all."""
    fitting = [count for count in allowed if count <= length]
    if not fitting:
        raise ValueError(f"{length} {unit}, the shortest bucket has {min(allowed)}")
    return max(fitting)


def audio_lengths(frames: Sequence[int], fps: float) -> list[int]:
    """Audio tokens beside each number of frames."""
    return [num_audio_tokens(count, fps) for count in frames]


def check_speech(ends_s: Sequence[float], num_spans: int, kept_s: float, whole_s: float) -> None:
    """Raises ValueError where words of the prompt are spoken after the cut, and so not in the clip."""
    if not num_spans or kept_s >= whole_s:
        return
    if not ends_s:
        raise ValueError(
            f"cut from {whole_s:.2f} s to {kept_s:.2f} s, but no speech_end says whether the words are "
            "before the cut"
        )
    if max(ends_s) > kept_s:
        raise ValueError(
            f"speech until {max(ends_s):.2f} s, but the clip is cut to {kept_s:.2f} s; cut the clip into "
            "shorter ones"
        )


def fit_picture(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 [T, H, W, 3] -> [T, *size, 3]: resized to cover (bicubic, antialiased), then centre-cropped."""
    import torch
    from torch.nn.functional import interpolate

    height, width = frames.shape[1:3]
    scale = cover_scale(height, width, size)
    resized = max(size[0], round(height * scale)), max(size[1], round(width * scale))
    top, left = (resized[0] - size[0]) // 2, (resized[1] - size[1]) // 2
    fitted = torch.empty(len(frames), *size, 3, dtype=frames.dtype)
    for start in range(0, len(frames), _FRAMES_AT_ONCE):  # a few at a time: a clip of 1080p is a gigabyte
        part = frames[start : start + _FRAMES_AT_ONCE].permute(0, 3, 1, 2)
        if resized != (height, width):
            part = interpolate(part, size=resized, mode="bicubic", antialias=True)
        fitted[start : start + len(part)] = part[:, :, top : top + size[0], left : left + size[1]].permute(
            0, 2, 3, 1
        )
    return fitted
