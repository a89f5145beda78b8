"""Sound of a clip as scorers need it (mono, 16 kHz, finite, audible), and its speech cut into spans."""

from __future__ import annotations

import math

import numpy as np

from rewards.base import Unscorable
from rewards.channels import one_channel
from rewards.types import Clip

SAMPLE_RATE_HZ = 16_000
MIN_DURATION_S = 0.2
SILENCE_PEAK = 1e-3  # -60 dBFS; digital silence stays below after an AAC round trip
MAX_PEAK = 8.0  # a codec may overshoot 1; integers read as floats go far beyond
STEP = SAMPLE_RATE_HZ // 100


def mono_16khz(clip: Clip) -> np.ndarray:
    """`mono` at 16 kHz, the rate of the speech models."""
    return mono(clip, SAMPLE_RATE_HZ)


def mono(clip: Clip, rate_hz: int) -> np.ndarray:
    """float32 [N] at `rate_hz`: channels mixed by `one_channel`, resampled.

    Raises Unscorable for missing, silent, integer, non-finite or too short sound.
    """
    if clip.waveform is None:
        raise Unscorable("no sound")
    if not np.issubdtype(np.asarray(clip.waveform).dtype, np.floating):
        raise Unscorable(f"{np.asarray(clip.waveform).dtype} samples; scale them to floats in -1..1")
    waveform = np.asarray(clip.waveform, dtype=np.float32)
    if waveform.ndim == 2 and not len(waveform):
        raise Unscorable("no sound (0 channels)")
    if not np.isfinite(waveform).all():
        raise Unscorable(
            f"{int((~np.isfinite(waveform)).sum())} of {waveform.size} samples are NaN or infinite"
        )
    if waveform.ndim == 2:
        waveform = one_channel(waveform)
    if waveform.ndim != 1:
        raise Unscorable(f"sound must be [N] or [C, N], got {list(waveform.shape)}")
    if clip.sample_rate_hz < 1:
        raise Unscorable(f"{clip.sample_rate_hz} samples per second")
    if len(waveform) < MIN_DURATION_S * clip.sample_rate_hz:
        raise Unscorable(
            f"{len(waveform) / clip.sample_rate_hz:.3f} s of sound, at least {MIN_DURATION_S} s are needed"
        )
    peak = float(np.abs(waveform).max())
    if peak < SILENCE_PEAK:
        raise Unscorable("silent")
    if peak > MAX_PEAK:
        raise Unscorable(f"samples reach {peak:.4g}; scale them to -1..1")
    if clip.sample_rate_hz != rate_hz:
        from scipy.signal import resample_poly  # slow to import, seldom needed

        common = math.gcd(clip.sample_rate_hz, rate_hz)
        waveform = resample_poly(waveform, rate_hz // common, clip.sample_rate_hz // common).astype(
            np.float32
        )
    return waveform


def step_loudness(waveform: np.ndarray) -> np.ndarray:
    """Root mean square of every 10 ms, [ceil(N / 160)]."""
    padded = np.pad(waveform, (0, -len(waveform) % STEP)).reshape(-1, STEP)
    return np.sqrt((padded.astype(np.float64) ** 2).mean(axis=1))


def loud_part(waveform: np.ndarray, threshold_db: float, margin_s: float) -> tuple[int, int]:
    """Range (first, end) of samples without quiet ends, with `margin_s` kept on both sides.

    Quiet: more than `threshold_db` below the loudest 10 ms.
    """
    loudness = step_loudness(waveform)
    loud = np.flatnonzero(loudness >= loudness.max() * 10 ** (-threshold_db / 20))
    margin = round(margin_s * SAMPLE_RATE_HZ)
    return max(0, int(loud[0]) * STEP - margin), min(len(waveform), (int(loud[-1]) + 1) * STEP + margin)


def trim(waveform: np.ndarray, threshold_db: float, margin_s: float) -> np.ndarray:
    """Without the quiet ends, cut by `loud_part`."""
    start, end = loud_part(waveform, threshold_db, margin_s)
    return waveform[start:end]


def span_sounds(clip: Clip) -> list[np.ndarray]:
    """The 16 kHz sound of each span, cut at the spans' times if known, else at the longest pauses.

    Raises Unscorable as `mono_16khz` and `split_spans` do, and for times outside of the sound.
    """
    waveform, count = mono_16khz(clip), max(1, len(clip.spans))
    if len(clip.span_times) != count:
        return split_spans(waveform, count)
    sounds = [
        waveform[max(0, round(start * SAMPLE_RATE_HZ)) : round(end * SAMPLE_RATE_HZ)]
        for start, end in clip.span_times
    ]
    if short := [
        times
        for times, sound in zip(clip.span_times, sounds, strict=True)
        if len(sound) < MIN_DURATION_S * SAMPLE_RATE_HZ
    ]:
        raise Unscorable(
            f"span at {short[0][0]:.2f}..{short[0][1]:.2f} s has less than {MIN_DURATION_S} s of sound"
        )
    return sounds


def split_spans(waveform: np.ndarray, count: int, threshold_db: float = 25.0) -> list[np.ndarray]:
    """Cut speech into `count` spans in the middle of its longest inner pauses.

    Raises Unscorable if there are too few pauses.
    """
    if count == 1:
        return [waveform]
    loudness = step_loudness(waveform)
    loud = np.flatnonzero(loudness >= loudness.max() * 10 ** (-threshold_db / 20))
    gaps = np.diff(loud)
    longest = np.argsort(-gaps, kind="stable")[: count - 1]
    if len(longest) < count - 1 or gaps[longest].min() < 2:
        raise Unscorable(f"{count} spans, but the sound has no {count - 1} pause(s) to cut at")
    cuts = sorted(int(loud[i] + 1 + loud[i + 1]) * STEP // 2 for i in longest)
    return list(np.split(waveform, cuts))
