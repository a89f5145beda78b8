"""Integrated loudness of a mono sound, ITU-R BS.1770-4: K-weighting, 400 ms blocks, two gates."""

from __future__ import annotations

import math

import numpy as np

SILENCE_DB = -120.0  # returned for digital silence instead of minus infinity
BLOCK_S, STEP_S = 0.4, 0.1
ABSOLUTE_GATE_LUFS, RELATIVE_GATE_LU = -70.0, -10.0
OFFSET_DB = -0.691  # makes a 997 Hz sine at full scale -3.01 LUFS


def rms_dbfs(waveform: np.ndarray) -> float:
    """Level of [N] against a full-scale square wave; -120 for silence."""
    return _db(float(np.mean(np.square(waveform, dtype=np.float64))))


def lufs(waveform: np.ndarray, sample_rate_hz: int) -> float:
    """Integrated loudness of [N]; -120 if every block is below the absolute gate.

    Sounds shorter than 400 ms are one block.
    """
    from scipy.signal import lfilter  # slow to import

    weighted = np.asarray(waveform, dtype=np.float64)
    for above, below in k_weighting(sample_rate_hz):
        weighted = np.asarray(lfilter(above, below, weighted))
    block, step = round(BLOCK_S * sample_rate_hz), round(STEP_S * sample_rate_hz)
    sums = np.concatenate([[0.0], np.cumsum(weighted**2)])
    starts = np.arange(0, max(1, len(weighted) - block + 1), step)
    ends = np.minimum(starts + block, len(weighted))
    power = (sums[ends] - sums[starts]) / np.maximum(1, ends - starts)
    loudness = np.array([OFFSET_DB + _db(value) for value in power])
    audible = loudness > ABSOLUTE_GATE_LUFS
    if not audible.any():
        return SILENCE_DB
    audible &= loudness > OFFSET_DB + _db(float(power[audible].mean())) + RELATIVE_GATE_LU
    return OFFSET_DB + _db(float(power[audible].mean()))


def k_weighting(sample_rate_hz: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """The two biquads (numerator, denominator): a high shelf for the head, a high pass.

    Bilinear transform of the analogue prototypes behind the standard's 48 kHz table, which they reproduce.
    """
    gain = 10 ** (3.999843853973347 / 20)
    tangent = math.tan(math.pi * 1681.974450955533 / sample_rate_hz)
    ratio = tangent / 0.7071752369554196
    band = gain**0.4996667741545416
    shelf = np.array(
        [gain + band * ratio + tangent**2, 2 * (tangent**2 - gain), gain - band * ratio + tangent**2]
    )
    poles = np.array([1 + ratio + tangent**2, 2 * (tangent**2 - 1), 1 - ratio + tangent**2])
    low = math.tan(math.pi * 38.13547087602444 / sample_rate_hz)
    slope = low / 0.5003270373238773
    cut = np.array([1 + slope + low**2, 2 * (low**2 - 1), 1 - slope + low**2])
    return [(shelf / poles[0], poles / poles[0]), (np.array([1.0, -2.0, 1.0]), cut / cut[0])]


def _db(power: float) -> float:
    return max(SILENCE_DB, 10 * math.log10(power)) if power > 0 else SILENCE_DB
