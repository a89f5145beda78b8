"""Frames and samples of an open container, as they come, with their presentation times."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer

from pretrain.media.channels import of_frame
from pretrain.media.errors import AGAIN, MediaError
from pretrain.media.geometry import PictureConverter
from pretrain.media.limits import Admit, MediaLimits
from pretrain.media.picture_times import PictureLog
from pretrain.media.streams import (
    ChosenStreams,
    counts_packets,
    expected_packets,
    pixel_aspect,
    promised_seconds,
    start_of,
)


@dataclass(eq=False)
class Pictures(PictureLog):
    """Decoded pictures in the order in which they are shown."""

    frames: list[np.ndarray] = field(default_factory=list)  # uint8 [H, W, 3] each
    hidden: int = 0  # packets that an edit list leaves out


@dataclass(eq=False)
class Sounds:
    """Decoded chunks of sound in order."""

    chunks: list[np.ndarray] = field(default_factory=list)  # float32 [C, N] each
    times: list[float] = field(default_factory=list)  # seconds, NaN where the file gives none
    rate: int = 0
    layout: str = ""


def decode(
    path: Path, container: InputContainer, streams: ChosenStreams, limits: MediaLimits, admit: Admit
) -> tuple[Pictures, Sounds]:
    """What is presentable of the streams. `admit` sees each frame before it becomes an array and may raise.

    Raises MediaError for what is beyond `limits`, changes within a stream or is cut off, FFmpegError for
    corrupt content.
    """
    pictures, sounds = Pictures(counts_packets(container)), Sounds()
    counter = _Counter(path, limits)
    to_picture = None
    if streams.video is not None:
        to_picture = PictureConverter(path, pixel_aspect(streams.video), limits)
    for stream in streams.present():
        stream.codec_context.thread_count = 1
    for packet in container.demux(streams.present()):
        if packet.is_discard and packet.stream is streams.video:
            pictures.hidden += 1
        for frame in packet.decode():
            if isinstance(frame, av.VideoFrame) and to_picture is not None:
                admit(frame)
                at_s = pictures.add(frame)
                pictures.frames.append(to_picture(frame))
                counter.add(at_s, pictures.frames[-1], len(pictures.frames))
            elif isinstance(frame, av.AudioFrame):
                admit(frame)
                _add_sound(path, sounds, frame)
                counter.add(sounds.times[-1], sounds.chunks[-1])
    _check_whole(path, container, streams, pictures, sounds)
    return pictures, sounds


class _Counter:
    """Raises MediaLimitError with the frame that is too much."""

    def __init__(self, path: Path, limits: MediaLimits) -> None:
        self.path, self.limits, self.bytes = path, limits, 0
        self.first_s = math.nan

    def add(self, at_s: float, array: np.ndarray, frames: int = 0) -> None:
        self.bytes += array.nbytes
        if math.isnan(self.first_s):
            self.first_s = at_s
        self.limits.check_bytes(self.path, self.bytes)
        if not math.isnan(at_s):
            self.limits.check_seconds(self.path, at_s - self.first_s)
        if frames > self.limits.frames:
            self.limits.check_picture(self.path, 1, 1, frames)


def _add_sound(path: Path, sounds: Sounds, frame: av.AudioFrame) -> None:
    if not sounds.chunks:
        sounds.rate, sounds.layout = frame.sample_rate, frame.layout.name
    chunk = of_frame(frame)
    if frame.sample_rate != sounds.rate or (sounds.chunks and len(chunk) != len(sounds.chunks[0])):
        raise MediaError(
            f"{path}: its sound changes from {len(sounds.chunks[0])} channels at {sounds.rate} Hz to "
            f"{len(chunk)} at {frame.sample_rate}; encode it again at one rate"
        )
    sounds.chunks.append(chunk)
    sounds.times.append(_seconds(frame))


def _check_whole(
    path: Path, container: InputContainer, streams: ChosenStreams, pictures: Pictures, sounds: Sounds
) -> None:
    ends_s = [*pictures.times[-1:]]
    ends_s += [
        time + chunk.shape[1] / sounds.rate
        for time, chunk in zip(sounds.times[-1:], sounds.chunks[-1:], strict=True)
    ]
    check_whole(path, container, streams, len(pictures.frames), pictures.hidden, ends_s)


def check_whole(
    path: Path,
    container: InputContainer,
    streams: ChosenStreams,
    found: int,
    hidden: int,
    ends_s: Sequence[float],
) -> None:
    """Raises MediaError where the header promises more than 10 % beyond what is there.

    `found` pictures were decoded, `hidden` packets are left out by an edit list; `ends_s`: where the streams
    end on the file's clock, NaN where that is not known.
    """
    if streams.video is not None:
        expected = expected_packets(streams.video) - hidden
        if found and found < 0.9 * expected:
            raise MediaError(f"{path}: truncated, {found} of {expected} frames can be read; {AGAIN}")
    known = [end - start_of(container) for end in ends_s if not math.isnan(end)]
    promised = promised_seconds(container, streams)
    if known and max(known) < 0.9 * promised - 0.5:
        raise MediaError(f"{path}: truncated, {max(known):.3g} of {promised:.3g} s can be read; {AGAIN}")


def _seconds(frame: av.AudioFrame) -> float:
    return float(frame.time) if frame.time is not None else math.nan
