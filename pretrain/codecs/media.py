"""Media in and out: mp4 (h264 + AAC), wav, flac; uint8 frames and float samples, mono by default.

Streams are aligned by the file's presentation times: the AAC encoder's priming samples are skipped, and a
stream that starts late is padded.
"""

from __future__ import annotations

import io
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import soundfile
from av.container import InputContainer, OutputContainer
from av.error import FFmpegError

from pretrain.codecs.channels import LayoutError, mixed
from pretrain.codecs.decoding import Admit, MediaError, MissingMediaError, decode, everything
from pretrain.files import replacing

SOUND_SUFFIXES = frozenset({".wav", ".flac", ".ogg"})
VIDEO_CRF = 12
AAC_BITS_PER_S = 160_000
AAC_BITS_PER_SAMPLE = 6  # the format's maximum for one channel; at 16 kHz lower than AAC_BITS_PER_S


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


def write_mp4(
    path: str | Path,
    frames: np.ndarray,
    fps: float,
    waveform: np.ndarray | None,
    sample_rate_hz: int,
    metadata: Mapping[str, str] = {},
) -> None:
    """Writes [T, H, W, 3] uint8 frames and [N] or [channels, N] float samples as h264 + AAC.

    All keys of `metadata` are kept; the file appears complete or not at all. Raises ValueError for what
    cannot be written.
    """
    path = Path(path)
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise ValueError(
            f"{path}: frames must be uint8 [T, H, W, 3] with T > 0, got {frames.dtype} {list(frames.shape)}"
        )
    if frames.shape[1] % 2 or frames.shape[2] % 2:
        raise ValueError(
            f"{path}: height and width must be even for h264, got {frames.shape[1]}x{frames.shape[2]}"
        )
    if waveform is not None:
        _check_samples(path, waveform)
    with replacing(path) as temporary:
        flags = {"movflags": "+faststart+use_metadata_tags", "fflags": "+bitexact"}
        with av.open(str(temporary), "w", format="mp4", options=flags) as container:
            container.metadata.update({key: str(value) for key, value in metadata.items()})
            _encode(container, frames, fps, waveform, sample_rate_hz)


def write_wav(path: str | Path, waveform: np.ndarray, sample_rate_hz: int) -> None:
    """Writes [N] or [channels, N] float samples in -1..1 as 16-bit wav, complete or not at all."""
    path = Path(path)
    _check_samples(path, waveform)
    with replacing(path) as temporary:
        written = io.BytesIO()  # soundfile reports a full disk without the reason
        soundfile.write(
            written, np.clip(waveform, -1.0, 1.0).T, sample_rate_hz, subtype="PCM_16", format="WAV"
        )
        temporary.write_bytes(written.getbuffer())


def fit_length(waveform: np.ndarray, num_samples: int) -> np.ndarray:
    """The first `num_samples` of [N] or [C, N], zeros behind where it is shorter."""
    return _pad(waveform[..., :num_samples], 0, max(0, num_samples - waveform.shape[-1]))


def _encode(
    container: OutputContainer, frames: np.ndarray, fps: float, waveform: np.ndarray | None, rate: int
) -> None:
    # No B-frames: the picture then needs no edit list, which some players ignore.
    options = {"crf": str(VIDEO_CRF), "preset": "veryfast", "bf": "0", "threads": "1"}
    video = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options=options)
    video.height, video.width, video.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
    audio = None
    if waveform is not None:
        waveform = np.atleast_2d(waveform)
        layout = {1: "mono", 2: "stereo"}[len(waveform)]
        audio = container.add_stream("aac", rate=rate, layout=layout)
        audio.bit_rate = len(waveform) * min(AAC_BITS_PER_S, AAC_BITS_PER_SAMPLE * rate)
    for picture in frames:
        container.mux(video.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")))
    container.mux(video.encode(None))
    if audio is not None and waveform is not None:
        samples = np.clip(waveform, -1.0, 1.0).astype(np.float32)
        for start in range(0, samples.shape[1], 1024):
            sound = av.AudioFrame.from_ndarray(
                np.ascontiguousarray(samples[:, start : start + 1024]), format="fltp", layout=layout
            )
            sound.rate, sound.pts, sound.time_base = rate, start, Fraction(1, rate)
            container.mux(audio.encode(sound))
        container.mux(audio.encode(None))


def _join_sounds(path: Path, sounds: list[tuple[float, np.ndarray]], rate: int, zero_s: float) -> np.ndarray:
    if not sounds or not sum(samples.shape[-1] for _, samples in sounds):
        raise MediaError(f"{path}: 0 seconds of sound; write the file again or drop its row")
    waveform = np.concatenate([samples for _, samples in sounds], axis=-1)
    _check_samples(path, waveform)
    late = round((sounds[0][0] - zero_s) * rate) if math.isfinite(sounds[0][0]) else 0
    return _pad(waveform, late, 0) if late > 0 else waveform[..., -late:]


def _pad(waveform: np.ndarray, before: int, behind: int) -> np.ndarray:
    return np.pad(waveform, [(0, 0)] * (waveform.ndim - 1) + [(before, behind)])


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
    _check_samples(path, waveform)
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


def _check_samples(path: Path, waveform: np.ndarray) -> None:
    if waveform.ndim > 2 or (waveform.ndim == 2 and len(waveform) > 2):
        raise ValueError(
            f"{path}: samples must be [N] or [channels, N] of 1 or 2 channels, got {list(waveform.shape)}"
        )
    if not np.isfinite(waveform).all():
        bad = int((~np.isfinite(waveform)).sum())
        raise MediaError(
            f"{path}: {bad} of {waveform.size} samples are NaN or infinite; write the sound again or drop "
            "its row"
        )
