"""One channel of several: what keeps its level, what cancels, what is empty."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.channels import WEIGHTS, one_channel

VOICE = np.random.default_rng(0).uniform(-0.5, 0.5, 4000).astype(np.float32)
OTHER = np.random.default_rng(1).uniform(-0.5, 0.5, 4000).astype(np.float32)


def placed(count: int, **at: np.ndarray) -> np.ndarray:
    samples = np.zeros((count, 4000), np.float32)
    for channel, sound in at.items():
        samples[int(channel[1:])] = sound
    return samples


def rms(samples: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(samples, dtype=np.float64))))


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 10), at=st.integers(0, 9), noise_db=st.floats(-90, -45))
def test_a_voice_on_one_channel_keeps_its_level(count: int, at: int, noise_db: float) -> None:
    at %= count
    samples = placed(count, **{f"c{at}": VOICE})
    samples[[c for c in range(count) if c != at]] += OTHER * 10 ** (noise_db / 20)
    if WEIGHTS.get(count, np.ones(count))[at] or noise_db < -200:
        assert np.allclose(one_channel(samples), VOICE)


def test_speech_in_the_centre_of_a_full_mix_keeps_its_level() -> None:
    quiet = OTHER * 0.1
    samples = placed(6, c0=quiet, c1=quiet[::-1], c2=VOICE, c3=OTHER, c4=quiet, c5=quiet)
    mix = one_channel(samples)
    assert abs(20 * np.log10(rms(mix) / rms(VOICE))) < 0.5
    weights = np.array(WEIGHTS[6], np.float32)
    assert np.allclose(mix, weights @ samples, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(gain=st.floats(0.4, 1.0), sign=st.sampled_from([1, -1]))
def test_opposite_channels_are_never_silent(gain: float, sign: int) -> None:
    mix = one_channel(np.stack([sign * VOICE, -sign * gain * VOICE]))
    assert rms(mix) >= 0.3 * rms(VOICE)


def test_opposite_channels_leave_the_louder_one() -> None:
    assert np.array_equal(one_channel(np.stack([VOICE, -VOICE])), VOICE)
    assert np.array_equal(one_channel(np.stack([0.9 * VOICE, -VOICE])), -VOICE)
    surround = placed(6, c0=VOICE, c1=-VOICE, c3=OTHER)
    assert np.array_equal(one_channel(surround), VOICE)


def test_stereo_is_its_mean_and_nothing_goes_beyond_full_scale() -> None:
    both = np.stack([VOICE, OTHER])
    assert np.array_equal(one_channel(both), both.mean(axis=0))
    loud = np.ones((6, 100), np.float32)
    assert float(np.abs(one_channel(loud)).max()) <= 1.0 + 1e-6
    assert not one_channel(np.zeros((6, 100), np.float32)).any()
    only_lfe = placed(6, c3=VOICE)
    assert np.array_equal(one_channel(only_lfe), VOICE)
