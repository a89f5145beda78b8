"""Identity by colours and edges: the same picture is 1, another person is less, light hardly counts."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.data.corpus.cast import BACKGROUNDS, CHARACTERS
from pretrain.data.corpus.render import LEFT, RIGHT, SINGLE, Face, render_faces
from rewards.semantic.identity import FirstFrameIdentity, describe
from rewards.types import Clip

NAMES = [character.name for character in CHARACTERS]
TALKING = np.array([[0.0, 0.3, 1.0, 0.6]])
BLINKS = np.array([[False, False, False, True]])


def talking(name: str, background: str = "blue") -> np.ndarray:
    return render_faces((Face(name, *SINGLE),), background, TALKING, BLINKS)


def clip(frames: np.ndarray, first: np.ndarray | None) -> Clip:
    return Clip(None, 16_000, frames=frames, first_frame=first)


def value(frames: np.ndarray, first: np.ndarray) -> float:
    score = FirstFrameIdentity().score([clip(frames, first)])[0]
    assert not score.reason
    return score.value


@given(st.integers(0, 2**16), st.integers(9, 90), st.integers(9, 90), st.booleans())
def test_the_same_picture_is_1(seed, height, width, grey):
    picture = np.random.default_rng(seed).integers(0, 256, (height, width, 1 if grey else 3), dtype=np.uint8)
    picture = np.broadcast_to(picture, (height, width, 3))
    assert value(np.stack([picture, picture]), picture) == pytest.approx(1.0, abs=1e-9)


def test_pictures_without_colour_or_edges_are_compared_too():
    flat = np.full((2, 64, 64, 3), 120, np.uint8)
    assert value(flat, flat[0]) == pytest.approx(1.0, abs=1e-9)
    assert value(flat, talking("ruby")[0]) < 0.6


@pytest.mark.parametrize("background", ["blue", "dark"])
@pytest.mark.parametrize("name", NAMES)
def test_a_talking_face_is_like_its_first_frame_and_others_are_less(name, background):
    first = talking(name, background)[0]
    own = value(talking(name, background), first)
    others = [value(talking(other, background), first) for other in NAMES if other != name]
    walls = [value(talking(name, wall), first) for wall in BACKGROUNDS if wall != background]
    assert own > 0.93
    assert max(others) < own - 0.1
    assert max(walls) < own - 0.02


@given(st.floats(0.6, 1.0), st.sampled_from(NAMES))
def test_a_darker_picture_is_nearly_the_same(gain, name):
    frames = talking(name)
    darker = np.round(frames * gain).astype(np.uint8)
    assert value(darker, frames[0]) == pytest.approx(value(frames, frames[0]), abs=0.02)


def test_a_shadow_over_half_of_the_picture_leaves_its_colours():
    frames = talking("ruby")[:1].repeat(2, axis=0)
    shaded = frames.copy()
    shaded[:, :, 32:] = shaded[:, :, 32:] // 2
    score = FirstFrameIdentity().score([clip(shaded, frames[0])])[0]
    assert score.parts["colour"] > 0.99


def test_a_negative_has_the_same_edges():
    frames = talking("omar")[:1].repeat(2, axis=0)
    score = FirstFrameIdentity().score([clip(255 - frames, frames[0])])[0]
    assert score.parts["edges"] > 0.99 and score.parts["colour"] < 0.0


def test_size_does_not_matter_and_parts_are_the_two_halves():
    frames = talking("ruby")
    larger = frames.repeat(3, axis=1).repeat(3, axis=2)
    assert value(larger, frames[0]) == pytest.approx(value(frames, frames[0]), abs=1e-6)
    score = FirstFrameIdentity().score([clip(frames, talking("omar")[0])])[0]
    assert score.value == pytest.approx((score.parts["colour"] + score.parts["edges"]) / 2)
    assert score.parts["lowest"] < score.value


def test_a_second_person_who_appears_is_seen_in_the_lowest_frame():
    alone, faces = talking("ruby"), (Face("ruby", *LEFT), Face("omar", *RIGHT))
    both = render_faces(faces, "blue", TALKING.repeat(2, axis=0), BLINKS.repeat(2, axis=0))
    score = FirstFrameIdentity().score([clip(np.concatenate([alone, both]), alone[0])])[0]
    assert score.parts["lowest"] < value(alone, alone[0]) - 0.2


def test_swapping_colours_is_seen_in_colour_and_less_in_edges():
    frames = talking("ruby")
    swapped = FirstFrameIdentity().score([clip(frames[..., ::-1], frames[0])])[0].parts
    assert swapped["colour"] < 0.5 < swapped["edges"]


def test_long_films_are_described_as_short_ones_are():
    frames = np.concatenate([talking(name) for name in NAMES] * 5)  # 80 frames: more than one batch
    for whole, part in zip(describe(frames), describe(frames[70:]), strict=True):
        np.testing.assert_allclose(whole[70:], part, atol=1e-9)
    assert describe(frames)[0].shape == (80, 129) and describe(frames)[1].shape == (80, 385)


def test_order_and_size_of_a_batch_do_not_matter():
    clips = [clip(talking(name), talking("alan")[0]) for name in NAMES]
    batch = [score.value for score in FirstFrameIdentity().score(clips)]
    assert batch[::-1] == [score.value for score in FirstFrameIdentity().score(clips[::-1])]
    assert batch == [FirstFrameIdentity().score([one])[0].value for one in clips]
    assert max(batch) == batch[NAMES.index("alan")]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (clip(talking("ruby"), None), "no first frame to compare with"),
        (Clip(None, 16_000, first_frame=talking("ruby")[0]), "no frames"),
        (clip(talking("ruby")[:0], talking("ruby")[0]), "no frames"),
        (clip(np.zeros((3, 64, 64, 3), np.uint8), talking("ruby")[0]), "black: 3 of 3 frames"),
        (clip(talking("ruby"), np.full((64, 64, 3), 3, np.uint8)), "the first frame is black"),
        (clip(talking("ruby"), np.full((64, 100, 3), 99, np.uint8)), "100x64, the frames are 64x64"),
    ],
)
def test_what_cannot_be_compared_is_nan_with_a_reason(bad, reason):
    scores = FirstFrameIdentity().score([bad, clip(talking("ruby"), talking("ruby")[0])])
    assert math.isnan(scores[0].value) and reason in scores[0].reason
    assert scores[1].value > 0.9
