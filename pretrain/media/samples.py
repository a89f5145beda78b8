"""Checks, lengths and rates of sampled sound."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from pretrain.media.errors import MediaError


def check_samples(path: Path, waveform: np.ndarray) -> None:
    """Raises ValueError for shapes other than [N] and [1 or 2, N], MediaError for non-finite samples."""
    if waveform.ndim > 2 or (waveform.ndim == 2 and len(waveform) > 2):
        raise ValueError(
            f"{path}: samples must be [N] or [channels, N] of 1 or 2 channels, got {list(waveform.shape)}"
        )
    check_finite(path, waveform)


def check_finite(path: Path, samples: np.ndarray) -> None:
    finite = np.isfinite(samples)
    if not finite.all():
        bad = int(samples.size - finite.sum())
        raise MediaError(
            f"{path}: {bad} of {samples.size} samples are NaN or infinite; write the sound again or drop "
            "its row"
        )


def padded(waveform: np.ndarray, before: int, behind: int) -> np.ndarray:
    return np.pad(waveform, [(0, 0)] * (waveform.ndim - 1) + [(before, behind)])


def to_rate(waveform: np.ndarray, found: int, wanted: int) -> np.ndarray:
    """Float [..., N] samples at another rate (polyphase)."""
    if found == wanted:
        return waveform.astype(np.float32, copy=False)
    from scipy.signal import resample_poly  # slow to import, seldom needed

    common = math.gcd(found, wanted)
    return resample_poly(waveform, wanted // common, found // common, axis=-1).astype(np.float32)
