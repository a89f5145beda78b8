"""MFCCs as SyncNet was trained on them: 100 columns per second, int16 scale, no normalisation."""

from __future__ import annotations

from functools import cache

import numpy as np

SAMPLE_RATE_HZ = 16_000
WINDOW, STEP, FFT = 400, 160, 512
NUM_FILTERS, NUM_COEFFICIENTS, LIFTER = 26, 13, 22
PREEMPHASIS = 0.97
FULL_SCALE = 32_768
SMALLEST = float(np.finfo(np.float64).eps)


def num_columns(num_samples: int) -> int:
    """1 + ceil((n - 400) / 160), the last column zero-padded; 1 for anything shorter than a window."""
    return 1 + max(0, -(-(num_samples - WINDOW) // STEP))


def mfcc(waveform: np.ndarray, floor: float = SMALLEST) -> np.ndarray:
    """Coefficients [T100, 13], float32, of a mono 16 kHz sound, float [N] in -1..1.

    The sound is rounded to int16 as a wav file would hold it. Rectangular 25 ms windows every 10 ms,
    pre-emphasis 0.97, power spectrum of 512 points over 512, 26 mel triangles from 0 to 8000 Hz, natural
    logarithm, orthonormal DCT-II, lifter 22; coefficient 0 is the logarithm of the window's energy. Energies
    below `floor` count as `floor`; the published network replaces only zeros, by the smallest float64
    step, which the default does. Raises ValueError for anything but a non-empty vector. Source: Davis and
    Mermelstein 1980 with the defaults of python_speech_features, the published SyncNet's front end.
    """
    if waveform.ndim != 1 or not len(waveform):
        raise ValueError(
            f"mfcc wants a mono sound [N], got {list(waveform.shape)}; average the channels first"
        )
    signal = np.clip(np.rint(waveform.astype(np.float64) * FULL_SCALE), -FULL_SCALE, FULL_SCALE - 1)
    signal[1:] -= PREEMPHASIS * signal[:-1]
    count = num_columns(len(signal))
    padded = np.pad(signal, (0, (count - 1) * STEP + WINDOW - len(signal)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::STEP]
    spectrum = np.fft.rfft(windows, FFT)
    power = (spectrum.real**2 + spectrum.imag**2) / FFT
    columns = np.log(_floored(power @ mel_filters().T, floor)) @ _cosines().T
    columns[:, 0] = np.log(_floored(power.sum(axis=1), floor))
    return columns.astype(np.float32)


@cache
def mel_filters() -> np.ndarray:
    """Triangles [26, 257] over the bins of the power spectrum, corners rounded down to whole bins."""
    top_mel = 2595 * np.log10(1 + SAMPLE_RATE_HZ / 2 / 700)
    corners_hz = 700 * (10 ** (np.linspace(0, top_mel, NUM_FILTERS + 2) / 2595) - 1)
    corners = np.floor((FFT + 1) * corners_hz / SAMPLE_RATE_HZ)
    bins = np.arange(FFT // 2 + 1)
    left, middle, right = corners[:-2, None], corners[1:-1, None], corners[2:, None]
    rising, falling = (bins - left) / (middle - left), (right - bins) / (right - middle)
    return np.where(
        (bins >= left) & (bins < middle), rising, np.where((bins >= middle) & (bins < right), falling, 0.0)
    )


@cache
def _cosines() -> np.ndarray:
    """The first 13 rows of the orthonormal DCT-II over 26 points, times the lifter: [13, 26]."""
    order, place = np.arange(NUM_COEFFICIENTS), np.arange(NUM_FILTERS)
    rows = np.sqrt(2 / NUM_FILTERS) * np.cos(np.pi * order[:, None] * (2 * place + 1) / (2 * NUM_FILTERS))
    rows[0] /= np.sqrt(2)
    return rows * (1 + LIFTER / 2 * np.sin(np.pi * order / LIFTER))[:, None]


def _floored(energy: np.ndarray, floor: float) -> np.ndarray:
    """`floor` for whatever is below it; with the default, what is zero and what rounding left there."""
    return np.where(energy == 0, floor, energy) if floor == SMALLEST else np.maximum(energy, floor)
