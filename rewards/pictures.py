"""Frames of a clip as scorers need them: present, not black, and as long as the sound."""

from __future__ import annotations

import math

import numpy as np

from rewards.base import Unscorable
from rewards.sound import SAMPLE_RATE_HZ
from rewards.types import Clip

BLACK = 16  # of 255; codec noise on black frames stays below
LENGTH_GAP_S, LENGTH_GAP_SHARE = (
    0.15,
    0.02,
)  # two AAC frames of padding stay below; a wrong frame rate in the header does not


def rgb_frames(clip: Clip) -> np.ndarray:
    """uint8 [T, H, W, 3]. Raises Unscorable for no frames, fewer than 2, and other shapes or types."""
    if clip.frames is None or len(clip.frames) == 0:
        raise Unscorable("no frames")
    frames = np.asarray(clip.frames)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or not frames.size:
        raise Unscorable(f"frames must be uint8 [T, H, W, 3] RGB, got {frames.dtype} {list(frames.shape)}")
    if len(frames) < 2:
        raise Unscorable("1 frame, at least 2 are needed")
    return frames


def visible_frames(clip: Clip) -> np.ndarray:
    """uint8 [T, H, W, 3]. Raises Unscorable as `rgb_frames`, and when most frames are black."""
    frames = rgb_frames(clip)
    black = int((frames.reshape(len(frames), -1).max(axis=1) < BLACK).sum())
    if black * 2 > len(frames):
        raise Unscorable(f"black: {black} of {len(frames)} frames stay below level {BLACK}")
    return frames


def check_fps(clip: Clip) -> None:
    """Raises Unscorable for an invalid frame rate."""
    if not (math.isfinite(clip.fps) and clip.fps > 0):
        raise Unscorable(f"{clip.fps} frames per second")


def check_lengths(clip: Clip, sound: np.ndarray) -> None:
    """Raises Unscorable if frames and 16 kHz sound [N] differ in length, or the frame rate is invalid."""
    check_fps(clip)
    frames_s, sound_s = (
        len(clip.frames if clip.frames is not None else ()) / clip.fps,
        len(sound) / SAMPLE_RATE_HZ,
    )
    if abs(frames_s - sound_s) > LENGTH_GAP_S + LENGTH_GAP_SHARE * sound_s:
        raise Unscorable(f"{frames_s:.2f} s of frames at {clip.fps:g} fps, {sound_s:.2f} s of sound")
