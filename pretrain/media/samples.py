"""Checks and lengths of sampled sound."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pretrain.media.errors import MediaError


def check_samples(path: Path, waveform: np.ndarray) -> None:
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


def padded(waveform: np.ndarray, before: int, behind: int) -> np.ndarray:
    return np.pad(waveform, [(0, 0)] * (waveform.ndim - 1) + [(before, behind)])
