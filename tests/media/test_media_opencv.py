"""Orientation and shape of pictures equal those of OpenCV's VideoCapture, which turns pictures by itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from builders import Source, cell_colours
from ffmpeg_reading import Built
from sources import ASPECTS, TURNED

from pretrain.media.read import probe, read_media

cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed (extra `faces`)")
# OpenCV turns by quarters and does not mirror
ROTATED = [source for source in TURNED if source.name.startswith("rotated")]


def opencv_frames(path: Path) -> tuple[np.ndarray, float]:
    """uint8 [T, H, W, 3] in RGB, and the width of a pixel by its height."""
    capture = cv2.VideoCapture(str(path))
    aspect = capture.get(cv2.CAP_PROP_SAR_NUM) / (capture.get(cv2.CAP_PROP_SAR_DEN) or 1)
    frames = []
    while (answer := capture.read())[0]:
        frames.append(answer[1][..., ::-1])
    capture.release()
    return np.stack(frames), aspect or 1.0


@pytest.mark.parametrize("source", [pytest.param(source, id=source.name) for source in ROTATED])
def test_pictures_are_turned_as_opencv_turns_them(built: Built, source: Source) -> None:
    path, _ = built(source)
    theirs, _ = opencv_frames(path)
    ours = read_media(path, fps=None).frames
    assert ours is not None and ours.shape == theirs.shape
    assert np.abs(cell_colours(ours[5]) - cell_colours(theirs[5])).max() < 16
    assert probe(path).height == theirs.shape[1] and probe(path).width == theirs.shape[2]


@pytest.mark.parametrize("source", [pytest.param(source, id=source.name) for source in ASPECTS])
def test_the_shape_is_the_one_that_opencv_reports(built: Built, source: Source) -> None:
    path, _ = built(source)
    theirs, aspect = opencv_frames(path)
    ours = read_media(path, fps=None).frames
    assert ours is not None and aspect != 1.0
    shape = theirs.shape[2] * aspect / theirs.shape[1]
    assert ours.shape[2] / ours.shape[1] == pytest.approx(shape, rel=0.02)
