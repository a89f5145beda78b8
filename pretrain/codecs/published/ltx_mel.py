"""The LTX-2 audio VAE's front end: log of Slaney mel magnitudes, 16 kHz, n_fft 1024, hop 160, 64 bins.

Facts from the release of LTX-2 (its audio processor): Hann window, ends mirrored, magnitudes (power 1),
Slaney's mel scale and area normalisation from 0 to 8 kHz, natural log of values not below 1e-5. The embedded
codec's front end (`codecs.mel`) differs.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from pretrain.types import AUDIO_SAMPLE_RATE_HZ

NUM_MELS, N_FFT, HOP = 64, 1024, 160
FLOOR = 1e-5


def log_mel(waveform: Tensor) -> Tensor:
    """[..., N] with N > 512 -> [..., N // 160 + 1, 64]."""
    flat = waveform.reshape(-1, waveform.shape[-1]).float()
    window = torch.hann_window(N_FFT, device=flat.device)
    magnitudes = torch.stft(flat, N_FFT, HOP, window=window, pad_mode="reflect", return_complex=True).abs()
    mel = (mel_filters().to(flat.device) @ magnitudes).clamp_min(FLOOR).log().transpose(1, 2)
    return mel.reshape(*waveform.shape[:-1], *mel.shape[1:])


@lru_cache(maxsize=1)
def mel_filters() -> Tensor:
    """[64, 513] triangles of area 1 per Hz times 2, evenly spaced on Slaney's scale from 0 to 8 kHz."""
    from transformers.audio_utils import mel_filter_bank  # slow to import

    top, rate = AUDIO_SAMPLE_RATE_HZ / 2, AUDIO_SAMPLE_RATE_HZ
    filters = mel_filter_bank(N_FFT // 2 + 1, NUM_MELS, 0.0, top, rate, norm="slaney", mel_scale="slaney")
    return torch.from_numpy(filters.T.copy()).float()
