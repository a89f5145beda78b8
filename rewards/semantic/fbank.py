"""Kaldi's log mel filter bank in numpy, equal to torchaudio.compliance.kaldi.fbank.

16 kHz, frames of 25 ms every 10 ms (whole frames only), mean removed and pre-emphasis 0.97 within each frame,
a Hann window, 512-point power spectrum, triangles on Kaldi's mel scale from 20 Hz to 8 kHz, no dither, no
energy column.
"""

from __future__ import annotations

import warnings
from functools import cache

import numpy as np

RATE_HZ = 16_000
FRAME, HOP, FFT = 400, 160, 512
LOW_HZ, HIGH_HZ = 20.0, 8000.0
PREEMPHASIS = 0.97
FLOOR = float(np.finfo(np.float32).eps)


def fbank(waveform: np.ndarray, num_mels: int = 128) -> np.ndarray:
    """[N] at 16 kHz -> float32 [1 + (N - 400) // 160, num_mels], natural log.

    Raises ValueError for fewer than 400 samples.
    """
    if waveform.ndim != 1 or len(waveform) < FRAME:
        raise ValueError(f"fbank: waveform must be [N >= {FRAME}], got {list(waveform.shape)}")
    frames = np.lib.stride_tricks.sliding_window_view(waveform.astype(np.float64), FRAME)[::HOP]
    frames = frames - frames.mean(axis=1, keepdims=True)
    # the first sample is its own predecessor
    previous = np.concatenate([frames[:, :1], frames[:, :-1]], axis=1)
    windowed = (frames - PREEMPHASIS * previous) * np.hanning(FRAME)
    powers = np.abs(np.fft.rfft(windowed, FFT)) ** 2
    return np.log(np.maximum(powers @ mel_filters(num_mels), FLOOR)).astype(np.float32)


@cache
def mel_filters(num_mels: int) -> np.ndarray:
    """Triangles of height 1, straight on the mel scale, [257, num_mels]; the Nyquist bin is in none."""
    from transformers.audio_utils import mel_filter_bank  # slow to import

    with warnings.catch_warnings():
        # with 128 filters the lowest ones lie between two bins and are empty, as in Kaldi
        warnings.filterwarnings("ignore", "At least one mel filter")
        return mel_filter_bank(
            FFT // 2 + 1, num_mels, LOW_HZ, HIGH_HZ, RATE_HZ, None, "kaldi", triangularize_in_mel_space=True
        )
