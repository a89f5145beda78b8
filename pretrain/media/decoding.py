"""Frames and samples of an open container, as they come, with their presentation times."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.video.reformatter import VideoReformatter

from pretrain.media.channels import of_frame
from pretrain.media.errors import MediaError

Admit = Callable[[av.VideoFrame | av.AudioFrame], None]


def everything(frame: av.VideoFrame | av.AudioFrame) -> None:
    """Admits any frame: for files one trusts."""


def decode(
    path: Path,
    container: InputContainer,
    want_video: bool,
    want_audio: bool,
    channels: int,
    admit: Admit = everything,
) -> tuple[list[tuple[float, np.ndarray]], list[tuple[float, np.ndarray]], float]:
    """(seconds, picture), (seconds, [N] or [2, N] samples) of the wanted streams, and the first picture's.

    `admit` sees each frame before it is turned into an array and may raise. Raises MediaError for a stream
    that is not there, FFmpegError for corrupt content.
    """
    wanted = []
    for kind, want, found in (
        ("video", want_video, container.streams.video),
        ("audio", want_audio, container.streams.audio),
    ):
        if want and not found:
            raise MediaError(
                f"{path}: no {kind} stream; add one or put the row into a set that does not need it"
            )
        if want:
            found[0].codec_context.thread_count = 1
            wanted.append(found[0])
    to_rgb = VideoReformatter()  # one for the file: each frame's own would set its tables up anew
    pictures: list[tuple[float, np.ndarray]] = []
    sounds: list[tuple[float, np.ndarray]] = []
    for packet in container.demux(wanted):
        for frame in packet.decode():
            if isinstance(frame, av.VideoFrame):
                admit(frame)
                pictures.append((_seconds(frame), to_rgb.reformat(frame, format="rgb24").to_ndarray()))
            elif isinstance(frame, av.AudioFrame):
                admit(frame)
                sounds.append((_seconds(frame), of_frame(frame, channels)))
    zero_s = pictures[0][0] if pictures and math.isfinite(pictures[0][0]) else 0.0
    return pictures, sounds, zero_s


def _seconds(frame: av.VideoFrame | av.AudioFrame) -> float:
    return float(frame.time) if frame.time is not None else math.nan
