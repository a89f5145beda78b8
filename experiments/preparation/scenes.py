"""Scene boundaries: PySceneDetect's detectors, with flashes merged and gradual changes trimmed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.preparation.config import PrepareConfig
from experiments.preparation.gradual import HALVES, SIDE, far_from, steps, transitions
from rewards.sync.shots import colour_histograms

WIDTH = 256  # pixels at which pictures are compared, as PySceneDetect does by itself
INSTALL = "pip install 'nava[prepare]'"
BEFORE, AFTER = (2, 5, 8), (3, 5, 8)  # pictures around a cut whose histograms tell it from a flash
HARD = 0.6  # share of a change that lies between two neighbours
MIN_SCENE_PICTURES = 8
NEAR = 5  # pictures around a detection in which the change is looked for
MOVED = 0.05  # mean change of thumbnails across a cut, of 255 levels, below which it may be a flash


@dataclass(frozen=True)
class SceneCut:
    """A new scene starts with picture `first`; `gradual`: by a fade or dissolve."""

    first: int
    gradual: bool


class detected:
    """ContentDetector finds cuts and fades, AdaptiveDetector cuts and dissolves; both see every picture.

    `see(picture)` takes them in order, `cuts()` answers. ValueError without PySceneDetect.
    """

    def __init__(self, config: PrepareConfig) -> None:
        try:
            from scenedetect import AdaptiveDetector, ContentDetector
        except ImportError as error:
            raise ValueError(
                f"scenes need PySceneDetect ({error}); {INSTALL}, or set prepare.scenes"
            ) from None
        self.config = config
        self._detectors: list[Any] = [
            ContentDetector(threshold=config.content_threshold, min_scene_len=MIN_SCENE_PICTURES),
            AdaptiveDetector(adaptive_threshold=config.adaptive_threshold, min_scene_len=MIN_SCENE_PICTURES),
        ]
        self._found: set[int] = set()
        self._histograms: list[np.ndarray] = []
        self._thumbnails: list[np.ndarray] = []

    def see(self, picture: np.ndarray) -> None:
        """uint8 [H, W, 3], the next one."""
        import cv2
        from scenedetect import FrameTimecode

        height, width = picture.shape[:2]
        if width > WIDTH:
            size = (WIDTH, max(1, round(height * WIDTH / width)))
            picture = cv2.resize(picture, size, interpolation=cv2.INTER_LINEAR)
        at = FrameTimecode(len(self._histograms), 25.0)
        self._histograms.append(colour_histograms(picture[None])[0])
        self._thumbnails.append(cv2.resize(picture, (SIDE, SIDE), interpolation=cv2.INTER_AREA))
        bgr = np.ascontiguousarray(picture[:, :, ::-1])
        for detector in self._detectors:
            self._found |= {cut.frame_num for cut in detector.process_frame(at, bgr)}

    def cuts(self) -> list[SceneCut]:
        """Boundaries in order; the first scene's start is none."""
        histograms, thumbnails = np.array(self._histograms), np.array(self._thumbnails)
        found = sorted(self._found | set(steps(thumbnails)))
        cuts = real_cuts(found, histograms, self.config.flash, thumbnails)
        gradual = far_from(transitions(thumbnails), [cut.first for cut in cuts], HALVES[-1])
        return sorted([*cuts, *(SceneCut(place, True) for place in gradual)], key=lambda cut: cut.first)


def real_cuts(
    found: Sequence[int], histograms: np.ndarray, flash: float, thumbnails: np.ndarray | None = None
) -> list[SceneCut]:
    """Cuts [first pictures] less flashes, and detections of one change merged.

    histograms [T, 3, 16]; thumbnails uint8 [T, S, S, 3] tell pictures of the same colours apart.
    """
    last, cuts = len(histograms) - 1, []
    for first in found:
        if not 0 < first <= last:
            continue
        around = [(max(0, first - before), min(last, first + after)) for before in BEFORE for after in AFTER]
        if any(
            _change(histograms[one], histograms[other]) < flash
            and (thumbnails is None or _moved(thumbnails[one], thumbnails[other]) < MOVED)
            for one, other in around
        ):
            continue
        first, hard = _sharpest(first, histograms)
        if cuts and first - cuts[-1].first < MIN_SCENE_PICTURES:
            if hard and cuts[-1].gradual:
                cuts[-1] = SceneCut(first, False)
            continue
        cuts.append(SceneCut(first, not hard))
    return cuts


def _sharpest(first: int, histograms: np.ndarray) -> tuple[int, bool]:
    """(picture at which most changes near a detection, True) for a change at once; else (first, False)."""
    near = range(max(1, first - NEAR), min(len(histograms), first + NEAR + 1))
    best = max(near, key=lambda place: _change(histograms[place - 1], histograms[place]))
    last = len(histograms) - 1
    around = _change(histograms[max(0, best - BEFORE[-1])], histograms[min(last, best + AFTER[-1])])
    at_once = _change(histograms[best - 1], histograms[best])
    return (best, True) if at_once >= HARD * max(around, 1e-6) else (first, False)


def _change(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.abs(first - second).sum(axis=1).mean() / 2)


def _moved(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.abs(first.astype(np.float32) - second).mean()) / 255
