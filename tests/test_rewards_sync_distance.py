"""Sync-C, Sync-D, offset and the zero-lag reward by hand, in closed form, and against the definition in
PyTorch."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from rewards.sync.distance import masked_sync_distance, shift_distances, sync_distance
from rewards.sync.zero_lag import zero_lag


def rows(num: int, width: int = 24, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((num, width))


def moved(num: int, lag: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """v and a with a_(i + lag) = v_i wherever both are there."""
    long = rows(num + 40, seed=seed)
    return long[20 : 20 + num], long[20 - lag : 20 - lag + num]


def test_distances_of_two_windows_by_hand():
    distances = shift_distances(np.array([[3.0], [4.0]]), np.array([[3.0], [4.0]]), vshift=1)
    np.testing.assert_allclose(distances, [[3, 0, 1], [1, 0, 4]], atol=2e-6)
    found = sync_distance(distances)  # means 2, 0, 2.5
    assert (found.confidence, found.distance, found.offset_frames) == (
        pytest.approx(2, abs=2e-6),
        pytest.approx(0, abs=2e-6),
        0,
    )
    masked = masked_sync_distance(distances)  # means 1, 0, 1 of the pairs that exist
    assert (masked.confidence, masked.distance, masked.offset_frames) == (
        pytest.approx(1, abs=3e-6),
        pytest.approx(0, abs=2e-6),
        0,
    )


def test_equal_embeddings_keep_the_pairwise_epsilon():
    distances = shift_distances(np.ones((5, 16)), np.ones((5, 16)), vshift=0)
    np.testing.assert_allclose(distances, 4e-6, rtol=1e-6)


@given(st.integers(1, 60), st.integers(0, 2**16))
def test_distances_equal_the_published_definition(num, seed):
    v, a = torch.from_numpy(rows(num, seed=seed)), torch.from_numpy(rows(num, seed=seed + 1))
    padded = F.pad(a, (0, 0, 15, 15))
    wanted = torch.stack([F.pairwise_distance(v[[i]].expand(31, -1), padded[i : i + 31]) for i in range(num)])
    distances = shift_distances(v.numpy(), a.numpy())
    np.testing.assert_allclose(distances, wanted, atol=1e-9)
    means, found = wanted.mean(0), sync_distance(distances)
    smallest = means.min()
    assert found.distance == pytest.approx(float(smallest), abs=1e-9)
    assert found.confidence == pytest.approx(float(means.median() - smallest), abs=1e-9)
    assert float(means[15 - found.offset_frames]) == pytest.approx(
        float(smallest), abs=1e-9
    )  # columns beyond a short sound are equal


@given(st.integers(-12, 12), st.integers(0, 2**16))
def test_offset_is_positive_when_the_sound_is_early(lag, seed):
    distances = shift_distances(*moved(60, lag, seed))
    assert sync_distance(distances).offset_frames == masked_sync_distance(distances).offset_frames == -lag
    assert masked_sync_distance(distances).distance == pytest.approx(0, abs=1e-5)


def test_padding_counts_in_the_published_means_alone():
    """Loud pictures over a sound of zeros: every column is the same with padding, and without."""
    v = np.full((20, 4), 2.0)
    assert sync_distance(shift_distances(v, 0 * v)).confidence == pytest.approx(0, abs=1e-9)
    v, a = moved(20, 0)
    published, masked = (
        measure(shift_distances(v, 9 * a)) for measure in (sync_distance, masked_sync_distance)
    )
    assert (
        abs(published.offset_frames) == 15 and published.confidence > 2 * masked.confidence
    )  # zeros are nearest to a quiet picture


def test_masked_means_skip_lags_without_pairs():
    found = masked_sync_distance(shift_distances(*moved(4, 2)))
    assert found.offset_frames == -2 and math.isfinite(found.confidence)


@given(st.integers(2, 24))
def test_equal_embeddings_in_closed_form(num):
    """Orthonormal rows: centred, each has |v|^2 = 1 - 1/n and v_i . v_j = -1/n."""
    basis = np.eye(num)
    found = zero_lag(basis, 3 * basis)
    energy = 1 - 1 / num
    assert found.rho_zero == pytest.approx(energy / (energy + 0.1))
    for lag in range(1, 16):
        wanted = -max(0, num - lag) / num**2 / (energy + 0.1)
        assert found.rho[15 + lag] == pytest.approx(wanted) and found.rho[15 - lag] == pytest.approx(wanted)
    weights = np.exp(found.rho / 0.1)
    expected = (weights * abs(np.arange(-15, 16))).sum() / weights.sum()
    assert found.expected_lag == pytest.approx(expected) and found.best_lag == 0
    assert found.value == pytest.approx(found.rho_zero + 0.5 * (1 - expected / (240 / 31)))


def test_two_windows_by_hand():
    found = zero_lag(np.array([[2.0], [-5.0]]), np.array([[1.0], [-1.0]]), max_lag=1)
    np.testing.assert_allclose(found.rho, [-0.5 / 1.1, 1 / 1.1, -0.5 / 1.1])
    tail = 2 * math.exp(-15 / 1.1)
    expected = tail / (1 + tail)
    assert found.expected_lag == pytest.approx(expected)
    assert found.value == pytest.approx(1 / 1.1 + 0.5 * (1 - 1.5 * expected))


@given(st.integers(-15, 15), st.integers(0, 2**16))
def test_best_lag_is_where_the_sound_fits(lag, seed):
    found = zero_lag(*moved(80, lag, seed))
    assert found.best_lag == lag
    assert found.rho.max() <= 1 and np.isclose(found.rho[15 + lag], found.rho.max())
    if lag:
        assert found.value < 0.6 < zero_lag(*moved(80, 0, seed)).value


def test_reward_falls_with_the_distance_of_the_lag():
    values = [
        np.mean([zero_lag(*moved(60, sign * lag, seed)).value for seed in range(5) for sign in (1, -1)])
        for lag in range(0, 13, 3)
    ]
    assert all(near > far for near, far in pairwise(values))


@given(st.integers(1, 60), st.integers(0, 2**16))
def test_a_static_face_or_sound_has_no_reward(num, seed):
    still = np.repeat(rows(1, seed=seed), num, axis=0)
    for v, a in (
        (still, rows(num, seed=seed + 1)),
        (rows(num, seed=seed + 1), still),
        (0 * still, rows(num)),
    ):
        assert zero_lag(v, a).value == pytest.approx(0, abs=1e-9)
        assert zero_lag(v, a).best_lag == 0


def test_eps_takes_the_reward_from_a_face_that_hardly_moves():
    v, a = moved(60, 0)
    hardly = 20 * np.ones(24) + v
    assert zero_lag(hardly, a).rho_zero < 0.4 * zero_lag(hardly, a, eps=1e-6).rho_zero
    assert zero_lag(v, a).rho_zero > 0.85 * zero_lag(v, a, eps=1e-6).rho_zero


@given(st.floats(0.01, 100), st.integers(0, 2**16))
def test_reward_does_not_depend_on_the_length_of_embeddings(factor, seed):
    v, a = rows(40, seed=seed), rows(40, seed=seed + 1)
    lengths = np.random.default_rng(seed).uniform(0.5, 2, (40, 1))
    assert zero_lag(factor * v, lengths * a).value == pytest.approx(zero_lag(v, a).value, abs=1e-9)


def test_reversing_both_mirrors_the_lags():
    v, a = moved(50, 3)
    np.testing.assert_allclose(zero_lag(v[::-1], a[::-1]).rho, zero_lag(v, a).rho[::-1], atol=1e-12)


@pytest.mark.parametrize("measure", [zero_lag, shift_distances])
def test_broken_embeddings_raise(measure):
    for v, a, words in [
        (rows(4), rows(5), "one shape"),
        (rows(0), rows(0), "one shape"),
        (rows(4)[0], rows(4)[0], "one shape"),
        (rows(4) * np.nan, rows(4), "not finite"),
        (rows(4), np.where(rows(4) > 0, np.inf, 0.0), "not finite"),
    ]:
        with pytest.raises(ValueError, match=words):
            measure(v, a)
