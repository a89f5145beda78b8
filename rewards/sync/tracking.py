"""Link face detections over time as published evaluations do; each named variant gives other numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from rewards.sync.faces import Detection

REFERENCE_FPS = 25


@dataclass(frozen=True)
class Tracking:
    """One recipe. Counts of frames are meant at 25 fps and scale with a clip's frame rate (`at_fps`)."""

    name: str
    crop_scale: float  # room around the face
    shots: Literal["histogram", "none"] = "histogram"  # cuts end tracks
    linking: Literal["iou", "best"] = "iou"  # best: the highest score of each frame, whoever it is
    min_iou: float = 0.5  # to the last box of the track, exclusive
    # from one detection of a track to the next; 1 (no gap) stays 1 at every frame rate
    max_gap_frames: int = 25
    min_frames: int = 101  # detections in a track
    min_face_px: float = 100.0  # the larger of mean width and mean height must exceed it
    median_frames: int = 13  # smoothing of centre and size; 1 = none

    def __post_init__(self) -> None:
        if self.median_frames < 1 or self.median_frames % 2 == 0:
            raise ValueError(
                f"{self.name}: median_frames is {self.median_frames}; an odd number of frames is needed"
            )
        if self.min_frames < 1 or self.max_gap_frames < 1 or not 0 <= self.min_iou < 1 or self.crop_scale < 0:
            raise ValueError(
                f"{self.name}: min_frames, max_gap_frames >= 1, 0 <= min_iou < 1 and crop_scale >= 0 are "
                f"needed, got {self}"
            )


# Numbers of the three public evaluations (joonson/syncnet_python, bytedance/LatentSync,
# Dorniwang/Verse-Bench), except that shots are cut by histogram difference and faces are found by whatever
# detector is given
SYNCNET_PYTHON = Tracking("syncnet_python", crop_scale=0.40)
LATENTSYNC = Tracking("latentsync", crop_scale=0.40, min_frames=51)
VERSE_BENCH = Tracking(
    "verse_bench",
    crop_scale=0.30,
    shots="none",
    linking="best",
    max_gap_frames=1,
    min_frames=50,
    min_face_px=0.0,
    median_frames=1,
)
# For boxes that are known rather than found, of any size and length
AS_GIVEN = Tracking("as_given", crop_scale=0.40, shots="none", min_frames=1, min_face_px=0.0, median_frames=1)


@dataclass(frozen=True, eq=False)
class Track:
    """One face from frame `start` on; missed frames are interpolated.

    `boxes` float64 [T, 4]: x0, y0, x1, y1 in pixels.
    """

    start: int
    boxes: np.ndarray


def track_faces(
    detections: Sequence[Sequence[Detection]],
    variant: Tracking,
    fps: float = REFERENCE_FPS,
    cuts: Sequence[int] = (),
) -> list[Track]:
    """Tracks of all frames' detections, by their first frame; `cuts` are first frames of shots.

    A track takes the best overlapping detection of each frame and starts from the highest score not yet
    taken. (syncnet_python takes the first in the detector's order, the same wherever one face overlaps.) Does
    not depend on the order within a frame.
    """
    edges = [0, *sorted({cut for cut in cuts if 0 < cut < len(detections)}), len(detections)]
    max_gap = 1 if variant.max_gap_frames == 1 else at_fps(variant.max_gap_frames, fps)
    tracks = []
    for first, last in pairwise(edges):
        faces = [
            (first + i, face)
            for i, found in enumerate(detections[first:last])
            for face in sorted(found, key=_rank)
        ]
        if variant.linking == "best":
            faces = [face for i, face in enumerate(faces) if i == 0 or faces[i - 1][0] != face[0]]
        while faces:
            linked, faces = _link(faces, variant, max_gap)
            track = _filled(linked)
            if len(linked) >= at_fps(variant.min_frames, fps) and _face_size(track) > variant.min_face_px:
                tracks.append(track)
    return sorted(tracks, key=lambda track: (track.start, *track.boxes[0]))


def at_fps(frames: int, fps: float) -> int:
    """A number of frames at 25 fps as one at `fps`, at least 1."""
    return max(1, round(frames * fps / REFERENCE_FPS))


def smoothed(track: Track, variant: Tracking, fps: float = REFERENCE_FPS) -> np.ndarray:
    """Centre x, centre y and half of the longer side per frame, [T, 3], median-filtered with zero padding."""
    x0, y0, x1, y1 = track.boxes.T
    values = ((x0 + x1) / 2, (y0 + y1) / 2, np.maximum(x1 - x0, y1 - y0) / 2)
    kernel = at_fps(variant.median_frames // 2, fps) * 2 + 1 if variant.median_frames > 1 else 1
    kernel = min(kernel, len(track.boxes) * 2 - 1)  # with more zeros than values a median would be 0
    padded = np.pad(np.stack(values), ((0, 0), (kernel // 2, kernel // 2)))
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, kernel, axis=1), axis=2).T


def overlap(first: Sequence[float], second: Sequence[float]) -> float:
    """Intersection over union of two boxes, 0 if they are disjoint."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return width * height / (sum(areas) - width * height)


_Found = list[tuple[int, Detection]]


def _rank(face: Detection) -> tuple[float, ...]:
    return -face.score, *face.box


def _link(faces: _Found, variant: Tracking, max_gap: int) -> tuple[_Found, _Found]:
    """The track that starts at the first of `faces` (ordered by frame and rank), and the remaining faces."""
    linked, left = [faces[0]], []
    by_frame: dict[int, _Found] = {}
    for face in faces[1:]:
        by_frame.setdefault(face[0], []).append(face)
    for frame, found in by_frame.items():
        last_frame, last = linked[-1]
        fits = (
            variant.linking == "best"
            or max(overlap(last.box, face.box) for _, face in found) > variant.min_iou
        )
        if last_frame < frame <= last_frame + max_gap and fits:
            best = (
                0
                if variant.linking == "best"
                else max(range(len(found)), key=lambda i: overlap(last.box, found[i][1].box))
            )
            linked.append(found.pop(best))
        left += found
    return linked, left


def _filled(linked: _Found) -> Track:
    """Missed frames by linear interpolation of all four sides."""
    frames = np.array([frame for frame, _ in linked])
    boxes = np.array([face.box for _, face in linked], dtype=np.float64)
    every = np.arange(frames[0], frames[-1] + 1)
    return Track(int(frames[0]), np.stack([np.interp(every, frames, side) for side in boxes.T], axis=1))


def _face_size(track: Track) -> float:
    width, height = (track.boxes[:, 2:] - track.boxes[:, :2]).mean(axis=0)
    return float(max(width, height))
