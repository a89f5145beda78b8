"""The one reader of clips, sounds and stills: uint8 frames at a constant rate and float samples.

Pictures and samples stand where the file's presentation times put them: encoder priming and what an edit list
hides are left out, holes are filled (and said), a stream that starts late is padded.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer

from pretrain.media.channels import check_channels, mixed
from pretrain.media.decoding import Sounds, decode
from pretrain.media.errors import AGAIN, MediaError, media_errors
from pretrain.media.first_picture import first_frame
from pretrain.media.geometry import shown_size
from pretrain.media.limits import LOCAL_LIMITS, Admit, MediaLimits, everything
from pretrain.media.picture_times import PictureTimes
from pretrain.media.samples import check_finite, to_rate
from pretrain.media.sniff import check_present, kind_of
from pretrain.media.soundfiles import read_sound, sound_info
from pretrain.media.stills import read_image, still_size
from pretrain.media.streams import (
    check_header,
    chosen,
    declared_rates,
    open_container,
    pixel_aspect,
    start_of,
)
from pretrain.media.timeline import DEFAULT_FPS, nominal_rate, plan_sounds

DEFAULT_RATE_HZ = 16_000


@dataclass(frozen=True)
class Media:
    """A clip in memory; None = not wanted, or not there."""

    frames: np.ndarray | None  # [T, H, W, 3] uint8 RGB
    fps: float
    waveform: np.ndarray | None  # float32 in -1..1, mono [N] or stereo [2, N]
    sample_rate_hz: int
    # what was put where the file has holes, and what else is to know of it: `repeated_frames`, `silence_s`,
    # `overlap_s` (cut out), `interlaced_frames`
    mended: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class MediaInfo:
    """A file by its headers and times, nothing but one picture decoded; None = no such stream."""

    fps: float | None
    sample_rate_hz: int | None
    height: int | None  # as shown: upright, square pixels
    width: int | None
    duration_s: float | None


def read_media(
    path: str | Path,
    *,
    fps: float | None = DEFAULT_FPS,
    sample_rate_hz: int | None = DEFAULT_RATE_HZ,
    want_video: bool | None = True,
    want_audio: bool | None = True,
    channels: int = 1,
    limits: MediaLimits = LOCAL_LIMITS,
) -> Media:
    """Reads a clip, a sound or a still at the requested rates; None = the file's own.

    Pictures come at a constant rate by their times (`timeline.show`), sound of another rate by polyphase
    resampling (both logged once per process), several channels as `channels.mixed` makes them. want_video,
    want_audio: True, False, or None for where the file has it. Raises MediaError (a ValueError) for a file
    that is missing, empty, corrupt, truncated, beyond `limits`, without a wanted stream, 0 seconds long, of
    non-finite samples, or HDR.
    """
    path = Path(path)
    check_channels(channels)
    check_present(path)
    kind = kind_of(path)
    if kind == "still":
        return _still(path, fps, sample_rate_hz, want_video, want_audio, limits)
    if kind == "sound":
        if want_video:
            raise MediaError(
                f"{path}: no video stream (a sound file); give an mp4 or put the row into an audio-only set"
            )
        if want_audio is not False and (read := read_sound(path, channels, limits)) is not None:
            waveform, found_rate = read
            rate = sample_rate_hz or found_rate
            waveform = _resampled(path, waveform, found_rate, rate)
            return Media(None, fps or DEFAULT_FPS, waveform, rate)
    with media_errors(path), open_container(path) as container:
        return read_container(
            path,
            container,
            fps=fps,
            sample_rate_hz=sample_rate_hz,
            want_video=want_video,
            want_audio=want_audio,
            channels=channels,
            limits=limits,
        )


def read_container(
    path: Path,
    container: InputContainer,
    *,
    fps: float | None,
    sample_rate_hz: int | None,
    want_video: bool | None,
    want_audio: bool | None,
    channels: int = 1,
    limits: MediaLimits = LOCAL_LIMITS,
    admit: Admit = everything,
) -> Media:
    """`read_media` of an open container; `path` is for errors. `admit` sees each decoded frame and may raise.

    Raises MediaError as `read_media` does, FFmpegError for corrupt content, LayoutError for channels of
    unknown places, and whatever `admit` does.
    """
    streams = chosen(path, container, want_video, want_audio)
    check_header(path, container, streams, limits)
    pictures, sounds = decode(path, container, streams, limits, admit)
    frames, waveform, mended, zero_s = None, None, {}, start_of(container)
    if streams.video is not None:
        if not pictures.frames:
            raise MediaError(f"{path}: 0 seconds of video; {AGAIN}")
        shown = pictures.settled(declared_rates(streams.video))
        zero_s = float(shown.times[0])
        fps, frames = _on_ticks(path, pictures.frames, shown, fps, limits, mended)
    rate = sample_rate_hz or DEFAULT_RATE_HZ
    if streams.audio is not None:
        waveform = _joined(path, sounds, channels, zero_s, limits, mended)
        rate = sample_rate_hz or sounds.rate
        waveform = _resampled(path, waveform, sounds.rate, rate)
    return Media(frames, fps or DEFAULT_FPS, waveform, rate, mended)


def probe(path: str | Path, limits: MediaLimits = LOCAL_LIMITS) -> MediaInfo:
    """A file's own rates and its size as shown, by its headers and packet times; raises MediaError."""
    path = Path(path)
    check_present(path)
    kind = kind_of(path)
    if kind == "still":
        height, width = still_size(path, limits)
        return MediaInfo(None, None, height, width, None)
    if kind == "sound" and (info := sound_info(path)) is not None:
        return MediaInfo(None, info.samplerate, None, None, info.frames / max(1, info.samplerate))
    with media_errors(path), open_container(path) as container:
        streams = chosen(path, container, None, None)
        duration_s = container.duration / av.time_base if container.duration else None
        rate = streams.audio.rate if streams.audio is not None else None
        if streams.video is None:
            return MediaInfo(None, rate, None, None, duration_s)
        frame, _ = first_frame(path, container, limits)
        height, width = shown_size(path, frame, pixel_aspect(streams.video))
    with media_errors(path), open_container(path) as container:
        video = chosen(path, container, True, False).video
        assert video is not None
        shown = [packet for packet in container.demux(video) if packet.size and not packet.is_discard]
        times = [float(packet.pts * packet.time_base) for packet in shown if packet.pts is not None]
        fps = nominal_rate(np.array(times), declared_rates(video))
    return MediaInfo(fps, rate, height, width, duration_s)


def read_metadata(path: str | Path) -> dict[str, str]:
    """The container's tags, e.g. those that `write_mp4` was given; raises MediaError as `read_media` does."""
    path = Path(path)
    check_present(path)
    with media_errors(path), open_container(path) as container:
        return dict(container.metadata)


def _still(
    path: Path,
    fps: float | None,
    rate: int | None,
    want_video: bool | None,
    want_audio: bool | None,
    limits: MediaLimits,
) -> Media:
    if want_audio or want_video is False:
        raise MediaError(f"{path}: no audio stream (a still); give an mp4 or a sound")
    frames = read_image(path, limits)[None]
    return Media(frames, fps or DEFAULT_FPS, None, rate or DEFAULT_RATE_HZ)


def _on_ticks(
    path: Path,
    pictures: Sequence[np.ndarray],
    shown: PictureTimes,
    fps: float | None,
    limits: MediaLimits,
    mended: dict[str, float],
) -> tuple[float, np.ndarray]:
    """(frames a second, uint8 [T, H, W, 3])."""
    fps = fps or shown.nominal
    height, width = pictures[0].shape[:2]
    limits.check_picture(path, width, height, shown.num_ticks(fps))
    showing = shown.whole(fps)
    if abs(shown.nominal - fps) > 1e-3 * fps:
        _say(f"frame rate {shown.nominal:g} fps, wanted {fps:g}: the frame nearest in time is taken", path)
    mended |= shown.mended(showing)
    return fps, np.stack([pictures[index] for index in showing.index])


def _joined(
    path: Path, sounds: Sounds, channels: int, zero_s: float, limits: MediaLimits, mended: dict[str, float]
) -> np.ndarray:
    """float32 [N] or [2, N] from zero on."""
    lengths = [chunk.shape[1] for chunk in sounds.chunks]
    if not sum(lengths):
        raise MediaError(f"{path}: 0 seconds of sound; {AGAIN}")
    plan = plan_sounds([time - zero_s for time in sounds.times], lengths, sounds.rate)
    if plan.num_samples <= 0:
        raise MediaError(f"{path}: its sound ends before its pictures begin; {AGAIN}")
    limits.check_seconds(path, plan.num_samples / sounds.rate)
    pieces, cursor = [], 0
    for placed in plan.placed:
        chunk = sounds.chunks[placed.chunk]
        if placed.start > cursor:
            pieces.append(np.zeros((len(chunk), placed.start - cursor), np.float32))
        pieces.append(chunk[:, placed.cut :])
        cursor = placed.start + pieces[-1].shape[1]
    whole = np.concatenate(pieces, axis=1)
    check_finite(path, whole)
    for name, samples in (("silence_s", plan.silence), ("overlap_s", plan.overlap)):
        if samples:
            mended[name] = round(samples / sounds.rate, 4)
    return mixed(whole, channels, sounds.layout)


def _resampled(path: Path, waveform: np.ndarray, found: int, wanted: int) -> np.ndarray:
    if found != wanted:
        _say(f"sample rate {found} Hz, wanted {wanted}: the sound is resampled", path)
    return to_rate(waveform, found, wanted)


_said: set[str] = set()


def _say(what: str, example: Path) -> None:
    if what not in _said:
        _said.add(what)
        logging.getLogger(__name__).warning("%s: %s (said once; other files may have it too)", example, what)
