"""Fréchet distance between two sets of embeddings, and the quantity that Verse-Bench names so."""

from __future__ import annotations

import numpy as np

NEGLIGIBLE = 1e-6  # of the largest eigenvalue: a covariance may be that far from positive through rounding


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Squared 2-Wasserstein distance of the Gaussians fitted to [N, D] and [M, D]; lower is better.

    N, M >= 2, and better >> D; 0 for equal sets.

    |m1 - m2|^2 + tr(S1 + S2 - 2 (S1^(1/2) S2 S1^(1/2))^(1/2)), the square of the 2-Wasserstein distance
      (Dowson & Landau 1982). Raises ValueError for other shapes and for embeddings that are not finite.
    """
    for name, points in (("first", first), ("second", second)):
        if points.ndim != 2 or len(points) < 2:
            raise ValueError(
                f"{name} set must be [N >= 2, D], got {list(points.shape)}; one embedding has no covariance"
            )
        if not np.isfinite(points).all():
            raise ValueError(
                f"{name} set has {int((~np.isfinite(points)).sum())} entries that are NaN or infinite"
            )
    if first.shape[1] != second.shape[1]:
        raise ValueError(f"sets of {first.shape[1]} and {second.shape[1]} dimensions cannot be compared")
    first, second = first.astype(np.float64), second.astype(np.float64)
    covariances = [np.atleast_2d(np.cov(points, rowvar=False)) for points in (first, second)]
    return gaussian_distance(first.mean(axis=0), covariances[0], second.mean(axis=0), covariances[1])


def gaussian_distance(mean1: np.ndarray, cov1: np.ndarray, mean2: np.ndarray, cov2: np.ndarray) -> float:
    """`frechet_distance` of N([D], [D, D]) and N([D], [D, D]).

    Raises ValueError for a covariance with negative eigenvalues.
    """
    # The eigenvalues of the symmetric product are those of S1 S2, whose own square root may come out complex.
    root = _square_root(cov1)
    _square_root(cov2)
    cross = np.sqrt(np.linalg.eigvalsh(root @ cov2 @ root).clip(min=0.0)).sum()
    distance = ((mean1 - mean2) ** 2).sum() + np.trace(cov1) + np.trace(cov2) - 2.0 * cross
    return max(0.0, float(distance))


def verse_bench_distance(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """2 - 2 cos of the pairs in [B, D] and [B, D], [B] in 0..4; lower is better.

    Verse-Bench's "FD": its formula runs on one unit embedding per clip, where numpy 1's covariance is the
    variance of the entries, a scalar v; (sqrt(v1) - sqrt(v2))^2 all but vanishes, and the squared difference
    of unit vectors stays.
    """
    lengths = np.linalg.norm(first, axis=-1) * np.linalg.norm(second, axis=-1)
    return np.clip(2.0 - 2.0 * (first * second).sum(axis=-1) / lengths, 0.0, 4.0)


def _square_root(covariance: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(covariance)
    if values[0] < -NEGLIGIBLE * max(1e-12, abs(values[-1])):
        raise ValueError(f"a covariance has the eigenvalue {values[0]:.3g}; it must not be negative")
    return (vectors * np.sqrt(values.clip(min=0.0))) @ vectors.T
