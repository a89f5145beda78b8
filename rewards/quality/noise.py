"""Signal-to-noise ratio estimated from the clip alone; no model, no weights.

A proxy for a quality model: it detects steady noise under speech, not unnatural voices.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rewards.base import Unscorable, score_prepared
from rewards.sound import MIN_DURATION_S, SAMPLE_RATE_HZ, mono, mono_16khz
from rewards.types import Clip, Score

FRAME, HOP = 400, 160  # 25 and 10 ms
QUIETEST = 0.1  # of the frames hold noise alone, where speech has pauses
MIN_DB, MAX_DB = -5.0, 60.0
BLOCK = 80  # 5 ms
# How much the heard part varies, by its own quietest tenth: steady noise at most 0 dB, words of the demo's
# corpus 5 dB at least. Between the two, gaps count as pauses in part.
STEADY_DB, SPEECH_DB = 0.0, 5.0
MIN_RUN = 3  # equal samples in a row: two may be chance
NEAR_PEAK = 0.99


class NoiseEstimate:
    """Signal-to-noise ratio in dB, -5..60; higher is better.

    Noise is what the quietest tenth of the frames holds. Right within 1 dB for steady noise under speech with
    pauses; speech without any pause reads as 20 to 28 dB however clean, and speech whose pauses were set to
    zero, by a noise gate or by padding, as clean whatever is under it. Gaps in a steady sound are no pauses:
    it is measured without them. Score.parts: `clipped_share` (lower is better). NaN with a reason without
    usable sound, and where less than 0.2 s of it is heard.
    """

    name = "snr_estimate_db"

    def score(self, clips: Sequence[Clip]) -> list[Score]:
        return score_prepared(clips, _prepare, lambda pairs: [_score(*pair) for pair in pairs])


def snr_db(waveform: np.ndarray) -> float:
    """SNR of [N >= 400] at 16 kHz in dB, -5..60.

    Power of all samples over that of the quietest tenth of 25 ms frames, less the noise itself. Where frames
    are silent, the others by themselves tell whether these are pauses (see STEADY_DB).
    """
    frames = np.lib.stride_tricks.sliding_window_view(waveform.astype(np.float64), FRAME)[::HOP]
    powers = (frames**2).mean(axis=1)
    estimate = _estimate(powers)
    # a frame is of 5 blocks, the next one begins 2 later
    of_frames = np.lib.stride_tricks.sliding_window_view(_heard_blocks(waveform), FRAME // BLOCK)
    heard: np.ndarray = of_frames[:: HOP // BLOCK].min(axis=1)
    if heard.all() or not heard.any():
        return estimate
    alone = _estimate(powers[: len(heard)][heard])
    if alone >= min(SPEECH_DB, estimate):
        return estimate
    pauses = max(0.0, (alone - STEADY_DB) / (SPEECH_DB - STEADY_DB))
    return alone + pauses * (estimate - alone)


def heard_s(waveform: np.ndarray) -> float:
    """Seconds of [N] at 16 kHz that are not silent: no more than MAX_DB below the mean power."""
    return float(_heard_blocks(waveform).sum()) * BLOCK / SAMPLE_RATE_HZ


def _heard_blocks(waveform: np.ndarray) -> np.ndarray:
    """[N // BLOCK] bool."""
    blocks = waveform[: len(waveform) // BLOCK * BLOCK].astype(np.float64).reshape(-1, BLOCK)
    powers = (blocks**2).mean(axis=1)
    return powers > powers.mean() * 10 ** (-MAX_DB / 10)


def _estimate(powers: np.ndarray) -> float:
    """SNR in dB from the powers of frames [F]."""
    powers = np.sort(powers)
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
    waveform = mono_16khz(clip)
    if (seconds := heard_s(waveform)) < MIN_DURATION_S:
        raise Unscorable(f"{seconds:.3f} s of sound in silence, at least {MIN_DURATION_S} s are needed")
    return waveform, mono(clip, clip.sample_rate_hz)  # resampling would round the flat tops off


def _score(waveform: np.ndarray, original: np.ndarray) -> Score:
    return Score(value=snr_db(waveform), parts={"clipped_share": clipped_share(original)})
