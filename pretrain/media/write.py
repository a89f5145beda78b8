"""Clips and sounds into files: mp4 (h264 + AAC) and wav, complete or not at all."""

from __future__ import annotations

import io
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import soundfile
from av.container import OutputContainer

from pretrain.files import replacing
from pretrain.media.samples import check_samples, padded

VIDEO_CRF = 12
AAC_BITS_PER_S = 160_000
AAC_BITS_PER_SAMPLE = 6  # the format's maximum for one channel; at 16 kHz lower than AAC_BITS_PER_S


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
        check_samples(path, waveform)
    with replacing(path) as temporary:
        flags = {"movflags": "+faststart+use_metadata_tags", "fflags": "+bitexact"}
        with av.open(str(temporary), "w", format="mp4", options=flags) as container:
            container.metadata.update({key: str(value) for key, value in metadata.items()})
            _encode(container, frames, fps, waveform, sample_rate_hz)


def write_wav(path: str | Path, waveform: np.ndarray, sample_rate_hz: int) -> None:
    """Writes [N] or [channels, N] float samples in -1..1 as 16-bit wav, complete or not at all."""
    path = Path(path)
    check_samples(path, waveform)
    with replacing(path) as temporary:
        written = io.BytesIO()  # soundfile reports a full disk without the reason
        soundfile.write(
            written, np.clip(waveform, -1.0, 1.0).T, sample_rate_hz, subtype="PCM_16", format="WAV"
        )
        temporary.write_bytes(written.getbuffer())


def fit_length(waveform: np.ndarray, num_samples: int) -> np.ndarray:
    """The first `num_samples` of [N] or [C, N], zeros behind where it is shorter."""
    return padded(waveform[..., :num_samples], 0, max(0, num_samples - waveform.shape[-1]))


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
