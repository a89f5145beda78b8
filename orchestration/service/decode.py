"""Decodes untrusted files of a request: kind by content, header checked first, output size bounded.

Runs in a process that may be killed (`decode_worker`)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np
import soundfile
from av.container import InputContainer
from av.error import FFmpegError

from orchestration.service.limits import Limits, Refusal
from orchestration.service.paths import open_checked
from pretrain.config import one_line
from pretrain.media.channels import mixed
from pretrain.media.errors import LayoutError, MediaError, MediaLimitError
from pretrain.media.limits import MediaLimits
from pretrain.media.read import Media, read_container
from pretrain.media.samples import to_rate
from pretrain.media.stills import decode_still
from pretrain.media.streams import ChosenStreams, best_streams

REFERENCE_RATE_HZ = 16_000
# Codecs of mp4, mov, mkv and webm files; each of FFmpeg's hundreds of others would be one more parser of
# hostile bytes.
CODECS = (
    "h264,hevc,av1,libdav1d,vp8,libvpx,vp9,libvpx-vp9,mpeg4,aac,mp3,mp3float,flac,alac,opus,libopus,vorbis,"
    "ac3,pcm_u8,pcm_s16le,pcm_s16be,pcm_s24le,pcm_f32le"
)
# FFmpeg's demuxer of a container -> the names that it answers to
DEMUXERS = {"mp4": "mov,mp4,m4a,3gp,3g2,mj2", "matroska": "matroska,webm"}
MAX_STREAMS = 8
FPS_RANGE = (1.0, 240.0)
RATE_RANGE_HZ = (4_000, 384_000)


@dataclass(frozen=True)
class DecodeJob:
    """Real paths of a request's files; errors call them by their fields."""

    clip: str | None = None  # none where only other files are decoded
    audio: str | None = None
    references: Sequence[str | None] = ()
    first_frame: str | None = None
    reference_sound: str | None = None


@dataclass
class Decoded:
    """uint8 [T, H, W, 3] frames, float32 sounds; `references` 16 kHz, `reference_sound` the clip's rate."""

    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    fps: float = 24.0
    sample_rate_hz: int = REFERENCE_RATE_HZ
    mended: dict[str, float] = field(default_factory=dict)  # as of `Media`


def decode_job(job: DecodeJob, limits: Limits, roots: Sequence[Path]) -> Decoded:
    """Decodes the request's files. Raises Refusal: 413 too large, 415 kind, 422 corrupt, 403 path."""
    budget = _Budget(limits)
    decoded = Decoded()
    if job.clip is not None:
        _clip(job.clip, job, roots, budget, decoded)
    for index, reference in enumerate(job.references):
        if reference is not None:
            where = f"references[{index}]"
            with _opened(reference, roots, where, limits) as file:
                samples, rate = _sound(file, where, budget)
            decoded.arrays[where] = _resampled(samples, rate, REFERENCE_RATE_HZ, where, budget)
    if job.reference_sound is not None:
        with _opened(job.reference_sound, roots, "reference_sound", limits) as file:
            samples, rate = _sound(file, "reference_sound", budget)
        decoded.arrays["reference_sound"] = _resampled(
            samples, rate, decoded.sample_rate_hz, "reference_sound", budget
        )
    if job.first_frame is not None:
        with _opened(job.first_frame, roots, "first_frame", limits) as file:
            decoded.arrays["first_frame"] = _picture(file, budget)
    return decoded


def _clip(clip: str, job: DecodeJob, roots: Sequence[Path], budget: _Budget, decoded: Decoded) -> None:
    with _opened(clip, roots, "clip", budget.limits) as file:
        if (kind := _kind(file, "clip")) == "sound":
            waveform, decoded.sample_rate_hz = _sound(file, "clip", budget)
            decoded.arrays["waveform"] = _flat(waveform)
        else:
            _video(file, kind, budget, decoded, want_audio=job.audio is None)
    if job.audio is not None:
        with _opened(job.audio, roots, "audio", budget.limits) as file:
            waveform, decoded.sample_rate_hz = _sound(file, "audio", budget)
        decoded.arrays["waveform"] = _flat(waveform)


class _Budget:
    """Counts what is decoded, over all files of a request."""

    def __init__(self, limits: Limits) -> None:
        self.limits, self.bytes = limits, 0

    def add(self, num_bytes: int, where: str) -> None:
        self.bytes += num_bytes
        self.check(0, where)

    def check(self, num_bytes: int, where: str) -> None:
        """Raises Refusal where so many bytes more would be too many."""
        if self.bytes + num_bytes > self.limits.decoded_bytes:
            raise Refusal(
                413,
                f"{where}: more than {self.limits.decoded_bytes} bytes when decoded; send a shorter or "
                "smaller clip",
                "clip",
            )


class _Admission:
    """Refuses the frame with which a clip is larger than its header and the limits allow."""

    def __init__(self, budget: _Budget) -> None:
        self.budget, self.limits = budget, budget.limits
        self.frames, self.seconds, self.size = 0, 0.0, (0, 0)

    def __call__(self, frame: av.VideoFrame | av.AudioFrame) -> None:
        if frame.time is not None and not -1.0 <= frame.time <= self.limits.clip_seconds + 1.0:
            _too_long(f"a frame at {frame.time:g} s", self.limits)
        if isinstance(frame, av.VideoFrame):
            self.frames += 1
            self.size = self.size if self.frames > 1 else (frame.width, frame.height)
            if (frame.width, frame.height) != self.size:
                raise Refusal(
                    422,
                    f"clip: frames of {self.size} and {(frame.width, frame.height)} pixels; encode it again",
                    "clip",
                )
            _check_picture(self.frames, frame.width, frame.height, self.limits)
            self.budget.add(3 * frame.width * frame.height, "clip")
        else:
            self.seconds += frame.samples / max(1, frame.sample_rate)
            if self.seconds > self.limits.clip_seconds:
                _too_long(f"over {self.limits.clip_seconds:g} s of sound", self.limits)
            self.budget.add(4 * frame.samples * frame.layout.nb_channels, "clip")


def _video(file: BinaryIO, kind: str, budget: _Budget, decoded: Decoded, want_audio: bool) -> None:
    # From a file object with a named format: no playlist, no other protocol, no file beside it is ever
    # opened.
    options = {
        "protocol_whitelist": "none",
        "format_whitelist": DEMUXERS[kind],
        "codec_whitelist": CODECS,
        "enable_drefs": "0",
    }
    try:
        # titles may be Latin-1
        with av.open(file, mode="r", format=kind, options=options, metadata_errors="replace") as container:
            streams = best_streams(container)
            _check_container(container, streams, budget)
            media = read_container(
                Path("clip"),
                container,
                fps=None,
                sample_rate_hz=None,
                want_video=streams.video is not None,
                want_audio=want_audio and streams.audio is not None,
                limits=media_limits(budget.limits),
                admit=_Admission(budget),
            )
    except MediaLimitError as error:
        raise Refusal(413, str(error), "clip") from None
    except (FFmpegError, LayoutError, MediaError) as error:
        reason = (
            error.strerror
            if isinstance(error, FFmpegError)
            else str(error).removeprefix("clip: ").partition(";")[0]
        )
        raise Refusal(
            422, f"clip: not a video that can be decoded ({reason}); encode it as h264 and AAC", "clip"
        ) from None
    _take(media, budget, decoded)


def _take(media: Media, budget: _Budget, decoded: Decoded) -> None:
    """`media` into `decoded`. Raises Refusal for a rate that is not taken, or too much to fill."""
    if media.frames is not None:
        _check_fps(media.fps)
        decoded.fps = media.fps
    if media.waveform is not None:
        decoded.sample_rate_hz = media.sample_rate_hz
    decoded.mended = dict(media.mended)
    for name, array in (("frames", media.frames), ("waveform", media.waveform)):
        if array is not None:
            decoded.arrays[name] = array
    filled = sum(array.nbytes for array in decoded.arrays.values()) - budget.bytes
    budget.add(max(0, filled), "clip")


def media_limits(limits: Limits) -> MediaLimits:
    """The service's limits as the reader takes them; a second more for what a container rounds."""
    return MediaLimits(
        pixels=limits.pixels,
        frames=limits.frames,
        seconds=limits.clip_seconds + 1.0,
        decoded_bytes=limits.decoded_bytes,
    )


def _check_container(container: InputContainer, streams: ChosenStreams, budget: _Budget) -> None:
    """What the header promises is held against the limits before a frame is decoded."""
    limits = budget.limits
    if len(container.streams) > MAX_STREAMS or not streams.present():
        raise Refusal(
            422, f"clip: {len(container.streams)} streams; send one of picture and one of sound", "clip"
        )
    if container.duration is not None and not 0 <= container.duration / 1e6 <= limits.clip_seconds:
        _too_long(f"{container.duration / 1e6:g} s", limits)
    if streams.audio is not None:
        _check_rate(streams.audio.rate, streams.audio.codec_context.channels, "clip")
    if (picture := streams.video) is None:
        return
    if rate := picture.average_rate or picture.guessed_rate:
        _check_fps(float(rate))
    context = picture.codec_context
    _check_picture(picture.frames, context.width, context.height, limits)
    budget.check(3 * picture.frames * context.width * context.height, "clip")


def _check_fps(rate: float) -> None:
    if not FPS_RANGE[0] <= rate <= FPS_RANGE[1]:
        raise Refusal(
            422, f"clip: {rate:g} frames a second; {FPS_RANGE[0]:g} to {FPS_RANGE[1]:g} are taken", "clip"
        )


def _check_picture(frames: int, width: int, height: int, limits: Limits, where: str = "clip") -> None:
    if width * height > limits.pixels:
        raise Refusal(413, f"{where}: {width}x{height} pixels; at most {limits.pixels} are taken", "clip")
    if frames > limits.frames:
        raise Refusal(413, f"clip: {frames} frames; at most {limits.frames} are taken", "clip")


def _check_rate(rate: int, channels: int, where: str) -> None:
    if not RATE_RANGE_HZ[0] <= rate <= RATE_RANGE_HZ[1] or not 1 <= channels <= 8:
        raise Refusal(
            422,
            f"{where}: sound of {rate} Hz and {channels} channels; encode it as mono or stereo of 16 to 48 "
            "kHz",
            "clip",
        )


def _sound(file: BinaryIO, where: str, budget: _Budget) -> tuple[np.ndarray, int]:
    """float32 [C, N] and its rate."""
    if _kind(file, where) != "sound":
        raise Refusal(415, f"{where}: not a sound; send wav or flac", "clip")
    start = file.read(8)
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if start[:4] == b"RIFF" and int.from_bytes(start[4:], "little") + 8 > size:
        raise Refusal(
            422, f"{where}: its header tells more bytes than the {size} it has; write it again", "clip"
        )
    try:
        with soundfile.SoundFile(file) as sound:
            _check_rate(sound.samplerate, sound.channels, where)
            if sound.frames > budget.limits.clip_seconds * sound.samplerate:
                _too_long(f"{sound.frames / sound.samplerate:g} s of sound", budget.limits, where)
            budget.add(4 * sound.frames * sound.channels, where)
            samples, rate = sound.read(dtype="float32", always_2d=True), sound.samplerate
    except (soundfile.LibsndfileError, soundfile.SoundFileRuntimeError, RuntimeError) as error:
        raise Refusal(
            422, f"{where}: not a sound that can be decoded ({one_line(error, 120)})", "clip"
        ) from None
    if not len(samples) or not np.isfinite(samples).all():
        raise Refusal(
            422, f"{where}: 0 seconds of sound, or samples that are not finite; write it again", "clip"
        )
    return samples.T, rate


def _resampled(samples: np.ndarray, rate: int, wanted: int, where: str, budget: _Budget) -> np.ndarray:
    budget.add(4 * samples.shape[1] * wanted // rate, where)
    return to_rate(mixed(samples, 1), rate, wanted)


def _picture(file: BinaryIO, budget: _Budget) -> np.ndarray:
    where = "first_frame"
    try:
        picture = decode_still(Path(where), file, media_limits(budget.limits), formats=("PNG", "JPEG"))
    except MediaLimitError as error:
        raise Refusal(413, str(error), "clip") from None
    except MediaError as error:
        raise Refusal(422, str(error), "clip") from None
    except (OSError, ValueError, SyntaxError):
        raise Refusal(422, f"{where}: not a png or jpeg that can be decoded", "clip") from None
    budget.add(picture.nbytes, where)
    return picture


def _opened(path: str, roots: Sequence[Path], where: str, limits: Limits) -> BinaryIO:
    descriptor = open_checked(Path(path), roots)
    file = os.fdopen(descriptor, "rb")
    if (size := os.fstat(descriptor).st_size) > limits.file_bytes:
        file.close()
        raise Refusal(413, f"{where}: a file of {size} bytes; at most {limits.file_bytes} are taken", "clip")
    return file


def _kind(file: BinaryIO, where: str) -> str:
    """`sound` or a key of DEMUXERS by the first bytes; names and content types may say what they like."""
    start = file.read(12)
    file.seek(0)
    if (start[:4] == b"RIFF" and start[8:] == b"WAVE") or start[:4] == b"fLaC":
        return "sound"
    if start[4:8] == b"ftyp":
        return "mp4"
    if start[:4] == b"\x1a\x45\xdf\xa3":  # EBML
        return "matroska"
    raise Refusal(
        415, f"{where}: neither mp4, mkv, webm, wav nor flac by its first bytes; send one of them", "clip"
    )


def _flat(samples: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(samples[0] if len(samples) == 1 else samples)


def _too_long(found: str, limits: Limits, where: str = "clip") -> None:
    raise Refusal(413, f"{where}: {found}; at most {limits.clip_seconds:g} s are taken", "clip")


def array_table(arrays: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Name, dtype and shape of each, as JSON."""
    return [
        {"name": name, "dtype": str(array.dtype), "shape": list(array.shape)}
        for name, array in arrays.items()
    ]
