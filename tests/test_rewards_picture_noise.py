"""Picture noise reads the noise that was put in, and not edges, slopes of brightness or movement."""

import math

import numpy as np
import pytest

from rewards.quality.picture_noise import PictureNoise, noise_levels
from rewards.types import Clip


def pictures(noise, seed=0, size=64, frames=4):
    """A bright disc on a slope of brightness, moving, with the same noise in all three colours."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    made = [
        60 + x + 80 * (np.hypot(x - 20 - 3 * t, y - 32) < 12) + noise * rng.standard_normal((size, size))
        for t in range(frames)
    ]
    return np.repeat(np.clip(np.round(made), 0, 255).astype(np.uint8)[..., None], 3, axis=3)


@pytest.mark.parametrize("noise", [1.0, 3.0, 10.0])
def test_it_reads_the_noise_that_was_put_in(noise):
    assert noise_levels(pictures(noise)) == pytest.approx(noise, rel=0.05)


def test_edges_slopes_and_movement_are_not_noise():
    assert noise_levels(pictures(0.0)) == 0.0


def test_a_clip_has_its_own_answer_and_a_reason_where_there_is_none():
    shown = [
        Clip(None, 16_000, frames=frames)
        for frames in (pictures(2.0), pictures(2.0, seed=1)[:, :, :40], None, pictures(2.0, size=2))
    ]
    found = PictureNoise().score(shown)
    assert [score.value for score in PictureNoise().score(shown[:2][::-1])] == [
        found[1].value,
        found[0].value,
    ]
    assert math.isnan(found[2].value) and found[2].reason == "no frames"
    assert math.isnan(found[3].value) and found[3].reason == "frames of 2x2 pixels, at least 3x3 are needed"
