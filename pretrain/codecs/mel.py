"""Log-mel spectrograms (16 kHz, n_fft 1024, hop 160, 64 bins) and back to sound by fast Griffin-Lim, in
batches.

Source of the inversion: Perraudin, Balazs and Sondergaard, "A fast Griffin-Lim algorithm" (WASPAA 2013).
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from pretrain.types import AUDIO_SAMPLE_RATE_HZ

NUM_MELS = 64
N_FFT = 1024
HOP = 160
# Of the magnitude spectrum; a full-scale sine has about 256, so this is -88 dB. It is kept as an inaudible
# hiss on the way back: a recogniser that is given exact digital zeros between synthesised sounds loses words
# (measured with PocketSphinx).
MEL_FLOOR = 1e-2
_CLIPS_AT_ONCE = 16  # spectra of more clips fall out of the processor's cache


def log_mel(waveform: Tensor) -> Tensor:
    """[B, N] with N a multiple of 160 -> [B, 64, N / 160]: natural log of mel-weighted magnitudes, not below
    log(MEL_FLOOR)."""
    return mel_of(spectrum(waveform)[..., :-1].abs())


def spectrum(waveform: Tensor) -> Tensor:
    """[..., N] -> complex [..., 513, N / 160 + 1]; silence before and after, so that a sound of any length
    will do."""
    return torch.stft(waveform, N_FFT, HOP, window=_window(), pad_mode="constant", return_complex=True)


def mel_of(magnitudes: Tensor) -> Tensor:
    """[..., 513, M] magnitudes -> [..., 64, M] log-mel."""
    return (mel_filters() @ magnitudes).clamp_min(MEL_FLOOR).log()


def from_log_mel(values: Tensor, num_iterations: int = 16, momentum: float = 0.99) -> Tensor:
    """[B, 64, M] -> sound [B, M * 160] whose log-mel is near `values`; deterministic (the first phase is
    fixed)."""
    chunks = [
        _griffin_lim(_magnitudes(chunk), num_iterations, momentum) for chunk in values.split(_CLIPS_AT_ONCE)
    ]
    return torch.cat(chunks)


@lru_cache(maxsize=1)
def mel_filters() -> Tensor:
    """[64, 513] triangles, evenly spaced in mel (O'Shaughnessy's 2595 log10(1 + f/700)) from 0 to 8 kHz, each
    of unit sum."""
    from transformers.audio_utils import mel_filter_bank  # slow to import

    top, rate = AUDIO_SAMPLE_RATE_HZ / 2, AUDIO_SAMPLE_RATE_HZ
    filters = torch.from_numpy(mel_filter_bank(N_FFT // 2 + 1, NUM_MELS, 0.0, top, rate).T.copy())
    return (filters / filters.sum(1, keepdim=True).clamp_min(1e-9)).float()


@lru_cache(maxsize=1)
def _window() -> Tensor:
    return torch.hann_window(N_FFT)


@lru_cache(maxsize=1)
def _inverse_filters() -> Tensor:
    return torch.linalg.pinv(mel_filters().double()).float()


def _magnitudes(values: Tensor, num_updates: int = 4) -> Tensor:
    """Non-negative magnitudes [B, 513, M + 1] whose mel is near exp(values): pseudo-inverse, then
    multiplicative updates."""
    filters = mel_filters()
    mel = values.float().exp()
    magnitudes = (_inverse_filters() @ mel).clamp_min(1e-5)
    target = filters.T @ mel
    for _ in range(num_updates):  # Lee and Seung's rule for || mel - filters @ magnitudes ||
        magnitudes = magnitudes * target / (filters.T @ (filters @ magnitudes)).clamp_min(1e-8)
    return torch.cat([magnitudes, magnitudes[..., -1:]], dim=-1)


def _griffin_lim(magnitudes: Tensor, num_iterations: int, momentum: float) -> Tensor:
    num_samples = (magnitudes.shape[-1] - 1) * HOP
    phase = torch.rand(magnitudes.shape[1:], generator=torch.Generator().manual_seed(0)) * (2 * math.pi)
    estimate = torch.polar(magnitudes, phase.expand_as(magnitudes))
    previous = torch.zeros_like(estimate)
    for _ in range(num_iterations):
        consistent = spectrum(torch.istft(estimate, N_FFT, HOP, window=_window(), length=num_samples))
        ahead = consistent + momentum * (consistent - previous)
        estimate = ahead * (magnitudes / ahead.abs().clamp_min(1e-8))
        previous = consistent
    return torch.istft(estimate, N_FFT, HOP, window=_window(), length=num_samples)
