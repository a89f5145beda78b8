"""Faces: detectors find real ones, tracked crops equal the published steps, what has no face is refused."""

import dataclasses
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
from PIL import Image

from rewards.base import Unscorable
from rewards.sync.crops import FaceTracks, MouthBoxes, face_square
from rewards.sync.faces import Detection, GivenFaces, HaarDetector, YuNetDetector
from rewards.sync.resize import resize_linear
from rewards.sync.tracking import AS_GIVEN, LATENTSYNC
from rewards.types import Clip

try:
    import cv2
except ImportError:
    cv2 = None

needs_opencv = pytest.mark.skipif(cv2 is None, reason="OpenCV is not installed (extra: faces)")
RANDOM = np.random.default_rng(0)
SHORT = dataclasses.replace(LATENTSYNC, name="short", min_frames=5, min_face_px=10.0)


def noise(*shape: int) -> np.ndarray:
    return RANDOM.integers(0, 256, shape, dtype=np.uint8)


def clip(frames: np.ndarray | None, **fields) -> Clip:
    return Clip(None, 16_000, frames=frames, **{"fps": 25.0, **fields})


def face(x: float, y: float, half: float = 40.0, score: float = 1.0) -> Detection:
    return Detection((x - half, y - half, x + half, y + half), score)


class Script:
    """A detector that knows the answer."""

    label = "script"

    def __init__(self, found: list[list[Detection]]) -> None:
        self.found = found

    def detect(self, clip: Clip) -> list[list[Detection]]:
        return self.found


@needs_opencv
def test_tracked_crops_equal_the_published_steps():
    frames, found = noise(20, 120, 160, 3), [[face(60 + t, 50 + t / 2, 20 + t / 4)] for t in range(20)]
    crops = FaceTracks(Script(found), SHORT).crops(clip(frames))
    assert len(crops) == 1 and crops[0].start == 0 and crops[0].pixels.shape == (20, 224, 224, 3)
    for t in (8, 11):  # the median of a straight line is the line itself, away from the ends
        square = face_square(frames[t], 60 + t, 50 + t / 2, 20 + t / 4, 0.40)
        wanted = cv2.resize(square, (224, 224))  # type: ignore[union-attr]
        assert np.abs(crops[0].pixels[t].astype(int) - wanted).max() <= 1


def test_a_cut_ends_a_track_where_shots_are_watched():
    frames = np.concatenate(
        [np.full((10, 160, 160, 3), 30, np.uint8), np.full((12, 160, 160, 3), 200, np.uint8)]
    )
    found = [[face(80, 70)] for _ in range(22)]
    watched = FaceTracks(Script(found), SHORT, size=8).crops(clip(frames))
    assert [(crops.start, len(crops.pixels), crops.pixels[0].max()) for crops in watched] == [
        (0, 10, 30),
        (10, 12, 200),
    ]
    assert (
        len(FaceTracks(Script(found), dataclasses.replace(SHORT, shots="none"), size=8).crops(clip(frames)))
        == 1
    )


def portrait() -> np.ndarray:
    """A photograph that comes with matplotlib (Grace Hopper, public domain), 512 x 600; the face is at about
    267, 217."""
    path = Path(matplotlib.__file__).parent / "mpl-data" / "sample_data" / "grace_hopper.jpg"
    return np.asarray(Image.open(path).convert("RGB"))


@needs_opencv
def test_haar_finds_the_face_of_a_photograph_and_it_is_tracked():
    frames = np.stack([np.roll(portrait(), (2 * t, 3 * t), axis=(0, 1)) for t in range(6)])
    found = HaarDetector().detect(clip(frames))
    assert [len(faces) for faces in found] == [1] * 6
    for t, (box,) in enumerate([[one.box for one in faces] for faces in found]):
        assert math.dist(((box[0] + box[2]) / 2, (box[1] + box[3]) / 2), (267 + 3 * t, 217 + 2 * t)) < 15
        assert 200 < box[2] - box[0] < 260
    source = FaceTracks(HaarDetector(), SHORT)
    (crops,) = source.crops(clip(frames))
    assert crops.pixels.shape == (6, 224, 224, 3) and source.label == "short_haar"


@needs_opencv
def test_haar_sees_no_face_where_none_is():
    with pytest.raises(Unscorable, match=r"no face found \(haar\)"):
        FaceTracks(HaarDetector(), SHORT).crops(clip(noise(3, 200, 200, 3)))


def test_without_opencv_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    for build in (HaarDetector, lambda: YuNetDetector(Path("yunet.onnx"))):
        with pytest.raises(ImportError, match=r"needs OpenCV.*pip install 'opencv-python-headless") as error:
            build()
        assert "\n" not in str(error.value)


def test_an_opencv_without_cascades_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", SimpleNamespace(__version__="5.0.0"))
    with pytest.raises(
        FileNotFoundError, match=r"OpenCV 5\.0\.0 comes without haarcascade_frontalface_default\.xml"
    ):
        HaarDetector()


@needs_opencv
def test_yunet_refuses_missing_wrong_and_broken_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="opencv_zoo"):
        YuNetDetector(tmp_path / "none.onnx")
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a network")
    with pytest.raises(ValueError, match="sha256 is"):
        YuNetDetector(broken, sha256="0" * 64)
    with pytest.raises(ValueError, match="no ONNX file") as error:
        YuNetDetector(broken)
    assert "\n" not in str(error.value)


@needs_opencv
def test_yunet_rows_become_boxes_of_the_full_picture(tmp_path, monkeypatch):
    seen = []

    class Net:
        def setInputSize(self, size):
            seen.append(size)

        def detect(self, picture):
            seen.append((picture.shape, picture[0, 0].tolist()))
            return 1, np.array([[10, 20, 30, 40, *range(10), 0.95]], np.float32) if len(seen) == 2 else None

    monkeypatch.setattr(cv2.FaceDetectorYN, "create", lambda *_: Net())  # type: ignore[union-attr]
    (tmp_path / "net.onnx").write_bytes(b"weights")
    frames = np.zeros((2, 320, 640, 3), np.uint8)
    frames[..., 0] = 200  # red comes last in BGR
    first, second = YuNetDetector(tmp_path / "net.onnx").detect(clip(frames))
    assert seen[:2] == [(320, 160), ((160, 320, 3), [0, 0, 200])]
    assert (
        [one.box for one in first] == [(20.0, 40.0, 80.0, 120.0)]
        and first[0].score == pytest.approx(0.95)
        and second == []
    )


def test_given_faces_are_tracked_one_by_one():
    frames = noise(8, 100, 200, 3)
    source = FaceTracks(GivenFaces(), AS_GIVEN, size=36)
    first, second = source.crops(clip(frames, fps=24.0, face_boxes=((10, 20, 50, 60), (120, 20, 140, 40))))
    assert source.label == "as_given_given" and first.start == second.start == 0
    np.testing.assert_array_equal(first.pixels[3], resize_linear(frames[3:4, 20:76, 2:58], 36)[0])
    assert second.pixels.shape == (8, 36, 36, 3)


GREY = np.full((4, 64, 64, 3), 90, np.uint8)
MOUTH, FACE = {"mouth_boxes": ((20, 30, 40, 48),)}, {"face_boxes": ((10, 10, 50, 50),)}


@pytest.mark.parametrize("source", [MouthBoxes(), FaceTracks(GivenFaces(), AS_GIVEN)], ids=["mouth", "face"])
@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        (None, "no frames"),
        (GREY[:0], "no frames"),
        (GREY[:1], "1 frame, at least 2"),
        (GREY * 0, "black: 4 of 4"),
        (GREY // 90 * 15, "black: 4 of 4"),
        (GREY.astype(np.float32), "uint8"),
        (GREY[..., 0], "uint8"),
        (np.zeros((4, 0, 64, 3), np.uint8), "uint8"),
    ],
)
def test_pictures_that_show_nothing_are_unscorable(source, frames, reason):
    with pytest.raises(Unscorable, match=reason):
        source.crops(clip(frames, **MOUTH, **FACE))
    assert source.crops(clip(GREY, **MOUTH, **FACE))


@pytest.mark.parametrize(
    ("source", "fields", "reason"),
    [
        (MouthBoxes(), {}, "no mouth box"),
        (MouthBoxes(), {"mouth_boxes": ((70, 0, 80, 10),)}, "outside of 64x64"),
        (MouthBoxes(), {"mouth_boxes": ((20, 20, 20, 30),)}, "empty"),
        (FaceTracks(GivenFaces()), {}, "no face box"),
        (FaceTracks(GivenFaces()), {"face_boxes": ((0, -20, 10, 0),)}, "outside of 64x64"),
        (FaceTracks(GivenFaces()), FACE, "faces in 4 of 4 frames, none tracked over 101 frames"),
        (FaceTracks(GivenFaces(), AS_GIVEN), {**FACE, "fps": 0.0}, "0.0 frames per second"),
        (FaceTracks(GivenFaces(), AS_GIVEN), {**FACE, "fps": math.nan}, "nan frames per second"),
        (FaceTracks(Script([[], [], [], []]), AS_GIVEN), {}, "no face found"),
        (FaceTracks(Script([[face(300, 30, 5)]] * 4), AS_GIVEN), {}, "lies outside of 64x64"),
    ],
)
def test_clips_without_a_usable_face_are_unscorable(source, fields, reason):
    with pytest.raises(Unscorable, match=reason):
        source.crops(clip(GREY, **fields))


def test_a_short_fade_from_black_is_scored():
    frames = np.concatenate([GREY * 0, GREY, GREY])
    assert len(MouthBoxes().crops(clip(frames, **MOUTH))[0].pixels) == 12
