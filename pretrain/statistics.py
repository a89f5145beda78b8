"""Percentile bootstrap of a ratio of sums, whole clusters drawn with replacement (Efron, Tibshirani 1993)."""

from __future__ import annotations

import numpy as np

NUM_RESAMPLES = 2000
CONFIDENCE = 0.95
TAILS = ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)
_DRAWS_AT_ONCE = 2_000_000


def cluster_counts(count: int, rng: np.random.Generator, size: int | tuple[int, ...]) -> np.ndarray:
    """int [*size, count]: how often each of `count` clusters is drawn."""
    return rng.multinomial(count, np.full(count, 1.0 / count), size=size)


def ratios_of_sums(counts: np.ndarray, above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """[R] sum of `above` [n] over sum of `below` [n] in each resample `counts` [R, n]."""
    return (counts @ above) / np.maximum(counts @ below, 1e-12)


def percentiles(estimates: np.ndarray) -> tuple[float, float]:
    """The middle 95 % of the resamples' estimates."""
    low, high = np.quantile(estimates, TAILS)
    return float(low), float(high)


def cluster_bootstrap(
    values: np.ndarray, clusters: np.ndarray, seed: int = 0, num_resamples: int = NUM_RESAMPLES
) -> tuple[float, float]:
    """95 % interval of the mean of `values` [n]; `clusters` [n] are integer codes from 0."""
    sums, sizes = np.bincount(clusters, weights=values), np.bincount(clusters)
    rng, step = np.random.default_rng(seed), max(_DRAWS_AT_ONCE // len(sizes), 1)
    parts = [min(step, num_resamples - start) for start in range(0, num_resamples, step)]
    means = [ratios_of_sums(cluster_counts(len(sizes), rng, part), sums, sizes) for part in parts]
    return percentiles(np.concatenate(means))
