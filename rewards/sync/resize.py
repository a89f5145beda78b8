"""Batched bilinear resizing of square crops, with OpenCV's pixel-centre convention."""

from __future__ import annotations

import numpy as np

Square = tuple[float, float, float]  # x0, y0 and side in pixels; fractions are meant


def crop_square(frames: np.ndarray, square: Square, size: int) -> np.ndarray:
    """uint8 [T, H, W, 3] -> uint8 [T, size, size, 3]: one square of each frame, edges replicated.

    Averages over the pixels that become one when it shrinks, so fine patterns do not flicker.
    """
    x0, y0, side = square
    rows = interpolation(frames.shape[1], y0, side, size)
    columns = interpolation(frames.shape[2], x0, side, size)
    (top, bottom), (left, right) = _needed(rows), _needed(columns)
    part = frames[:, top:bottom, left:right].astype(np.float32)
    num, height, width, channels = part.shape
    tall = np.matmul(rows[:, top:bottom], part.reshape(num, height, width * channels)).reshape(
        num, size, width, channels
    )
    return np.clip(np.rint(np.matmul(columns[:, left:right], tall)), 0, 255).astype(np.uint8)


def resize_linear(frames: np.ndarray, size: int) -> np.ndarray:
    """uint8 [T, H, W, 3] -> uint8 [T, size, size, 3], as cv2.resize with INTER_LINEAR within 1 grey level.

    Only the two nearest pixels count, also when it shrinks, because the published sync network saw such
    crops.
    """
    import torch
    from torch.nn.functional import interpolate

    pixels = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float()
    resized = interpolate(pixels, size=(size, size), mode="bilinear", align_corners=False)
    return resized.round().clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous().numpy()


def interpolation(length: int, start: float, span: float, size: int) -> np.ndarray:
    """float32 [size, length], rows that sum to 1: resamples start .. start + span of `length` pixels in
    `size` steps.

    Pixel i covers i .. i+1; the triangle is as wide as a step when that is more than a pixel.
    """
    step = span / size
    centres = np.clip(start + (np.arange(size) + 0.5) * step - 0.5, 0, length - 1)
    weights = np.maximum(0.0, 1.0 - np.abs(centres[:, None] - np.arange(length)) / max(1.0, step))
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def _needed(weights: np.ndarray) -> tuple[int, int]:
    used = np.flatnonzero(weights.any(axis=0))
    return int(used[0]), int(used[-1]) + 1
