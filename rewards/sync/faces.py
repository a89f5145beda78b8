"""Face detection per frame: given boxes, or an OpenCV detector. None is the published recipe's S3FD."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from rewards.base import Unscorable
from rewards.options import one_line
from rewards.types import Clip
from rewards.weights import checked

INSTALL = "pip install 'opencv-python-headless>=4.13,<5' (the extra `faces`)"
YUNET_SOURCE = "github.com/opencv/opencv_zoo, models/face_detection_yunet"
YUNET_LICENCE = "MIT"
# a 704x1280 picture is searched at a quarter of its size, the scale of the published recipe's S3FD
LONGEST_SIDE = 320

FloatBox = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels; the end is exclusive


@dataclass(frozen=True)
class Detection:
    """A face in one frame; scores of different detectors have different scales."""

    box: FloatBox
    score: float


class Detector(Protocol):
    """`label` names it wherever a metric was made with it."""

    label: str

    def detect(self, clip: Clip) -> list[list[Detection]]:
        """The faces of every frame, in any order. The frames are uint8 [T, H, W, 3]; may raise Unscorable."""
        ...


class GivenFaces:
    """The clip's own face boxes, the same in all frames. Raises Unscorable without any, or for one outside of
    the picture."""

    label = "given"

    def detect(self, clip: Clip) -> list[list[Detection]]:
        frames = _frames(clip)
        height, width = frames.shape[1:3]
        if not clip.face_boxes:
            raise Unscorable("no face box")
        for x0, y0, x1, y1 in clip.face_boxes:
            if x1 <= x0 or y1 <= y0 or x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height:
                raise Unscorable(
                    f"face box {[x0, y0, x1, y1]} is empty or lies outside of {width}x{height} pixels"
                )
        faces = [
            Detection((float(x0), float(y0), float(x1), float(y1)), 1.0) for x0, y0, x1, y1 in clip.face_boxes
        ]
        return [list(faces) for _ in range(len(frames))]


class HaarDetector:
    """OpenCV's frontal-face cascade, whose file comes with the OpenCV 4 wheel. Scores count the windows that
    saw the face.

    Finds upright frontal faces of at least 24 pixels after the picture was reduced to `longest_side`. Its
    boxes are tighter than S3FD's. Raises ImportError without OpenCV, FileNotFoundError when this OpenCV has
    no such cascade (5.0 has none).
    """

    label = "haar"

    def __init__(self, min_hits: int = 5, longest_side: int = LONGEST_SIDE) -> None:
        self._cv2 = _opencv("HaarDetector")
        folder = getattr(getattr(self._cv2, "data", None), "haarcascades", "")
        path = Path(folder) / "haarcascade_frontalface_default.xml"
        if not hasattr(self._cv2, "CascadeClassifier") or not path.is_file():
            raise FileNotFoundError(
                f"HaarDetector: OpenCV {self._cv2.__version__} comes without {path.name}; {INSTALL}"
            )
        self._cascade = self._cv2.CascadeClassifier(str(path))
        self.min_hits, self.longest_side = min_hits, longest_side

    def detect(self, clip: Clip) -> list[list[Detection]]:
        return [self._in_frame(frame) for frame in _frames(clip)]

    def _in_frame(self, frame: np.ndarray) -> list[Detection]:
        small, scale = _reduced(self._cv2, frame, self.longest_side)
        grey = self._cv2.cvtColor(small, self._cv2.COLOR_RGB2GRAY)
        boxes, hits = self._cascade.detectMultiScale2(grey, scaleFactor=1.1, minNeighbors=self.min_hits)
        found = zip(
            np.asarray(boxes, float).reshape(-1, 4).tolist(),
            np.asarray(hits, float).reshape(-1).tolist(),
            strict=True,
        )
        return [_detection(x, y, width, height, score, scale) for (x, y, width, height), score in found]


class YuNetDetector:
    """YuNet through OpenCV's FaceDetectorYN, from an ONNX file named by the caller. Scores lie in 0..1.

    Raises ImportError without OpenCV, FileNotFoundError or ValueError in one line for a missing, wrong or
    unreadable file.
    """

    label = "yunet"

    def __init__(
        self, path: Path, sha256: str = "", min_score: float = 0.9, longest_side: int = LONGEST_SIDE
    ) -> None:
        self._cv2 = _opencv("YuNetDetector")
        checked(path, sha256, what="YuNet face detector", licence=YUNET_LICENCE, source=YUNET_SOURCE)
        try:
            self._net = self._cv2.FaceDetectorYN.create(
                str(path), "", (LONGEST_SIDE, LONGEST_SIDE), min_score, 0.3, 5000
            )
        except self._cv2.error as error:
            reason = one_line(error, 200)
            raise ValueError(
                f"YuNet face detector: {path} is no ONNX file that OpenCV {self._cv2.__version__} reads: "
                f"{reason}"
            ) from None
        self.longest_side = longest_side

    def detect(self, clip: Clip) -> list[list[Detection]]:
        return [self._in_frame(frame) for frame in _frames(clip)]

    def _in_frame(self, frame: np.ndarray) -> list[Detection]:
        small, scale = _reduced(self._cv2, frame, self.longest_side)
        self._net.setInputSize((small.shape[1], small.shape[0]))
        _, faces = self._net.detect(np.ascontiguousarray(small[:, :, ::-1]))  # it was trained on BGR
        rows = [] if faces is None else np.asarray(faces, float).tolist()  # x, y, w, h, 5 landmarks, score
        return [_detection(row[0], row[1], row[2], row[3], row[14], scale) for row in rows]


def _detection(x: float, y: float, width: float, height: float, score: float, scale: float) -> Detection:
    return Detection((x * scale, y * scale, (x + width) * scale, (y + height) * scale), score)


def _reduced(cv2: Any, frame: np.ndarray, longest_side: int) -> tuple[np.ndarray, float]:
    """The frame with its longer side at most `longest_side`, and the factor that maps boxes back."""
    scale = max(1.0, max(frame.shape[:2]) / longest_side)
    if scale == 1.0:
        return np.ascontiguousarray(frame), 1.0
    size = max(1, round(frame.shape[1] / scale)), max(1, round(frame.shape[0] / scale))
    return cv2.resize(frame, size, interpolation=cv2.INTER_AREA), scale


def _frames(clip: Clip) -> np.ndarray:
    if clip.frames is None:
        raise Unscorable("no frames")
    return clip.frames


def _opencv(who: str) -> Any:
    try:
        import cv2
    except ImportError as error:
        raise ImportError(f"{who} needs OpenCV ({error}); {INSTALL}, or give face boxes") from None
    return cv2
