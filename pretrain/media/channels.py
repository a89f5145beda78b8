"""Channels of a decoded sound: one for voice metrics, or the two of a stereo codec."""

from __future__ import annotations

from functools import lru_cache

import av
import numpy as np
from av.error import FFmpegError

from pretrain.media.errors import LayoutError
from rewards.channels import one_channel, within_full_scale

_FFMPEG_PLANES = 8  # AV_NUM_DATA_POINTERS
_PLANAR = {"u8p": "u1", "s16p": "i2", "s32p": "i4", "s64p": "i8", "fltp": "f4", "dblp": "f8"}


def of_frame(frame: av.AudioFrame) -> np.ndarray:
    """Float [C, N] of a decoded frame, integers scaled to -1..1; unsigned ones are around their middle."""
    samples = _to_array(frame)
    if not frame.format.is_planar:
        samples = samples.reshape(-1, frame.layout.nb_channels).T
    if samples.dtype.kind == "u":
        half = 2.0 ** (8 * samples.dtype.itemsize - 1)
        samples = (samples - half) / half
    elif samples.dtype.kind == "i":
        samples = samples / 2.0 ** (8 * samples.dtype.itemsize - 1)
    return samples.astype(np.float32, copy=False)


def _to_array(frame: av.AudioFrame) -> np.ndarray:
    """As `to_ndarray`, which in PyAV 18 reads beyond the planes of a planar frame of 8 channels or more."""
    count = frame.layout.nb_channels
    if not frame.format.is_planar or count < _FFMPEG_PLANES:
        return frame.to_ndarray()
    if count > _FFMPEG_PLANES:
        raise LayoutError(f"{count} channels, at most {_FFMPEG_PLANES} are read; mix them down to two")
    dtype = _PLANAR[frame.format.name]
    planes = [bytes(plane) for plane in frame.planes[:count]]
    return np.stack([np.frombuffer(plane, dtype, frame.samples) for plane in planes])


def mixed(samples: np.ndarray, channels: int, layout: str = "") -> np.ndarray:
    """Float [C, N] in -1..1 -> float32 of the same range: `rewards.channels.one_channel` [N], or [2, N].

    For two, mono is on both sides, and more channels are mixed by FFmpeg's matrix from `layout`, an FFmpeg
    name, scaled down where they would go beyond full scale. Raises LayoutError where FFmpeg has no such
    matrix, ValueError for other numbers of channels.
    """
    check_channels(channels)
    if channels == 1:
        weights = mono_weights(layout, len(samples)) if len(samples) > 2 else None
        return one_channel(samples, weights).astype(np.float32, copy=False)
    if len(samples) > channels:
        matrix = _matrix(layout, len(samples), "stereo")
        return within_full_scale(matrix @ samples, samples).astype(np.float32, copy=False)
    return np.broadcast_to(samples, (channels, samples.shape[1])).astype(np.float32)


def check_channels(channels: int) -> None:
    if channels not in (1, 2):
        raise ValueError(f"channels: valid are 1 and 2, got {channels}")


def mono_weights(layout: str, num_channels: int) -> np.ndarray | None:
    """[C] of FFmpeg's downmix to mono; None for channels of unknown places."""
    try:
        return _matrix(layout, num_channels, "mono")[0]
    except LayoutError:
        return None


@lru_cache(maxsize=32)
def _matrix(layout: str, num_channels: int, to: str) -> np.ndarray:
    """[1 or 2, C]: what FFmpeg makes of a unit on each channel alone."""
    try:
        units = np.eye(num_channels, dtype=np.float32).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(units, format="flt", layout=layout)
        frame.rate = 16_000
        answers = av.AudioResampler(format="fltp", layout=to).resample(frame)
    except (FFmpegError, ValueError):
        raise LayoutError(
            f"{num_channels} channels of unknown places ({layout or 'no layout'}); mix them down to two"
        ) from None
    return np.concatenate([answer.to_ndarray() for answer in answers], axis=1)
