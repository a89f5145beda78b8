"""Steps on the picture of a clip: black bars and black clips, still pictures; sharpness as a label."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from experiments.preparation.config import PrepareConfig
from experiments.preparation.records import RawClip, Rejection, beyond
from rewards.lips import LUMA

LOOKED_AT = 12  # pictures of a clip
MOTION_WIDTH = 160
MOTION_PAIRS = 12


def visible(clip: RawClip, config: PrepareConfig) -> RawClip | Rejection:
    """Black bars cut off, large pictures reduced, sides made even; a black or tiny clip is rejected."""
    import cv2

    some = clip.frames[:: max(1, len(clip.frames) // LOOKED_AT)]
    luma = some.astype(np.float32) @ LUMA.astype(np.float32)
    brightest = float(np.percentile(luma, 99))
    if brightest < config.dark_luma:
        return beyond("picture", "luma_p99", brightest, config.dark_luma, "the picture is black")
    top, bottom = _bright_range(np.percentile(luma, 99, axis=(0, 2)), config.dark_luma)
    left, right = _bright_range(np.percentile(luma, 99, axis=(0, 1)), config.dark_luma)
    frames = clip.frames[:, top:bottom, left:right]
    scale = min(1.0, config.max_side / max(frames.shape[1:3]))
    height, width = (max(2, round(side * scale) // 2 * 2) for side in frames.shape[1:3])
    if min(height, width) < config.min_side:
        return beyond("picture", "side_px", min(height, width), config.min_side, "the picture is too small")
    if scale < 1.0:
        frames = np.stack(
            [cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA) for frame in frames]
        )
    frames = np.ascontiguousarray(frames[:, :height, :width])
    bars = 1 - (bottom - top) * (right - left) / (clip.frames.shape[1] * clip.frames.shape[2])
    return replace(clip, frames=frames).measured(bars_share=round(bars, 4))


def moving(clip: RawClip, config: PrepareConfig) -> RawClip | Rejection:
    """Mean optical flow (Farneback) of neighbours at 160 pixels of width; a still picture is rejected."""
    import cv2

    height, width = clip.frames.shape[1:3]
    size = (MOTION_WIDTH, max(16, round(height * MOTION_WIDTH / width)))
    starts = np.unique(np.linspace(0, max(0, len(clip.frames) - 2), MOTION_PAIRS).round().astype(int))
    flows, sharpness = [], []
    for start in starts:
        pair = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in clip.frames[start : start + 2]]
        sharpness.append(float(cv2.Laplacian(pair[0], cv2.CV_64F).var()))
        if len(pair) == 2:
            small = [cv2.resize(grey, size, interpolation=cv2.INTER_AREA) for grey in pair]
            flow = cv2.calcOpticalFlowFarneback(small[0], small[1], None, 0.5, 3, 15, 3, 5, 1.2, 0)  # type: ignore[call-overload]
            flows.append(float(np.linalg.norm(flow, axis=2).mean()))
    motion = float(np.mean(flows)) if flows else 0.0
    clip = clip.measured(motion_px=round(motion, 4), sharpness=round(float(np.median(sharpness)), 2))
    if motion < config.min_motion_px:
        return beyond("still", "motion_px", motion, config.min_motion_px, "the picture stands still")
    return clip


def _bright_range(values: np.ndarray, dark: float) -> tuple[int, int]:
    """First and past-the-last row or column that is not black."""
    bright = np.flatnonzero(values >= dark)
    return (int(bright[0]), int(bright[-1]) + 1) if len(bright) else (0, len(values))
