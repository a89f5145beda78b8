"""Shot boundary detection."""

from __future__ import annotations

import numpy as np

CUT = 0.5  # share of the pixels' levels that must have changed
LEVELS = 16
GRID = 64  # pixels looked at along each side


def histogram_cuts(frames: np.ndarray, threshold: float = CUT) -> list[int]:
    """First frames of new shots in uint8 [T, H, W, 3], by colour histogram difference to the previous frame.

    The difference is half the sum of absolute differences of 16-level histograms of R, G and B, averaged: 0
    (same) .. 1 (nothing in common). Movement hardly changes it. Not PySceneDetect's ContentDetector: it
    misses cuts between pictures of like colours and slow fades, and takes a flash for two cuts.
    """
    if len(frames) < 2:
        return []
    histograms = colour_histograms(frames)
    change = np.abs(np.diff(histograms, axis=0)).sum(axis=2).mean(axis=1) / 2
    return [int(i) + 1 for i in np.flatnonzero(change > threshold)]


def colour_histograms(frames: np.ndarray) -> np.ndarray:
    """Shares of pixels per level and channel, [T, 3, 16], from a grid of about 64 x 64 pixels."""
    grid = frames[:, :: max(1, frames.shape[1] // GRID), :: max(1, frames.shape[2] // GRID)]
    num, pixels = len(grid), grid.shape[1] * grid.shape[2]
    rows = np.arange(num * 3).reshape(num, 1, 1, 3) * LEVELS
    counts = np.bincount((grid // (256 // LEVELS) + rows).ravel(), minlength=num * 3 * LEVELS)
    return counts.reshape(num, 3, LEVELS) / pixels
