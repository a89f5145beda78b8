"""Augmentations for a sync network: light, framing, noise, loudness; constant within an excerpt.

Drawn once per excerpt, the same for all its frames.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

BRIGHTNESS, CONTRAST, TINT = 30.0, 0.25, 0.1  # grey levels; +- share; +- share of a colour
SHIFT, SCALE = 0.12, (0.85, 1.15)  # of the crop's side
PIXEL_NOISE, SOFT = 6.0, 0.4  # grey levels, at most; share of excerpts that are blurred
GAIN_DB = (-9.0, 6.0)
SNR_DB, NOISY = (15.0, 45.0), 0.5


def augment_crops(crops: np.ndarray, rng: np.random.Generator) -> Tensor:
    """uint8 [T, S, S, 3] -> float32 [3, T, S, S] in 0..255, re-framed, re-lit, sometimes blurred, noisy."""
    frames = torch.from_numpy(np.ascontiguousarray(crops.transpose(0, 3, 1, 2))).float()
    frames = _reframed(frames, rng)
    if rng.random() < SOFT:
        frames = F.avg_pool2d(F.pad(frames, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    gain = (1 + rng.uniform(-CONTRAST, CONTRAST)) * (1 + rng.uniform(-TINT, TINT, 3))
    offset = 127.5 - 127.5 * gain + rng.uniform(-BRIGHTNESS, BRIGHTNESS)
    frames = frames * _column(gain) + _column(offset)
    noise = torch.from_numpy(rng.standard_normal(tuple(frames.shape), dtype=np.float32))
    return (frames + noise * float(rng.uniform(0, PIXEL_NOISE))).clamp_(0, 255).transpose(0, 1)


def augment_sound(sound: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """float32 [N]: louder or softer, half of the time with noise."""
    changed = sound * np.float32(10 ** (rng.uniform(*GAIN_DB) / 20))
    if rng.random() < NOISY:
        level = float(np.sqrt(np.mean(changed**2))) * 10 ** (-rng.uniform(*SNR_DB) / 20)
        changed = changed + np.float32(level) * rng.standard_normal(len(sound), dtype=np.float32)
    return changed.astype(np.float32)


def _reframed(frames: Tensor, rng: np.random.Generator) -> Tensor:
    """One random shift and scale for all frames; edges are replicated."""
    scale, (x, y) = float(rng.uniform(*SCALE)), rng.uniform(-SHIFT, SHIFT, 2) * 2
    theta = torch.tensor([[scale, 0.0, x], [0.0, scale, y]], dtype=torch.float32)
    grid = F.affine_grid(theta[None], [1, *frames.shape[1:]], align_corners=False).expand(
        len(frames), -1, -1, -1
    )
    return F.grid_sample(frames, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _column(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(values, np.float32))[:, None, None]
