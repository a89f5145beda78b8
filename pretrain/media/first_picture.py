"""The first picture of a video, nothing behind it decoded."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
from av.container import InputContainer

from pretrain.media.errors import AGAIN, MediaError, media_errors
from pretrain.media.geometry import PictureConverter
from pretrain.media.limits import MediaLimits
from pretrain.media.streams import ChosenStreams, check_header, chosen, open_container, pixel_aspect


def read_first_picture(path: Path, limits: MediaLimits) -> np.ndarray:
    """uint8 [H, W, 3], as `read_media` gives it; raises MediaError."""
    with media_errors(path, "a picture"), open_container(path) as container:
        frame, streams = first_frame(path, container, limits)
        assert streams.video is not None
        return PictureConverter(path, pixel_aspect(streams.video), limits)(frame)


def first_frame(
    path: Path, container: InputContainer, limits: MediaLimits
) -> tuple[av.VideoFrame, ChosenStreams]:
    """The first presentable frame; raises MediaError where there is none, FFmpegError for corrupt content."""
    streams = chosen(path, container, True, False)
    check_header(path, container, streams, MediaLimits(pixels=limits.pixels))
    assert streams.video is not None
    streams.video.codec_context.thread_count = 1
    for frame in container.decode(streams.video):
        return frame, streams
    raise MediaError(f"{path}: 0 seconds of video; {AGAIN}")
