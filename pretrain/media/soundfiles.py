"""wav, flac and ogg files through libsndfile."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

from pretrain.media.channels import mixed
from pretrain.media.errors import AGAIN, MediaError, media_errors
from pretrain.media.limits import MediaLimits
from pretrain.media.samples import check_finite

_STREAMED = (0, 0x7FFFFFFF, 0x7FFFFFFF + 36, 0xFFFFFFFF, 0xFFFFFFFF - 8)  # sizes of a wav written to a pipe


def sound_info(path: Path) -> soundfile._SoundFileInfo | None:
    """None for a file that libsndfile does not read, FFmpeg may."""
    try:
        return soundfile.info(path)
    except (soundfile.LibsndfileError, RuntimeError):
        return None


def read_sound(path: Path, channels: int, limits: MediaLimits) -> tuple[np.ndarray, int] | None:
    """(float32 [N] or [2, N], rate); None where FFmpeg has to read the file: another codec, or more than two
    channels, whose places libsndfile does not tell. Raises MediaError."""
    info = sound_info(path)
    if info is None or info.channels > 2:
        return None
    _check_whole(path)
    limits.check_seconds(path, info.frames / max(1, info.samplerate))
    limits.check_bytes(path, 4 * info.frames * info.channels)
    with media_errors(path, "a sound"):
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    if not len(samples):
        raise MediaError(f"{path}: 0 seconds of sound; {AGAIN}")
    check_finite(path, samples)
    return mixed(samples.T, channels), rate


def _check_whole(path: Path) -> None:
    """Raises MediaError for a wav whose header tells of more than 10 % beyond what is there."""
    with path.open("rb") as file:
        start = file.read(8)
    promised, found = int.from_bytes(start[4:8], "little"), path.stat().st_size - 8
    if start[:4] == b"RIFF" and promised not in _STREAMED and found < 0.9 * promised:
        raise MediaError(f"{path}: truncated, {found} of {promised} bytes are there; {AGAIN}")
