"""Signal-to-noise ratio estimated from the clip alone; no model, no weights.

A proxy for a quality model: it detects steady noise under speech, not unnatural voices.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rewards.base import score_prepared
from rewards.sound import mono, mono_16khz
from rewards.types import Clip, Score

FRAME, HOP = 400, 160  # 25 and 10 ms
QUIETEST = 0.1  # of the frames hold noise alone, where speech has pauses
MIN_DB, MAX_DB = -5.0, 60.0
MIN_RUN = 3  # equal samples in a row: two may be chance
NEAR_PEAK = 0.99


class NoiseEstimate:
    """Signal-to-noise ratio in dB, -5..60; higher is better.

    Noise is what the quietest tenth of the frames holds. Right within 1 dB for steady noise under speech with
    pauses; speech without any pause reads as 20 to 28 dB however clean. Score.parts: `clipped_share` (lower
    is better). NaN with a reason without usable sound.
    """

    name = "snr_estimate_db"

    def score(self, clips: Sequence[Clip]) -> list[Score]:
        return score_prepared(clips, _prepare, lambda pairs: [_score(*pair) for pair in pairs])


def snr_db(waveform: np.ndarray) -> float:
    """SNR of [N >= 400] at 16 kHz in dB, -5..60.

    Power of all samples over that of the quietest tenth of 25 ms frames, less the noise itself.
    """
    frames = np.lib.stride_tricks.sliding_window_view(waveform.astype(np.float64), FRAME)[::HOP]
    powers = np.sort((frames**2).mean(axis=1))
    noise = powers[: max(1, int(QUIETEST * len(powers)))].mean()
    signal = powers.mean() - noise
    if signal <= noise * 10 ** (MIN_DB / 10):
        return MIN_DB
    return min(MAX_DB, float(10 * np.log10(signal / max(noise, signal * 1e-9))))


def clipped_share(waveform: np.ndarray) -> float:
    """Share of samples in flat tops, 0..1.

    A flat top is a run of at least 3 equal samples within 1 % of the largest magnitude.
    """
    high = np.abs(waveform) >= NEAR_PEAK * np.abs(waveform).max()
    same = high[1:] & (waveform[1:] == waveform[:-1])
    edges = np.flatnonzero(np.diff(np.concatenate([[False], same, [False]]).astype(np.int8)))
    lengths = edges[1::2] - edges[::2] + 1
    return float(lengths[lengths >= MIN_RUN].sum() / len(waveform))


def _prepare(clip: Clip) -> tuple[np.ndarray, np.ndarray]:
    return mono_16khz(clip), mono(clip, clip.sample_rate_hz)  # resampling would round the flat tops off


def _score(waveform: np.ndarray, original: np.ndarray) -> Score:
    return Score(value=snr_db(waveform), parts={"clipped_share": clipped_share(original)})
