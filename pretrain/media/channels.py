"""Channels of a decoded sound: the mono mix for voice metrics, or the two of a stereo codec."""

from __future__ import annotations

from functools import lru_cache

import av
import numpy as np
from av.error import FFmpegError


class LayoutError(ValueError):
    """A sound's channel layout is unknown."""


def of_frame(frame: av.AudioFrame, channels: int) -> np.ndarray:
    """float32 samples of a decoded frame as `mixed` gives them; raises as that does."""
    samples = frame.to_ndarray()
    if not frame.format.is_planar:
        samples = samples.reshape(-1, frame.layout.nb_channels).T
    if samples.dtype.kind == "i":
        samples = samples / 2.0 ** (8 * samples.dtype.itemsize - 1)
    return mixed(samples, channels, frame.layout.name)


def mixed(samples: np.ndarray, channels: int, layout: str = "") -> np.ndarray:
    """Float [C, N] in -1..1 -> float32 of the same range: the mean [N] for one channel, [2, N] for two.

    Mono is on both sides. More than two channels are mixed by FFmpeg's matrix from `layout`, an FFmpeg name,
    to stereo, scaled so that nothing can clip. Raises LayoutError where FFmpeg has no such matrix, ValueError
    for other numbers of channels.
    """
    if channels not in (1, 2):
        raise ValueError(f"channels: valid are 1 and 2, got {channels}")
    if channels == 1:
        return samples.mean(axis=0, dtype=np.float32)
    if len(samples) > channels:
        samples = _to_stereo(layout, len(samples)) @ samples
    return np.broadcast_to(samples, (channels, samples.shape[1])).astype(np.float32)


@lru_cache(maxsize=32)
def _to_stereo(layout: str, num_channels: int) -> np.ndarray:
    """[2, C]: what FFmpeg makes of a unit on each channel alone."""
    try:
        units = np.eye(num_channels, dtype=np.float32).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(units, format="flt", layout=layout)
        frame.rate = 16_000
        answers = av.AudioResampler(format="fltp", layout="stereo").resample(frame)
    except (FFmpegError, ValueError):
        raise LayoutError(
            f"{num_channels} channels of unknown places ({layout or 'no layout'}); mix them down to two"
        ) from None
    matrix = np.concatenate([answer.to_ndarray() for answer in answers], axis=1)
    return matrix / max(1.0, np.abs(matrix).sum(axis=1).max())
