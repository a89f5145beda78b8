"""Correlation of mouth opening and loudness, from pixels in given mouth boxes. No model, no training.

A proxy for a sync network: it measures loudness, not articulation.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rewards.base import Unscorable, score_prepared
from rewards.pictures import check_lengths, visible_frames
from rewards.sound import SAMPLE_RATE_HZ, mono_16khz
from rewards.types import Clip, Score

MAX_LAG_FRAMES = 5
MIN_FRAMES = 2 * MAX_LAG_FRAMES + 3
STILL = 1e-4  # of full scale: below the rounding of one grey level over a box, the mouth counts as still
LUMA = np.array([0.299, 0.587, 0.114])


class LipLoudness:
    """Pearson correlation of mouth opening and loudness, frame by frame, at lag 0; higher is better.

    Score.parts: `lag_frames`, the lag in -5..5 with the largest correlation, positive when the mouth comes
    after the sound, and `peak`, the correlation there (every lag is divided by the full number of frames, so
    that short overlaps do not win). NaN with a reason without mouth boxes, movement, sound that varies, or 13
    frames, and where the lengths of frames and sound differ.
    """

    name = "lip_loudness_correlation"

    def score(self, clips: Sequence[Clip]) -> list[Score]:
        return score_prepared(
            clips, _signals, lambda pairs: [_score(opening, loudness) for opening, loudness in pairs]
        )


def mouth_opening(frames: np.ndarray, mouth_boxes: Sequence[tuple[int, int, int, int]]) -> np.ndarray:
    """Mean darkness (1 - luma) in each box, summed over boxes: [T]. An open mouth shows its dark inside.

    The sum suits two speakers who take turns: only one mouth moves at a time.
    """
    opening = np.zeros(len(frames))
    for x0, y0, x1, y1 in mouth_boxes:
        pixels = frames[:, max(0, y0) : y1, max(0, x0) : x1]
        if not pixels.size:
            raise Unscorable(
                f"mouth box {[x0, y0, x1, y1]} lies outside of {frames.shape[2]}x{frames.shape[1]} pixels"
            )
        opening += 1.0 - (pixels @ LUMA).mean(axis=(1, 2)) / 255.0
    return opening


def frame_loudness(waveform: np.ndarray, num_frames: int, fps: float) -> np.ndarray:
    """Root mean square of the 16 kHz sound while each frame is shown, [T]; silence behind its end."""
    edges = np.round(np.arange(num_frames + 1) * SAMPLE_RATE_HZ / fps).astype(int)
    padded = np.pad(waveform.astype(np.float64), (0, max(0, edges[-1] - len(waveform))))
    return np.sqrt(np.add.reduceat(padded[: edges[-1]] ** 2, edges[:-1]) / np.diff(edges))


def lagged_correlations(
    opening: np.ndarray, loudness: np.ndarray, max_lag: int = MAX_LAG_FRAMES
) -> np.ndarray:
    """Correlation of opening[t + k] with loudness[t] for k = -max_lag..max_lag: [2 max_lag + 1].

    Values outside the clip count as 0.
    """
    first = (opening - opening.mean()) / opening.std()
    second = (loudness - loudness.mean()) / loudness.std()
    num = len(first)
    lags = range(-max_lag, max_lag + 1)
    return np.array(
        [
            (first[max(0, k) : num + min(0, k)] * second[max(0, -k) : num - max(0, k)]).sum() / num
            for k in lags
        ]
    )


def _signals(clip: Clip) -> tuple[np.ndarray, np.ndarray]:
    frames, sound = visible_frames(clip), mono_16khz(clip)
    if not clip.mouth_boxes:
        raise Unscorable("no mouth box")
    if len(frames) < MIN_FRAMES:
        raise Unscorable(f"{len(frames)} frames, at least {MIN_FRAMES} are needed")
    check_lengths(clip, sound)
    loudness = frame_loudness(sound, len(frames), clip.fps)
    opening = mouth_opening(frames, clip.mouth_boxes)
    if opening.std() < STILL:
        raise Unscorable("the mouth does not move")
    if loudness.std() < STILL * loudness.max():
        raise Unscorable("the loudness does not change")
    return opening, loudness


def _score(opening: np.ndarray, loudness: np.ndarray) -> Score:
    correlations = lagged_correlations(opening, loudness)
    best = int(correlations.argmax())
    parts = {"lag_frames": float(best - MAX_LAG_FRAMES), "peak": float(correlations[best])}
    return Score(value=float(correlations[MAX_LAG_FRAMES]), parts=parts)
