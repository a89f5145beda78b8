"""Input crops of the sync network: one square per face and frame, from given boxes or tracked faces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from rewards.base import Unscorable
from rewards.pictures import check_fps, visible_frames
from rewards.sync.faces import Detector
from rewards.sync.resize import crop_square, resize_linear
from rewards.sync.shots import histogram_cuts
from rewards.sync.tracking import SYNCNET_PYTHON, Track, Tracking, smoothed, track_faces
from rewards.types import Box, Clip

PADDING = 110  # grey beyond the picture's edge
MOUTH_MARGIN = 0.25  # of the box's longer side, both sides together


@dataclass(frozen=True, eq=False)
class FaceCrops:
    """One face over some of a clip's frames."""

    pixels: np.ndarray  # uint8 [T, S, S, 3] RGB at the clip's own fps
    start: int = 0  # the clip's frame that pixels[0] is from; its sound begins at start / fps


class CropSource(Protocol):
    """Makes the crops of a clip.

    `label` is added to the metric's name wherever the crops differ from the published recipe, else "".
    """

    label: str

    def crops(self, clip: Clip) -> list[FaceCrops]:
        """One per face. Raises Unscorable: no frames, one frame, black, no face."""
        ...


class MouthBoxes:
    """The clip's own mouth boxes (one per face, constant), as squares with a relative `margin`.

    Raises Unscorable without boxes and for a box outside the picture.
    """

    def __init__(self, size: int = 32, margin: float = MOUTH_MARGIN) -> None:
        if size < 1 or margin < 0:
            raise ValueError(
                f"MouthBoxes: size {size} and margin {margin}; use a size of at least 1 and a margin of at "
                "least 0"
            )
        self.size, self.margin = size, margin
        self.label = "mouth_boxes"

    def crops(self, clip: Clip) -> list[FaceCrops]:
        frames = visible_frames(clip)
        if not clip.mouth_boxes:
            raise Unscorable("no mouth box")
        return [
            FaceCrops(crop_square(frames, _square(box, frames, self.margin), self.size))
            for box in clip.mouth_boxes
        ]


class FaceTracks:
    """Crops of tracked faces in the published geometry, by a variant of rewards.sync.tracking.

    The label names the variant and the detector, because both change the numbers. Raises Unscorable when no
    face is found, none is tracked long and large enough, or the clip's frame rate is none.
    """

    def __init__(self, detector: Detector, variant: Tracking = SYNCNET_PYTHON, size: int = 224) -> None:
        if size < 1:
            raise ValueError(f"FaceTracks: size is {size}; use at least 1")
        self.detector, self.variant, self.size = detector, variant, size
        self.label = f"{variant.name}_{detector.label}"

    def crops(self, clip: Clip) -> list[FaceCrops]:
        frames = visible_frames(clip)
        return [
            FaceCrops(self._cut(frames, track, clip.fps), track.start) for track in self._tracks(clip, frames)
        ]

    def _tracks(self, clip: Clip, frames: np.ndarray) -> list[Track]:
        check_fps(clip)
        detections = self.detector.detect(clip)
        if not any(detections):
            raise Unscorable(f"no face found ({self.detector.label})")
        cuts = histogram_cuts(frames) if self.variant.shots == "histogram" else []
        if not (tracks := track_faces(detections, self.variant, clip.fps, cuts)):
            wanted = (
                f"{self.variant.min_frames} frames at 25 fps and more than "
                f"{self.variant.min_face_px:g} pixels"
            )
            raise Unscorable(
                f"faces in {sum(map(bool, detections))} of {len(frames)} frames, none tracked over {wanted} "
                f"({self.label})"
            )
        return tracks

    def _cut(self, frames: np.ndarray, track: Track, fps: float) -> np.ndarray:
        places = smoothed(track, self.variant, fps)
        shown = frames[track.start : track.start + len(places)]
        pictures = zip(shown, places, strict=True)
        return np.concatenate(
            [
                resize_linear(face_square(frame, x, y, half, self.variant.crop_scale)[None], self.size)
                for frame, (x, y, half) in pictures
            ]
        )


def face_square(frame: np.ndarray, x: float, y: float, half: float, crop_scale: float) -> np.ndarray:
    """The published crop around a face in uint8 [H, W, 3]: `half` of its box's longer side in pixels.

    Rows y - half .. y + half (1 + 2 crop_scale) and columns x -+ half (1 + crop_scale), each cut to whole
    pixels after the picture was padded by int(half (1 + 2 crop_scale)) with level 110. Raises Unscorable for
    a face beyond that padding.
    """
    pad = int(half * (1 + 2 * crop_scale))
    height, width = frame.shape[:2]
    rows = int(y + pad - half), int(y + pad + half * (1 + 2 * crop_scale))
    columns = int(x + pad - half * (1 + crop_scale)), int(x + pad + half * (1 + crop_scale))
    top, bottom = max(0, rows[0]) - pad, min(height + 2 * pad, rows[1]) - pad
    left, right = max(0, columns[0]) - pad, min(width + 2 * pad, columns[1]) - pad
    if bottom <= top or right <= left or bottom <= 0 or right <= 0 or top >= height or left >= width:
        raise Unscorable(
            f"face at {x:.0f}, {y:.0f} of half side {half:.1f} lies outside of {width}x{height} pixels"
        )
    square = np.full((bottom - top, right - left, 3), PADDING, np.uint8)
    inside = frame[max(0, top) : bottom, max(0, left) : right]
    square[max(0, -top) : max(0, -top) + len(inside), max(0, -left) : max(0, -left) + inside.shape[1]] = (
        inside
    )
    return square


def _square(box: Box, frames: np.ndarray, margin: float) -> tuple[float, float, float]:
    x0, y0, x1, y1 = box
    height, width = frames.shape[1:3]
    if x1 <= x0 or y1 <= y0:
        raise Unscorable(f"mouth box {list(box)} is empty")
    if x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height:
        raise Unscorable(f"mouth box {list(box)} lies outside of {width}x{height} pixels")
    side = max(x1 - x0, y1 - y0) * (1 + margin)
    return (x0 + x1 - side) / 2, (y0 + y1 - side) / 2, side
