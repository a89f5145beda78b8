"""An open container: which streams are read, and what its header says of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import av
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.error import ArgumentError
from av.stream import Disposition
from av.video.stream import VideoStream

from pretrain.media.errors import MediaError
from pretrain.media.limits import MediaLimits

_COUNTED = ("mov", "avi")  # whose index lists every packet
# FFmpeg's names of the containers that are read: each holds its own pictures and sounds
DEMUXERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,ogg,gif,apng,yuv4mpegpipe,ivf,nut,mxf,"
    "asf,dv,h264,hevc,obu,av1,m4v,mjpeg,wav,w64,flac,mp3,aac,ac3,eac3,aiff,caf,au,amr,amrnb,amrwb,tta,wv,ape"
)
_TIMED = ("mov", "matroska", "flv")  # whose durations are written, not guessed


@dataclass(frozen=True)
class ChosenStreams:
    """FFmpeg's best streams; None where there is none of a kind."""

    video: VideoStream | None
    audio: AudioStream | None

    def present(self) -> list[VideoStream | AudioStream]:
        return [stream for stream in (self.video, self.audio) if stream is not None]


def open_container(path: Path) -> InputContainer:
    """A file for reading, one thread, nothing but this file. Raises FFmpegError, MediaError for a container
    that is not in DEMUXERS: a playlist or a script names other files, and FFmpeg would read those."""
    options = {
        "threads": "1",
        "protocol_whitelist": "file",
        "format_whitelist": DEMUXERS,
        "enable_drefs": "0",
        "use_absolute_path": "0",
    }
    # `file:`: a name may hold a colon or look like a pattern; tags may be in any encoding
    try:
        return av.open(f"file:{path}", options=options, metadata_errors="replace")
    except ArgumentError:  # what FFmpeg answers for a demuxer that is not in the list
        raise MediaError(
            f"{path}: corrupt or not a container that is read (mp4, mov, mkv, webm, avi, ts, flv, mpg, ogg "
            "and sounds); convert it"
        ) from None


def best_streams(container: InputContainer) -> ChosenStreams:
    """The streams FFmpeg would take (flags, then bit rate), but never an attached picture."""
    pictures = [stream for stream in container.streams.video if not is_attached(stream)]
    best = container.streams.best("video") if pictures else None
    if best not in pictures:
        best = max(
            pictures,
            key=lambda one: (bool(one.disposition & Disposition.default), _width(one)),
            default=None,
        )
    audio = container.streams.best("audio") or next(iter(container.streams.audio), None)
    assert best is None or isinstance(best, VideoStream)
    assert audio is None or isinstance(audio, AudioStream)
    return ChosenStreams(best, audio)


def _width(stream: VideoStream) -> int:
    return stream.codec_context.width if stream.codec_context is not None else 0


def is_attached(stream: VideoStream) -> bool:
    return bool(stream.disposition & (Disposition.attached_pic | Disposition.timed_thumbnails))


def chosen(path: Path, container: InputContainer, video: bool | None, audio: bool | None) -> ChosenStreams:
    """The best streams that are wanted; None wants a kind where it is there. Raises MediaError."""
    best = best_streams(container)
    for kind, want, found in (("video", video, best.video), ("audio", audio, best.audio)):
        if want and found is None:
            cover = " (its picture is a cover)" if kind == "video" and container.streams.video else ""
            raise MediaError(
                f"{path}: no {kind} stream{cover}; add one or put the row into a set that does not need it"
            )
    streams = ChosenStreams(
        best.video if video is not False else None, best.audio if audio is not False else None
    )
    for stream in streams.present():
        if stream.codec_context is None:
            raise MediaError(
                f"{path}: FFmpeg knows no decoder of its {stream.type} stream; encode it as h264 and AAC"
            )
    if not streams.present():
        raise MediaError(f"{path}: neither pictures nor sound in it; write the file again or drop its row")
    return streams


def check_header(
    path: Path, container: InputContainer, streams: ChosenStreams, limits: MediaLimits, held: bool = True
) -> None:
    """Raises MediaLimitError for what the header promises beyond the limits; `held`: all pictures at once."""
    if container.duration is not None:
        limits.check_seconds(path, container.duration / av.time_base)
    if streams.video is not None:
        context = streams.video.codec_context
        count = max(1, expected_packets(streams.video)) if held else 1
        limits.check_picture(path, context.width, context.height, count)
        # the stream itself may say another size later
        context.options = {**context.options, "max_pixels": str(limits.pixels)}


def declared_rates(stream: VideoStream) -> Sequence[float | None]:
    rates = (stream.average_rate, stream.guessed_rate, stream.base_rate)
    return [float(rate) if rate else None for rate in rates]


def pixel_aspect(stream: VideoStream) -> float:
    """Width of a pixel by its height; 1 where the file does not say."""
    return float(stream.sample_aspect_ratio or 1)


def expected_packets(stream: VideoStream) -> int:
    """Packets that the index promises, with those that an edit list hides; 0 without such an index."""
    if not any(name in stream.container.format.name.split(",") for name in _COUNTED):
        return 0
    indexed = len(stream.index_entries)  # without what an edit list leaves out
    return min(stream.frames, indexed) if indexed else stream.frames


def promised_seconds(container: InputContainer, streams: ChosenStreams) -> float:
    """Length that the header promises of the chosen streams together; 0 where it is a guess."""
    if not any(name in container.format.name.split(",") for name in _TIMED):
        return 0.0
    own = [float(one.duration * one.time_base) for one in streams.present() if one.duration and one.time_base]
    if own:
        return max(own)
    alone = len(streams.present()) == len(container.streams)
    return (container.duration or 0) / av.time_base if alone else 0.0


def counts_packets(container: InputContainer) -> bool:
    """The container numbers its packets, and has no times at which pictures are shown (avi)."""
    return container.format.name == "avi"


def start_of(container: InputContainer) -> float:
    """Seconds at which the first presentable stream starts, by the header."""
    return (container.start_time or 0) / av.time_base
