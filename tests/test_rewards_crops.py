"""Crops: given boxes and the published face geometry equal their definitions and OpenCV, and move with the
picture."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.base import Unscorable
from rewards.sync.crops import MouthBoxes, face_square
from rewards.sync.resize import crop_square, interpolation, resize_linear
from rewards.types import Clip

try:
    import cv2
except ImportError:
    cv2 = None

needs_opencv = pytest.mark.skipif(cv2 is None, reason="OpenCV is not installed (extra: faces)")
RANDOM = np.random.default_rng(0)


def noise(*shape: int) -> np.ndarray:
    return RANDOM.integers(0, 256, shape, dtype=np.uint8)


def clip(frames: np.ndarray | None, **fields) -> Clip:
    return Clip(None, 16_000, frames=frames, **{"fps": 25.0, **fields})


@given(st.integers(3, 40), st.floats(-5, 30), st.floats(0.5, 40), st.integers(1, 40))
def test_interpolation_keeps_a_constant_and_a_ramp(length, start, span, size):
    weights = interpolation(length, start, span, size)
    np.testing.assert_allclose(weights.sum(axis=1), 1.0, atol=1e-5)
    wanted = start + (np.arange(size) + 0.5) * span / size - 0.5
    inside = (wanted >= max(1.0, span / size)) & (wanted <= length - 1 - max(1.0, span / size))
    if span <= size:  # the triangle of one pixel is exact on straight lines
        np.testing.assert_allclose((weights @ np.arange(length))[inside], wanted[inside], atol=1e-3)


def test_an_aligned_square_is_the_picture_itself():
    frames = noise(2, 20, 30, 3)
    np.testing.assert_array_equal(crop_square(frames, (7, 4, 12), 12), frames[:, 4:16, 7:19])
    halved = frames[:, 4:16, 7:19].reshape(2, 6, 2, 6, 2, 3)
    coarse = crop_square(np.repeat(np.repeat(frames, 8, 1), 8, 2), (56, 32, 96), 12)
    assert (
        np.abs(coarse.astype(int) - frames[:, 4:16, 7:19]).mean()
        < np.abs(halved.mean((2, 4)).mean() - frames.astype(float)).mean() / 2
    )


def test_shrinking_averages_what_would_flicker():
    stripes = np.zeros((1, 64, 64, 3), np.uint8)
    stripes[:, :, ::2] = 255
    shrunk = crop_square(stripes, (0, 0, 64), 16)[0, 4:-4, 4:-4]
    assert np.abs(shrunk.astype(int) - 128).max() < 20


@needs_opencv
@pytest.mark.parametrize(
    ("height", "width"), [(5, 5), (17, 30), (224, 224), (301, 300), (448, 448), (90, 700)]
)
def test_resize_equals_opencv_within_a_grey_level(height, width):
    frame = noise(1, height, width, 3)
    wanted = cv2.resize(frame[0], (224, 224), interpolation=cv2.INTER_LINEAR)  # type: ignore[union-attr]
    assert np.abs(resize_linear(frame, 224)[0].astype(int) - wanted).max() <= 1


def test_resize_by_hand():
    frame = np.array([[[[0] * 3, [100] * 3]]], np.uint8)
    assert resize_linear(frame, 4)[0, 0, :, 0].tolist() == [0, 25, 75, 100]


def test_mouth_boxes_are_cut_as_squares_with_a_margin():
    frames = noise(4, 64, 64, 3)
    first, second = MouthBoxes(size=20, margin=0.25).crops(
        clip(frames, mouth_boxes=((22, 30, 38, 46), (40, 10, 48, 26)))
    )
    np.testing.assert_array_equal(first.pixels, frames[:, 28:48, 20:40])
    np.testing.assert_array_equal(second.pixels, frames[:, 8:28, 34:54])
    assert first.start == 0


@given(st.integers(0, 20), st.integers(0, 20))
@settings(max_examples=20)
def test_mouth_crops_move_with_the_picture(right, down):
    frames = np.random.default_rng(1).integers(0, 256, (2, 80, 80, 3), dtype=np.uint8)
    moved = np.roll(frames, (down, right), axis=(1, 2))
    before = MouthBoxes().crops(clip(frames, mouth_boxes=((20, 25, 38, 41),)))[0].pixels
    after = (
        MouthBoxes()
        .crops(clip(moved, mouth_boxes=((20 + right, 25 + down, 38 + right, 41 + down),)))[0]
        .pixels
    )
    assert np.abs(before.astype(int) - after).max() <= 1  # positions are float64, weights float32


def test_a_box_over_the_edge_repeats_the_edge():
    frames = np.full((2, 64, 64, 3), 90, np.uint8)
    crops = MouthBoxes().crops(clip(frames, mouth_boxes=((-6, -6, 12, 10),)))[0].pixels
    assert crops.shape == (2, 32, 32, 3) and (crops == 90).all()


@given(
    st.integers(30, 90),
    st.integers(30, 90),
    st.floats(0, 1),
    st.floats(0, 1),
    st.floats(1, 40),
    st.sampled_from([0.0, 0.3, 0.4]),
    st.integers(0, 9),
)
def test_face_square_equals_padding_the_whole_picture(height, width, along, down, half, scale, seed):
    frame = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    x, y = along * width, down * height
    pad = int(half * (1 + 2 * scale))
    padded = np.pad(frame, ((pad, pad), (pad, pad), (0, 0)), constant_values=110)
    first, left = max(0, int(y + pad - half)), max(0, int(x + pad - half * (1 + scale)))
    wanted = padded[first : int(y + pad + half * (1 + 2 * scale)), left : int(x + pad + half * (1 + scale))]
    try:
        found = face_square(frame, x, y, half, scale)
    except Unscorable:
        outside = np.full((height, width, 3), 1, np.uint8)
        padded = np.pad(outside, ((pad, pad), (pad, pad), (0, 0)))
        assert not padded[
            first : int(y + pad + half * (1 + 2 * scale)), left : int(x + pad + half * (1 + scale))
        ].any()
        return
    np.testing.assert_array_equal(found, wanted)


def test_the_published_square_is_shifted_down():
    frame = noise(200, 200, 3)
    square = face_square(frame, 100, 80, 20, 0.40)
    np.testing.assert_array_equal(square, frame[60:116, 72:128])  # 80 - 20 .. 80 + 36, 100 -+ 28
    np.testing.assert_array_equal(face_square(frame, 100, 80, 20, 0.30), frame[60:112, 74:126])
    corner = face_square(frame, 0, 0, 20, 0.40)
    assert corner.shape == (56, 56, 3) and (corner[:20] == 110).all() and (corner[:, :28] == 110).all()
    np.testing.assert_array_equal(corner[20:, 28:], frame[:36, :28])


@given(st.integers(0, 30), st.integers(0, 30), st.floats(50, 70), st.floats(45, 60), st.floats(3, 25))
def test_face_square_moves_with_the_picture(right, down, x, y, half):
    frame = np.random.default_rng(2).integers(0, 256, (180, 190, 3), dtype=np.uint8)
    moved = np.roll(frame, (down, right), axis=(0, 1))
    # whole pixels are cut after adding the padding, so a fraction that rounding to float moves over a whole
    # number may differ
    x, y, half = round(x * 8) / 8, round(y * 8) / 8, round(half * 8) / 8
    np.testing.assert_array_equal(
        face_square(frame, x, y, half, 0.5), face_square(moved, x + right, y + down, half, 0.5)
    )
