"""The mini's conditioning speaker encoder: 192 spectral statistics of a reference sound, no learned weights.

Spectral shape and spread of vowels characterise the speaker, autocorrelation at pitch lags the pitch.
Measured on the speech bank (4 voices, 20 words): the nearest centroid of the other words names the voice of
every utterance. It is not the encoder that scores (Resemblyzer), so no model is scored by its own
conditioner (DESIGN.md, decision 7).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache

import torch
from torch import Tensor

from pretrain.codecs.base import check_finite
from pretrain.codecs.mel import HOP, NUM_MELS, mel_of, spectrum
from pretrain.types import AUDIO_SAMPLE_RATE_HZ, SPEAKER_DIM

MAX_SECONDS = 30
_LOWEST_PITCH_HZ, _HIGHEST_PITCH_HZ, _NUM_LAGS = 65.0, 320.0, 48
_NUM_BANDS = 32
_PEAK_SHARPNESS = 20.0
_SILENT_RMS = 1e-4
_MAX_VALUE = 4.0


class SpectralSpeakerEncoder:
    """Implements `SpeakerEncoder`; `mean`, `std` [192] standardise over the codec's training sounds."""

    name = "spectral"

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        self.mean, self.std = mean, std

    @classmethod
    def fit(cls, statistics: Tensor) -> SpectralSpeakerEncoder:
        """From `voice_statistics` [N, 192] of many sounds."""
        return cls(statistics.mean(0), statistics.std(0).clamp_min(1e-3))

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> SpectralSpeakerEncoder:
        return cls(tensors["mean"], tensors["std"])

    def tensors(self) -> dict[str, Tensor]:
        return {"mean": self.mean, "std": self.std}

    def embed(self, waveform: Tensor) -> Tensor:
        """16 kHz mono [N] -> [192], about standard normal over the training sounds; uses the first 30 s."""
        values = (voice_statistics(waveform) - self.mean) / self.std
        return values.clamp(-_MAX_VALUE, _MAX_VALUE)


def voice_statistics(waveform: Tensor) -> Tensor:
    """16 kHz mono [N] -> [192] raw statistics, loudness-independent; ValueError if silent or not finite."""
    check_finite(waveform, "reference sound")
    waveform = waveform[: MAX_SECONDS * AUDIO_SAMPLE_RATE_HZ].float()
    if waveform.dim() != 1 or is_silent(waveform):
        raise ValueError(
            f"reference sound of {len(waveform)} samples is silent or empty; give one with a voice in it, "
            "or none"
        )
    waveform = waveform / waveform.abs().max()
    padded = torch.nn.functional.pad(waveform, (0, -len(waveform) % HOP))
    magnitudes = spectrum(padded)[:, :-1].abs()
    mel, power = mel_of(magnitudes), magnitudes.square()  # [64, M], [513, M]
    voiced = power.sum(0) > 0.02 * power.sum(0).max()
    mel, power = mel[:, voiced], power[:, voiced]
    pitch = _pitch_profile(power)  # [48, V]
    # high-energy periodic frames: vowels
    weight = pitch.amax(0).clamp_min(1e-3).square() * power.sum(0).sqrt()
    weight = weight / weight.sum()
    shape = mel - mel.mean(0)  # the loudness of a frame is the word's, its spectral shape mostly the voice's
    coarse = shape.unflatten(0, (_NUM_BANDS, -1)).mean(1)
    spread = ((coarse - coarse @ weight[:, None]).square() @ weight).sqrt()
    height = torch.softmax(_PEAK_SHARPNESS * pitch, dim=0)  # a soft histogram of the pitch
    return torch.cat([shape @ weight, spread, pitch @ weight, height @ weight])


def is_silent(waveform: Tensor) -> bool:
    """True for a sound without samples or with a root mean square below -80 dB."""
    return not len(waveform) or float(waveform.square().mean().sqrt()) < _SILENT_RMS


def _pitch_profile(power: Tensor) -> Tensor:
    """[513, V] -> [48, V]: normalised autocorrelation of the compressed spectrum, lags even in pitch."""
    # the square root flattens formants
    correlation = torch.fft.irfft(power.clamp_min(1e-9).sqrt(), dim=0)
    correlation = correlation / correlation[:1].clamp_min(1e-9)
    return _lag_weights() @ correlation[: _lag_weights().shape[1]]


@lru_cache(maxsize=1)
def _lag_weights() -> Tensor:
    """[48, lags] linear interpolation at fractional lags."""
    pitches = torch.logspace(
        math.log10(_LOWEST_PITCH_HZ), math.log10(_HIGHEST_PITCH_HZ), _NUM_LAGS, dtype=torch.float64
    )
    lags = AUDIO_SAMPLE_RATE_HZ / pitches
    grid = torch.arange(int(lags.max()) + 2, dtype=torch.float64)
    return (1.0 - (grid[None] - lags[:, None]).abs()).clamp_min(0.0).float()


assert NUM_MELS + _NUM_BANDS + 2 * _NUM_LAGS == SPEAKER_DIM
