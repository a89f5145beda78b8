"""Luma noise estimated from the clip alone; no model, no weights. Used by simulated raters, in no rubric.

Immerkaer's mask (1996) removes constant and linear brightness; the median of its responses, instead of their
mean, ignores edges too.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rewards.base import Unscorable, score_prepared
from rewards.lips import LUMA
from rewards.pictures import visible_frames
from rewards.types import Clip, Score

MASK = ((1, -2, 1), (-2, 4, -2), (1, -2, 1))  # its response to noise of deviation 1 has deviation 6
MEDIAN_TO_DEVIATION = 1.4826  # of a normal distribution


class PictureNoise:
    """Standard deviation of luma noise in grey levels (of 255), mean over frames; lower is better.

    Blur lowers it too. Right within 5 % for white noise of 1 to 10 levels on pictures that are mostly smooth.
    NaN with the reason that `rewards.pictures.visible_frames` gives.
    """

    name = "picture_noise_judge"

    def score(self, clips: Sequence[Clip]) -> list[Score]:
        return score_prepared(
            clips, _prepare, lambda found: [Score(noise_levels(frames)) for frames in found]
        )


def _prepare(clip: Clip) -> np.ndarray:
    frames = visible_frames(clip)
    if min(frames.shape[1:3]) < len(MASK):
        raise Unscorable(f"frames of {frames.shape[2]}x{frames.shape[1]} pixels, at least 3x3 are needed")
    return frames


def noise_levels(frames: np.ndarray) -> float:
    """uint8 [T, H, W, 3], H and W >= 3 -> grey levels."""
    found = []
    for frame in frames:
        luma = frame.astype(np.float64) @ LUMA
        height, width = luma.shape
        answer = sum(
            weight * luma[y : height - 2 + y, x : width - 2 + x]
            for y, row in enumerate(MASK)
            for x, weight in enumerate(row)
        )
        found.append(MEDIAN_TO_DEVIATION * float(np.median(np.abs(answer))) / 6)
    return float(np.mean(found))
