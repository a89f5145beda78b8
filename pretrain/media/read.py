"""Media in and out: mp4 (h264 + AAC), wav, flac; uint8 frames and float samples, mono by default.

Streams are aligned by the file's presentation times: the AAC encoder's priming samples are skipped, and a
stream that starts late is padded.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import soundfile
from av.container import InputContainer
from av.error import FFmpegError

from pretrain.media.channels import LayoutError, mixed
from pretrain.media.decoding import Admit, decode, everything
from pretrain.media.errors import MediaError, MissingMediaError
from pretrain.media.samples import check_samples, padded

SOUND_SUFFIXES = frozenset({".wav", ".flac", ".ogg"})


@dataclass(frozen=True)
class Media:
    """A clip in memory; None = not requested."""

    frames: np.ndarray | None  # [T, H, W, 3] uint8 RGB
    fps: float
    waveform: np.ndarray | None  # float32 in -1..1, mono [N] or stereo [2, N]
    sample_rate_hz: int


@dataclass(frozen=True)
class Rates:
    """A file's rates by its header; None = no such stream."""

    fps: float | None
    sample_rate_hz: int | None


def read_media(
    path: str | Path,
    *,
    fps: float = 24.0,
    sample_rate_hz: int = 16_000,
    want_video: bool = True,
    want_audio: bool = True,
    channels: int = 1,
) -> Media:
    """Reads a clip or a sound at the requested rates.

    Another frame rate is brought to `fps` by taking the frame nearest in time, another sample rate by
    polyphase resampling (both logged once per process), several channels to 1 or 2 as `channels.mixed` does.
    Raises MediaError (a ValueError) for a file that is missing, empty, corrupt, truncated, without a wanted
    stream, 0 seconds long, or with non-finite samples.
    """
    path = Path(path)
    _check_present(path)
    if path.suffix.lower() in SOUND_SUFFIXES:
        if want_video:
            raise MediaError(
                f"{path}: no video stream (a sound file); give an mp4 or put the row into an audio-only set"
            )
        # soundfile reports no layout of more channels
        if channels == 1 or _sound_header(path).channels <= 2:
            waveform, found_rate = _read_sound(path, channels)
            return Media(None, fps, to_rate(path, waveform, found_rate, sample_rate_hz), sample_rate_hz)
    try:
        with av.open(str(path), options={"threads": "1"}) as container:
            return read_container(
                path,
                container,
                fps=fps,
                sample_rate_hz=sample_rate_hz,
                want_video=want_video,
                want_audio=want_audio,
                channels=channels,
            )
    except FFmpegError as error:
        raise MediaError(
            f"{path}: corrupt or not a media file ({error.strerror}); write the file again or drop its row"
        ) from None
    except LayoutError as error:
        raise MediaError(f"{path}: {error}") from None


def read_container(
    path: Path,
    container: InputContainer,
    *,
    fps: float,
    sample_rate_hz: int,
    want_video: bool,
    want_audio: bool,
    channels: int = 1,
    admit: Admit = everything,
) -> Media:
    """`read_media` of an open container; `path` is for errors. `admit` sees each decoded frame and may raise.

    Raises MediaError as `read_media` does, FFmpegError for corrupt content and LayoutError for channels of
    unknown places.
    """
    frames, waveform = None, None
    pictures, sounds, offset_s = decode(path, container, want_video, want_audio, channels, admit)
    if want_video:
        frames = _to_fps(path, pictures, container.streams.video[0], fps)
    if want_audio:
        found_rate = container.streams.audio[0].rate
        waveform = to_rate(path, _join_sounds(path, sounds, found_rate, offset_s), found_rate, sample_rate_hz)
    return Media(frames, fps, waveform, sample_rate_hz)


def read_rates(path: str | Path) -> Rates:
    """The file's own rates, from its header, for `read_media` without resampling; raises MediaError."""
    path = Path(path)
    _check_present(path)
    if path.suffix.lower() in SOUND_SUFFIXES:
        return Rates(None, _sound_header(path).samplerate)
    try:
        with av.open(str(path)) as container:
            video, audio = container.streams.video, container.streams.audio
            fps = float(video[0].average_rate or video[0].guessed_rate or 24.0) if video else None
            return Rates(fps, audio[0].rate if audio else None)
    except FFmpegError as error:
        raise MediaError(
            f"{path}: corrupt or not a media file ({error.strerror}); write the file again or drop its row"
        ) from None


def read_size(path: str | Path) -> tuple[int, int]:
    """(height, width) of a picture or video in pixels, from its header; raises MediaError."""
    path = Path(path)
    _check_present(path)
    try:
        with av.open(str(path)) as container:
            if container.streams.video:
                codec = container.streams.video[0].codec_context
                return codec.height, codec.width
    except FFmpegError as error:
        raise MediaError(
            f"{path}: corrupt or not a media file ({error.strerror}); write the file again or drop its row"
        ) from None
    raise MissingMediaError(f"{path}: no picture in it; give an image or an mp4")


def read_metadata(path: str | Path) -> dict[str, str]:
    """The container's tags, e.g. those that `write_mp4` was given; raises MediaError as `read_media` does."""
    path = Path(path)
    _check_present(path)
    try:
        with av.open(str(path)) as container:
            return dict(container.metadata)
    except FFmpegError as error:
        raise MediaError(
            f"{path}: corrupt or not a media file ({error.strerror}); write the file again"
        ) from None


def _join_sounds(path: Path, sounds: list[tuple[float, np.ndarray]], rate: int, zero_s: float) -> np.ndarray:
    if not sounds or not sum(samples.shape[-1] for _, samples in sounds):
        raise MediaError(f"{path}: 0 seconds of sound; write the file again or drop its row")
    waveform = np.concatenate([samples for _, samples in sounds], axis=-1)
    check_samples(path, waveform)
    late = round((sounds[0][0] - zero_s) * rate) if math.isfinite(sounds[0][0]) else 0
    return padded(waveform, late, 0) if late > 0 else waveform[..., -late:]


def _to_fps(
    path: Path, pictures: list[tuple[float, np.ndarray]], stream: av.VideoStream, fps: float
) -> np.ndarray:
    if not pictures:
        raise MediaError(f"{path}: 0 seconds of video; write the file again or drop its row")
    if stream.frames and len(pictures) < 0.9 * stream.frames:
        raise MediaError(
            f"{path}: truncated, {len(pictures)} of {stream.frames} frames can be read; write the file "
            "again or drop its row"
        )
    frames = np.stack([picture for _, picture in pictures])
    found = float(stream.average_rate or stream.guessed_rate or fps)
    if len(frames) == 1 or abs(found - fps) <= 1e-3 * fps:  # a picture file has no rate
        return frames
    _say_resampled(f"frame rate {found:g} fps, wanted {fps:g}: the frame nearest in time is taken", str(path))
    times = np.array([time for time, _ in pictures]) - pictures[0][0]
    frame_times = np.arange(max(1, round(len(frames) / found * fps))) / fps
    return frames[np.abs(frame_times[:, None] - times[None]).argmin(axis=1)]


def _sound_header(path: Path) -> soundfile._SoundFileInfo:
    try:
        return soundfile.info(path)
    except soundfile.LibsndfileError as error:
        raise MediaError(
            f"{path}: corrupt or not a sound ({error.error_string}); write the file again or drop its row"
        ) from None


def _read_sound(path: Path, channels: int) -> tuple[np.ndarray, int]:
    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise MediaError(
            f"{path}: corrupt or not a sound ({error.error_string}); write the file again or drop its row"
        ) from None
    if not len(samples):
        raise MediaError(f"{path}: 0 seconds of sound; write the file again or drop its row")
    waveform = mixed(samples.T, channels)
    check_samples(path, waveform)
    return waveform, rate


def to_rate(path: Path, waveform: np.ndarray, found: int, wanted: int) -> np.ndarray:
    """Float [..., N] samples at another rate (polyphase), logged once per process with `path`."""
    if found == wanted:
        return waveform.astype(np.float32, copy=False)
    _say_resampled(f"sample rate {found} Hz, wanted {wanted}: the sound is resampled", str(path))
    from scipy.signal import resample_poly  # slow to import, seldom needed

    common = math.gcd(found, wanted)
    return resample_poly(waveform, wanted // common, found // common, axis=-1).astype(np.float32)


_said: set[str] = set()


def _say_resampled(what: str, example: str) -> None:
    if what not in _said:
        _said.add(what)
        logging.getLogger(__name__).warning("%s: %s (said once; other files may have it too)", example, what)


def _check_present(path: Path) -> None:
    if not path.is_file():
        raise MissingMediaError(
            f"{path}: no such file; check the path (relative ones start at the JSONL's folder)"
        )
    if not path.stat().st_size:
        raise MediaError(f"{path}: empty file (0 bytes); write it again or drop its row")
