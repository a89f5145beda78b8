"""Guardrails: speech, motion, loudness and clipping of a clip. Logged and flagged, never rewarded.

Deliberately not a `Reward`: no rubric can weight these measurements.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from rewards.base import Unscorable
from rewards.channels import one_channel
from rewards.lips import LUMA
from rewards.loudness import lufs, rms_dbfs
from rewards.pictures import rgb_frames
from rewards.sound import SAMPLE_RATE_HZ, mono_16khz
from rewards.types import Clip

CLIPPED = 0.999  # of full scale
VAD_FRAME = SAMPLE_RATE_HZ * 30 // 1000
VAD_STRICTNESS = 2  # of 0..3
# measurement -> fields of GuardrailLimits with its lower and upper bound
BOUNDS: Mapping[str, tuple[str, str]] = {
    "speech_ratio": ("min_speech_ratio", ""),
    "motion": ("min_motion", ""),
    "loudness_dbfs": ("min_loudness_dbfs", ""),
    "loudness_lufs": ("min_lufs", "max_lufs"),
    "clipping_ratio": ("", "max_clipping_ratio"),
}
UNITS: Mapping[str, str] = {
    "speech_ratio": "share of 30 ms pieces",
    "motion": "mean step of luma, of full scale",
    "loudness_dbfs": "dBFS",
    "loudness_lufs": "LUFS",
    "clipping_ratio": "share of samples",
}


@dataclass(frozen=True)
class GuardrailLimits:
    """Beyond a limit a clip is flagged; None is no limit."""

    min_speech_ratio: float | None = 0.05
    min_motion: float | None = 1e-4
    min_loudness_dbfs: float | None = -50.0
    min_lufs: float | None = None
    max_lufs: float | None = -5.0
    max_clipping_ratio: float | None = 1e-3


def measure_guardrails(clip: Clip) -> dict[str, float]:
    """The five measurements of a clip; NaN where one cannot be computed (no picture, no usable sound).

    speech_ratio: share of 30 ms pieces in which WebRTC's voice activity detector finds speech (loud tones and
    noise pass, silence does not). motion: mean absolute difference of luma between neighbouring frames, of
    full scale. loudness_dbfs (rms) and loudness_lufs (BS.1770-4) are -120 for silence. clipping_ratio: share
    of samples at or above 99.9 % of full scale.
    """
    found = dict.fromkeys(BOUNDS, math.nan)
    with suppress(Unscorable):
        found["motion"] = motion(rgb_frames(clip))
    mono = _mono(clip)
    if mono is None:
        return found
    found["loudness_dbfs"] = rms_dbfs(mono)
    found["loudness_lufs"] = lufs(mono, clip.sample_rate_hz)
    found["clipping_ratio"] = float((np.abs(np.asarray(clip.waveform)) >= CLIPPED).mean())
    found["speech_ratio"] = _speech_ratio(clip)
    return found


def flags(measured: Mapping[str, float], limits: GuardrailLimits) -> tuple[str, ...]:
    """One text per violated limit, such as `motion 0 < 0.0001`; missing measurements are not flagged."""
    raised = []
    for name, (low, high) in BOUNDS.items():
        value = measured.get(name, math.nan)
        if low and (floor := getattr(limits, low)) is not None and value < floor:
            raised.append(f"{name} {value:.4g} < {floor:.4g}")
        if high and (maximum := getattr(limits, high)) is not None and value > maximum:
            raised.append(f"{name} {value:.4g} > {maximum:.4g}")
    return tuple(raised)


def motion(frames: np.ndarray) -> float:
    """Mean absolute luma difference of neighbouring frames, uint8 [T, H, W, 3] -> 0..1.

    Works frame by frame to save memory.
    """
    before, total = None, 0.0
    for frame in frames:
        luma = frame.astype(np.float32) @ LUMA.astype(np.float32)
        total += 0.0 if before is None else float(np.abs(luma - before).mean())
        before = luma
    return total / (255.0 * (len(frames) - 1))


def speech_ratio(waveform: np.ndarray) -> float:
    """Share of the 30 ms pieces of [N] at 16 kHz that hold speech, by WebRTC's detector."""
    import webrtcvad

    detector = webrtcvad.Vad(VAD_STRICTNESS)
    pcm = (np.clip(waveform, -1.0, 1.0) * 32767).astype("<i2")
    pieces = [pcm[start : start + VAD_FRAME] for start in range(0, len(pcm) - VAD_FRAME + 1, VAD_FRAME)]
    return sum(detector.is_speech(piece.tobytes(), SAMPLE_RATE_HZ) for piece in pieces) / max(1, len(pieces))


def _speech_ratio(clip: Clip) -> float:
    try:
        return speech_ratio(mono_16khz(clip))
    except Unscorable as error:
        return 0.0 if str(error) == "silent" else math.nan


def _mono(clip: Clip) -> np.ndarray | None:
    waveform = None if clip.waveform is None else np.asarray(clip.waveform)
    if (
        waveform is None
        or not waveform.size
        or waveform.ndim > 2
        or not np.issubdtype(waveform.dtype, np.floating)
        or not np.isfinite(waveform).all()
    ):
        return None
    return one_channel(waveform) if waveform.ndim == 2 else waveform
