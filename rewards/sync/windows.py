"""Inputs of a SyncNet: windows of 5 frames at 25 fps and of 20 MFCC columns (0.2 s), one per frame."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from rewards.base import Unscorable
from rewards.sync.mfcc import NUM_COEFFICIENTS, SMALLEST, mfcc

FPS = 25
SAMPLES_PER_FRAME = 640
WINDOW_FRAMES = 5
WINDOW_COLUMNS, COLUMNS_PER_FRAME = 20, 4


@dataclass(frozen=True, eq=False)
class SyncInput:
    """One face and the sound it should fit."""

    crops: np.ndarray  # uint8 [T, S, S, 3] RGB at 25 fps
    sound: np.ndarray  # float32 [N] in -1..1, 16 kHz


def num_windows(num_frames: int, num_samples: int) -> int:
    """min(frames, samples // 640) - 5, as the published metric counts: the last valid window is not used. Not
    below 0."""
    return max(0, min(num_frames, num_samples // SAMPLES_PER_FRAME) - WINDOW_FRAMES)


def sound_windows(columns: np.ndarray) -> np.ndarray:
    """Columns 4i..4i+19 of coefficients [T100, 13] for every complete i: float32 [n, 1, 13, 20], a view."""
    if len(columns) < WINDOW_COLUMNS:
        return np.zeros((0, 1, columns.shape[1], WINDOW_COLUMNS), np.float32)
    return np.lib.stride_tricks.sliding_window_view(columns, WINDOW_COLUMNS, axis=0)[
        ::COLUMNS_PER_FRAME, None
    ]


def windows_of_sound(sound: np.ndarray, log_floor: float | None = None) -> np.ndarray:
    """All windows [n, 1, 13, 20] of a sound [N]; `log_floor` is the network's (`SyncNetArgs.log_floor`)."""
    if not len(sound):
        return np.zeros((0, 1, NUM_COEFFICIENTS, WINDOW_COLUMNS), np.float32)
    return sound_windows(mfcc(sound, SMALLEST if log_floor is None else log_floor))


def input_windows(item: SyncInput, log_floor: float | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Frames uint8 [n + 4, S, S, 3] and sound windows [n, 1, 13, 20] of the n `num_windows`."""
    count = num_windows(len(item.crops), len(item.sound))
    return item.crops[: count + WINDOW_FRAMES - 1 if count else 0], windows_of_sound(item.sound, log_floor)[
        :count
    ]


def to_25_fps(frames: np.ndarray, fps: float) -> np.ndarray:
    """Resample frames [T, ...] from `fps` to 25 fps by nearest time: [round(25 T / fps), ...].

    Frames are repeated or left out, never blended, and the duration stays. Raises Unscorable for an invalid
    frame rate.
    """
    if not (math.isfinite(fps) and fps > 0):
        raise Unscorable(f"{fps} frames per second")
    count = round(len(frames) * FPS / fps)
    nearest = np.floor(np.arange(count) * (fps / FPS) + 0.5).astype(int)
    return frames if fps == FPS else frames[np.minimum(nearest, len(frames) - 1)]
