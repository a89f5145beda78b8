"""The pictures of a file one after the other, for files that do not fit into memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

from pretrain.media.errors import AGAIN, MediaError, media_errors
from pretrain.media.geometry import PictureConverter
from pretrain.media.limits import LOCAL_LIMITS, MediaLimits
from pretrain.media.sniff import check_present, kind_of
from pretrain.media.streams import (
    check_header,
    chosen,
    declared_rates,
    expected_packets,
    open_container,
    pixel_aspect,
    start_of,
)
from pretrain.media.timeline import DEFAULT_FPS, MAX_FPS


@dataclass(frozen=True, eq=False)
class Passing:
    """One picture. `at_s`: seconds from the first sample of `read_media(path, want_video=False)`; later
    pictures have later times."""

    at_s: float
    picture: np.ndarray  # uint8 [H, W, 3]


def passing_pictures(path: Path, limits: MediaLimits = LOCAL_LIMITS) -> Iterator[Passing]:
    """Every picture in the order in which it is shown, upright and in square pixels; one is held at a time.

    Raises MediaError as `read_media` does, for a file that is cut off once its end is reached.
    """
    check_present(path)
    if (kind := kind_of(path)) != "stream":
        found = "a still" if kind == "still" else "a sound file"
        raise MediaError(f"{path}: no video stream ({found}); give a video")
    with media_errors(path), open_container(path) as container:
        streams = chosen(path, container, True, None)
        check_header(path, container, streams, limits)
        assert streams.video is not None
        streams.video.codec_context.thread_count = 1
        convert = PictureConverter(path, pixel_aspect(streams.video), limits)
        usual = next(
            (rate for rate in declared_rates(streams.video) if rate and 0 < rate <= MAX_FPS), DEFAULT_FPS
        )
        zero, before, count, hidden = start_of(container), -math.inf, 0, 0
        for packet in container.demux(streams.video):
            hidden += packet.is_discard
            for frame in packet.decode():
                assert isinstance(frame, av.VideoFrame)
                at_s = float(frame.time) - zero if frame.time is not None else math.nan
                if not at_s > before:  # not given, or not after the last one
                    at_s = before + 1.0 / usual if count else 0.0
                before, count = at_s, count + 1
                limits.check_seconds(path, at_s)
                yield Passing(at_s, convert(frame))
        _check_whole(path, count, expected_packets(streams.video) - hidden)


def _check_whole(path: Path, found: int, expected: int) -> None:
    if not found:
        raise MediaError(f"{path}: 0 seconds of video; {AGAIN}")
    if found < 0.9 * expected:
        raise MediaError(f"{path}: truncated, {found} of {expected} frames can be read; {AGAIN}")
