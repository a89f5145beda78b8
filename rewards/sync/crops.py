"""What the sync network looks at: one square picture per face and frame, cut from given boxes or from tracked faces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from rewards.base import Unscorable
from rewards.sync.resize import crop_square
from rewards.types import Box, Clip

BLACK = 16  # of 255; codec noise on black frames stays below
MOUTH_MARGIN = 0.25  # of the box's longer side, both sides together


@dataclass(frozen=True, eq=False)
class FaceCrops:
    """One face over some of a clip's frames."""

    pixels: np.ndarray  # uint8 [T, S, S, 3] RGB at the clip's own fps
    start: int = 0  # the clip's frame that pixels[0] is from; its sound begins at start / fps


class CropSource(Protocol):
    """`label` goes into the metric's name or report wherever the crops differ from the published recipe; "" where they do not."""

    label: str

    def crops(self, clip: Clip) -> list[FaceCrops]:
        """One per face. Raises Unscorable: no frames, one frame, black, no face."""
        ...


class MouthBoxes:
    """The clip's own mouth boxes (one per face, the same in all frames), each a square of `margin` more than its longer side.

    Raises Unscorable without boxes and for a box that lies outside of the picture.
    """

    def __init__(self, size: int = 32, margin: float = MOUTH_MARGIN) -> None:
        if size < 1 or margin < 0:
            raise ValueError(f"MouthBoxes: size {size} and margin {margin}; use a size of at least 1 and a margin of at least 0")
        self.size, self.margin = size, margin
        self.label = "mouth_boxes"

    def crops(self, clip: Clip) -> list[FaceCrops]:
        frames = visible_frames(clip)
        if not clip.mouth_boxes:
            raise Unscorable("no mouth box")
        return [FaceCrops(crop_square(frames, _square(box, frames, self.margin), self.size)) for box in clip.mouth_boxes]


def visible_frames(clip: Clip) -> np.ndarray:
    """uint8 [T, H, W, 3]. Raises Unscorable for no frames, fewer than 2, other shapes or types, and when most frames are black."""
    if clip.frames is None or len(clip.frames) == 0:
        raise Unscorable("no frames")
    frames = np.asarray(clip.frames)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or not frames.size:
        raise Unscorable(f"frames must be uint8 [T, H, W, 3] RGB, got {frames.dtype} {list(frames.shape)}")
    if len(frames) < 2:
        raise Unscorable("1 frame, at least 2 are needed")
    black = int((frames.reshape(len(frames), -1).max(axis=1) < BLACK).sum())
    if black * 2 > len(frames):
        raise Unscorable(f"black: {black} of {len(frames)} frames stay below level {BLACK}")
    return frames


def _square(box: Box, frames: np.ndarray, margin: float) -> tuple[float, float, float]:
    x0, y0, x1, y1 = box
    height, width = frames.shape[1:3]
    if x1 <= x0 or y1 <= y0:
        raise Unscorable(f"mouth box {list(box)} is empty")
    if x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height:
        raise Unscorable(f"mouth box {list(box)} lies outside of {width}x{height} pixels")
    side = max(x1 - x0, y1 - y0) * (1 + margin)
    return (x0 + x1 - side) / 2, (y0 + y1 - side) / 2, side
