"""Lips against loudness in closed form: correlation 1 for a mouth made from the sound, shifts recovered."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.lips import LipLoudness, frame_loudness, lagged_correlations, mouth_opening
from rewards.types import Clip

FPS, RATE, FRAMES = 24.0, 16_000, 25
BOX = (20, 30, 44, 50)


def sound_of(levels: np.ndarray) -> np.ndarray:
    """A square wave whose root mean square during frame t is levels[t]."""
    edges = np.round(np.arange(len(levels) + 1) * RATE / FPS).astype(int)
    signs = np.where(np.arange(edges[-1]) // 20 % 2, 1.0, -1.0)
    return (np.repeat(levels, np.diff(edges)) * signs).astype(np.float32)


def mouth_of(levels: np.ndarray) -> np.ndarray:
    """Grey frames whose mouth box is darker the larger levels[t] (0..1)."""
    frames = np.full((len(levels), 64, 64, 3), 200, np.uint8)
    frames[:, BOX[1] : BOX[3], BOX[0] : BOX[2]] = np.round(200 - 150 * levels)[:, None, None, None]
    return frames


def bump(centre: float = 12.0) -> np.ndarray:
    return np.exp(-(((np.arange(FRAMES) - centre) / 2.5) ** 2))


def clip(opening: np.ndarray, loudness: np.ndarray) -> Clip:
    return Clip(sound_of(0.5 * loudness), RATE, frames=mouth_of(opening), fps=FPS, mouth_boxes=(BOX,))


def test_a_mouth_made_from_the_sound_correlates_at_one():
    score = LipLoudness().score([clip(bump(), bump())])[0]
    assert score.value == pytest.approx(1.0, abs=1e-3)
    assert score.parts["lag_frames"] == 0


def test_an_inverted_mouth_correlates_at_minus_one():
    assert LipLoudness().score([clip(1 - bump(), bump())])[0].value == pytest.approx(-1.0, abs=1e-3)


@given(st.integers(-5, 5))
def test_lag_is_recovered_and_positive_when_the_mouth_is_late(shift):
    score = LipLoudness().score([clip(bump(12 + shift), bump(12))])[0]
    assert score.parts["lag_frames"] == shift
    assert score.parts["peak"] >= score.value


@given(st.floats(0.1, 1.0), st.floats(0.0, 0.5), st.integers(0, 2**16))
def test_correlation_does_not_depend_on_gain_or_offset(gain, offset, seed):
    first, second = np.random.default_rng(seed).random((2, FRAMES))
    np.testing.assert_allclose(
        lagged_correlations(gain * first + offset, second), lagged_correlations(first, second), atol=1e-9
    )
    assert lagged_correlations(first, second)[5] == pytest.approx(np.corrcoef(first, second)[0, 1], abs=1e-9)


def test_loudness_of_a_frame_is_its_root_mean_square():
    levels = np.linspace(0.0, 0.9, FRAMES)
    np.testing.assert_allclose(frame_loudness(sound_of(levels), FRAMES, FPS), levels, atol=1e-6)
    assert frame_loudness(sound_of(levels)[: RATE // 2], FRAMES, FPS)[-1] == 0.0


def test_opening_is_measured_inside_the_box_alone():
    frames = mouth_of(np.zeros(FRAMES))
    before = mouth_opening(frames, [BOX])
    frames[:, :20] = 0
    np.testing.assert_array_equal(mouth_opening(frames, [BOX]), before)
    frames[:, 30:50, 20:44] = 0
    np.testing.assert_allclose(mouth_opening(frames, [BOX]), 1.0)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (clip(np.zeros(FRAMES), bump()), "does not move"),
        (clip(bump(), np.ones(FRAMES)), "loudness does not change"),
        (clip(bump(), np.zeros(FRAMES)), "silent"),
        (Clip(sound_of(bump()), RATE, frames=mouth_of(bump()), fps=FPS), "no mouth box"),
        (Clip(sound_of(bump()), RATE, fps=FPS, mouth_boxes=(BOX,)), "no frames"),
        (Clip(sound_of(bump()), RATE, frames=mouth_of(bump())[:5], fps=FPS, mouth_boxes=(BOX,)), "5 frames"),
        (
            Clip(sound_of(bump()), RATE, frames=mouth_of(bump()), fps=FPS, mouth_boxes=((90, 90, 99, 99),)),
            "outside",
        ),
    ],
)
def test_what_cannot_be_scored_is_nan_with_a_reason(bad, reason):
    score, good = LipLoudness().score([bad, clip(bump(), bump())])
    assert math.isnan(score.value) and reason in score.reason
    assert good.value > 0.99
