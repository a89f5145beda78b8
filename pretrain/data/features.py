"""Compact clip features for data selection: picture, motion, sound and kind."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from pretrain.codecs.mel import HOP, log_mel

CELLS = 8  # the picture is averaged over CELLS x CELLS fields
SOUND_PARTS = 4  # the spectrum is averaged over so many parts of the clip, besides over the whole


def picture_features(frames: np.ndarray) -> np.ndarray:
    """[T, H, W, 3] uint8 -> [384]: mean and standard deviation over time of an 8x8 picture."""
    height, width = (size // CELLS * CELLS for size in frames.shape[1:3])
    fields = frames[:, :height, :width].reshape(len(frames), CELLS, height // CELLS, CELLS, width // CELLS, 3)
    small = fields.mean(axis=(2, 4), dtype=np.float32) / 255.0
    return np.concatenate([small.mean(axis=0).ravel(), small.std(axis=0).ravel()])


def sound_features(waveform: np.ndarray) -> np.ndarray:
    """[N] float at 16 kHz -> [384]: mean and std of the log-mel spectrum, and the means of its quarters."""
    padded = np.pad(waveform, (0, -len(waveform) % HOP)).astype(np.float32)
    spectrum = log_mel(torch.from_numpy(padded)[None])[0].numpy()
    parts = [part.mean(axis=1) for part in np.array_split(spectrum, SOUND_PARTS, axis=1)]
    return np.concatenate([spectrum.mean(axis=1), spectrum.std(axis=1), *parts])


def similarities(groups: Sequence[np.ndarray]) -> np.ndarray:
    """[n, n] in 0..1 from feature groups [n, d]: exp(-distance^2 / median), every group with the same say."""
    total = np.zeros((len(groups[0]), len(groups[0])), np.float64)
    for group in groups:
        values = np.asarray(group, np.float64) - group.mean(axis=0)
        squares = (values**2).sum(axis=1)
        distances = np.maximum(squares[:, None] + squares[None] - 2 * values @ values.T, 0.0)
        total += distances / max(float(distances.mean()), 1e-12)
    off_diagonal = total[~np.eye(len(total), dtype=bool)]
    return (
        np.exp(-total / max(float(np.median(off_diagonal)), 1e-12)) if len(total) > 1 else np.ones_like(total)
    )
