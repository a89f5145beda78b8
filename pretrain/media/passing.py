"""The pictures of a file one after the other, for files that do not fit into memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
from av.packet import Packet

from pretrain.media.decoding import check_whole
from pretrain.media.errors import AGAIN, MediaError, media_errors
from pretrain.media.geometry import PictureConverter
from pretrain.media.limits import LOCAL_LIMITS, MediaLimits
from pretrain.media.picture_times import PictureLog, PictureTimes
from pretrain.media.sniff import check_present, kind_of
from pretrain.media.streams import (
    check_header,
    chosen,
    counts_packets,
    declared_rates,
    open_container,
    pixel_aspect,
    start_of,
)


class PassingPictures:
    """Iterated: every picture of a file as uint8 [H, W, 3], in the order in which it is shown, upright and in
    square pixels; one is held at a time.

    `shown`, once all have passed: their times in seconds from the first sample of
    `read_media(path, want_video=False)`. Raises MediaError as `read_media` does, but for the size of all
    pictures together; for a file that is cut off once its end is reached.
    """

    def __init__(self, path: Path, limits: MediaLimits = LOCAL_LIMITS) -> None:
        self.path, self.limits = path, limits
        self._shown: PictureTimes | None = None

    @property
    def shown(self) -> PictureTimes:
        if self._shown is None:
            raise RuntimeError(f"{self.path}: its pictures have not all passed")
        return self._shown

    def __iter__(self) -> Iterator[np.ndarray]:
        path, limits = self.path, self.limits
        check_present(path)
        if (kind := kind_of(path)) != "stream":
            found = "a still" if kind == "still" else "a sound file"
            raise MediaError(f"{path}: no video stream ({found}); give a video")
        with media_errors(path), open_container(path) as container:
            streams = chosen(path, container, True, None)
            check_header(path, container, streams, limits, held=False)
            assert streams.video is not None
            streams.video.codec_context.thread_count = 1
            convert = PictureConverter(path, pixel_aspect(streams.video), limits)
            log, zero_s = PictureLog(counts_packets(container)), start_of(container)
            hidden, sound_end_s = 0, math.nan
            for packet in container.demux(streams.present()):
                if packet.stream is not streams.video:
                    sound_end_s = _end(packet, sound_end_s)
                    continue
                hidden += packet.is_discard
                for frame in packet.decode():
                    assert isinstance(frame, av.VideoFrame)
                    at_s = log.add(frame)
                    if not math.isnan(at_s):
                        limits.check_seconds(path, at_s - zero_s)
                    yield convert(frame)
            if not log.times:
                raise MediaError(f"{path}: 0 seconds of video; {AGAIN}")
            ends_s = [log.times[-1], sound_end_s]
            check_whole(path, container, streams, len(log.times), hidden, ends_s)
            shown = log.settled(declared_rates(streams.video), zero_s)
        limits.check_seconds(path, shown.end_s)
        self._shown = shown


def _end(packet: Packet, before: float) -> float:
    """Seconds of the file's clock at which a packet ends; `before` where it has no time."""
    if packet.pts is None or packet.time_base is None:
        return before
    return float((packet.pts + (packet.duration or 0)) * packet.time_base)
