"""Sync-C, Sync-D and offset: distances of each picture window to the sound windows around it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

VSHIFT = 15
PAIRWISE_EPS = 1e-6  # torch's pairwise_distance adds it to every difference


@dataclass(frozen=True)
class SyncDistance:
    """The published metrics. A positive offset: the sound that fits is earlier than the picture, in frames of
    40 ms."""

    confidence: float  # Sync-C (LSE-C), higher is better
    distance: float  # Sync-D (LSE-D), lower is better
    offset_frames: int


@dataclass(frozen=True)
class MaskedSyncDistance:
    """The same from pairs that exist. Not the published metric: there, rows of zeros beyond the sound's ends
    count as sound."""

    confidence: float
    distance: float
    offset_frames: int


def shift_distances(v: np.ndarray, a: np.ndarray, vshift: int = VSHIFT) -> np.ndarray:
    """d[i, j] = |v_i - a_(i + j - vshift)|, float64 [n, 2 vshift + 1], of v and a [n, D]; a is zero-padded.

    Raises ValueError for unequal shapes, no rows or values that are not finite. Source: Chung and Zisserman
    2016, in the reading of the published evaluation code.
    """
    if v.ndim != 2 or v.shape != a.shape or not len(v):
        raise ValueError(
            f"shift_distances wants two [n, D] of one shape, got {list(v.shape)} and {list(a.shape)}"
        )
    v, a = v.astype(np.float64) + PAIRWISE_EPS, a.astype(np.float64)
    if not (np.isfinite(v).all() and np.isfinite(a).all()):
        raise ValueError("shift_distances: embeddings are not finite; the network or its input is broken")
    num = len(v)
    distances = np.repeat(np.linalg.norm(v, axis=1, keepdims=True), 2 * vshift + 1, axis=1)
    for lag in range(max(-vshift, 1 - num), min(vshift, num - 1) + 1):
        rows = slice(max(0, -lag), num - max(0, lag))
        distances[rows, lag + vshift] = np.linalg.norm(v[rows] - a[max(0, lag) : num + min(0, lag)], axis=1)
    return distances


def sync_distance(distances: np.ndarray) -> SyncDistance:
    """Sync-D is the smallest of the mean distances per lag; Sync-C is their median minus it."""
    return SyncDistance(*_summary(distances.mean(axis=0)))


def masked_sync_distance(distances: np.ndarray) -> MaskedSyncDistance:
    """As `sync_distance`, but the mean of a lag is over rows with sound; lags without rows are ignored."""
    num, width = distances.shape
    other = np.arange(num)[:, None] + np.arange(width) - width // 2
    exists = (other >= 0) & (other < num)
    counts = exists.sum(axis=0)
    means = np.where(counts > 0, np.where(exists, distances, 0.0).sum(axis=0) / np.maximum(counts, 1), np.nan)
    return MaskedSyncDistance(*_summary(means))


def _summary(means: np.ndarray) -> tuple[float, float, int]:
    best = int(np.nanargmin(means))
    known = np.sort(means[np.isfinite(means)])
    median = known[(len(known) - 1) // 2]  # the lower one, as torch takes it
    return float(median - means[best]), float(means[best]), len(means) // 2 - best
