"""ReDimNet's front end: log mel energies of pre-emphasised sound, each bin without its mean over time."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

SAMPLE_RATE_HZ = 16_000
NUM_FFT, WINDOW = 512, 400
LOWEST_HZ, HIGHEST_HZ = 20.0, 7600.0
PRE_EMPHASIS = 0.97
FLOOR = 1e-6


def log_mel(waveforms: Tensor, num_mels: int, hop: int) -> Tensor:
    """float [B, N] at 16 kHz, N > 256 -> [B, num_mels, N // hop + 1]; ends are mirrored."""
    mirrored = functional.pad(waveforms, (1, 0), mode="reflect")
    sharpened = mirrored[:, 1:] - PRE_EMPHASIS * mirrored[:, :-1]
    window = mel_window().to(waveforms)
    spectrum = torch.stft(
        sharpened, NUM_FFT, hop, WINDOW, window, center=True, pad_mode="reflect", return_complex=True
    )
    energies = (mel_filters(num_mels).to(waveforms) @ spectrum.abs().square() + FLOOR).log()
    return energies - energies.mean(dim=2, keepdim=True)


@cache
def mel_window() -> Tensor:
    """Periodic Hamming, [400]."""
    return torch.hamming_window(WINDOW)


@cache
def mel_filters(num_mels: int) -> Tensor:
    """Triangles of height 1, evenly spaced on the HTK mel scale from 20 to 7600 Hz: [num_mels, 257]."""
    from transformers.audio_utils import mel_filter_bank  # slow to import

    filters = mel_filter_bank(NUM_FFT // 2 + 1, num_mels, LOWEST_HZ, HIGHEST_HZ, SAMPLE_RATE_HZ)
    return torch.from_numpy(filters.T.astype(np.float32, order="C"))
