"""Several channels of a sound as one: FFmpeg's downmix, without its traps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

EMPTY_DB = 30.0  # a channel this far below the loudest one carries cross-talk at most
CANCELLED_DB = 10.0  # a mix this far below its loudest channel has lost what opposite channels held
SIDE, REAR = 0.5**0.5, 0.5
# FFmpeg's matrix to mono, for channels in its default layouts: 5.0, 5.1, 6.1 and 7.1. LFE is left out.
WEIGHTS = {
    5: (SIDE, SIDE, 1.0, REAR, REAR),
    6: (SIDE, SIDE, 1.0, 0.0, REAR, REAR),
    7: (SIDE, SIDE, 1.0, 0.0, REAR, REAR, REAR),
    8: (SIDE, SIDE, 1.0, 0.0, REAR, REAR, REAR, REAR),
}


def one_channel(samples: np.ndarray, weights: Sequence[float] | np.ndarray | None = None) -> np.ndarray:
    """Float [C, N] -> float32 [N].

    Channels are weighed as FFmpeg does (`weights` [C], by default WEIGHTS of their number, else alike).
    Empty channels, EMPTY_DB below the loudest, do not count, so that speech on one channel keeps its level;
    so does speech in the centre of a surround mix, which is scaled down only where it would go beyond full
    scale. Channels without a centre, stereo above all, give their weighted mean. Where opposite channels
    cancel each other, the loudest channel is taken alone.
    """
    samples = np.asarray(samples, np.float32)
    if len(samples) == 1:
        return samples.mean(axis=0)
    by_channel = np.array(WEIGHTS.get(len(samples), np.ones(len(samples))) if weights is None else weights)
    powers = np.einsum("cn,cn->c", samples, samples, dtype=np.float64)
    if not powers[by_channel > 0].any():
        by_channel = np.ones(len(samples))
    loudest = float(powers[by_channel > 0].max())
    kept = np.flatnonzero((by_channel > 0) & (powers >= loudest * 10 ** (-EMPTY_DB / 10)))
    if len(kept) == 1:
        return samples[kept[0]]
    if len(kept) < len(samples):
        samples, by_channel, powers = samples[kept], by_channel[kept], powers[kept]
    mix = _weighted(samples, by_channel)
    if _power(mix) < loudest * 10 ** (-CANCELLED_DB / 10):
        return samples[int(powers.argmax())]
    return mix


def _weighted(samples: np.ndarray, weights: np.ndarray) -> np.ndarray:
    if weights.min() == weights.max():
        return samples.mean(axis=0, dtype=np.float32)
    if weights.max() < 1:  # no centre
        return (weights / weights.sum()).astype(np.float32) @ samples
    return within_full_scale(weights.astype(np.float32) @ samples, samples)


def within_full_scale(mix: np.ndarray, samples: np.ndarray) -> np.ndarray:
    """The mix, scaled down where it is beyond full scale and beyond the samples that it is made of."""
    highest = max(1.0, float(np.abs(samples).max(initial=0.0)))
    peak = float(np.abs(mix).max(initial=0.0))
    return mix * np.float32(highest / peak) if peak > highest else mix


def _power(samples: np.ndarray) -> float:
    return float(np.dot(samples, samples))
