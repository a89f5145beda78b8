"""Noise estimate on real speech, flat tops counted by hand, Fréchet distance in closed form."""

import math
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.data.corpus.bank import load_bank
from rewards.quality.frechet import frechet_distance, gaussian_distance, verse_bench_distance
from rewards.quality.noise import MIN_DB, NoiseEstimate, clipped_share, snr_db
from rewards.types import Clip

RATE = 16_000
VOICES = ("slt", "rms", "awb", "kal16")


@cache
def talk(voice: str, first: int = 0) -> np.ndarray:
    """Four words of the bank with pauses of 0.15 s, at 0.1 root mean square."""
    bank = load_bank()
    words = [bank.utterances[word, voice][0].waveform for word in (bank.words * 2)[first : first + 4]]
    track = np.concatenate([np.pad(word, (0, 2400)) for word in words])
    return (track * (0.1 / np.sqrt((track**2).mean()))).astype(np.float32)


def hiss(num: int, seed: int, colour: float = 0.0) -> np.ndarray:
    """Steady noise of unit power; `colour` 0 is white, towards 1 darker."""
    white = np.random.default_rng(seed).standard_normal(num)
    dark = np.cumsum(white * 0.05) if colour == 1 else np.convolve(white, colour ** np.arange(60))[:num]
    return dark / dark.std()


@settings(max_examples=60)
@given(
    st.sampled_from(VOICES),
    st.integers(0, 40),
    st.integers(0, 2**16),
    st.floats(0.0, 0.95),
    st.floats(1e-4, 1.0),
    st.floats(1.0, 30.0),
)
def test_louder_noise_never_raises_the_estimate(voice, first, seed, colour, gain, times):
    speech = talk(voice, first % len(load_bank().words))
    noise = 0.1 * gain * hiss(len(speech), seed, colour)
    assert snr_db(speech + times * noise) <= snr_db(speech + noise) + 0.05


@pytest.mark.parametrize("voice", VOICES)
@pytest.mark.parametrize("wanted", [40.0, 30.0, 20.0, 10.0, 5.0])
def test_white_noise_under_speech_with_pauses_is_measured_within_1_db(voice, wanted):
    speech = talk(voice)
    found = [snr_db(speech + 0.1 * 10 ** (-wanted / 20) * hiss(len(speech), seed)) for seed in range(5)]
    assert np.mean(found) == pytest.approx(wanted, abs=1.0)
    assert np.std(found) < 0.5


def test_noise_alone_is_at_the_bottom_and_clean_speech_at_the_top():
    assert snr_db(hiss(RATE, 0)) == MIN_DB
    assert snr_db(talk("slt")) == 60.0


@given(st.floats(0.02, 0.6), st.integers(0, 2**16), st.floats(0.0, 0.9), st.sampled_from([0.0, 1e-6]))
def test_gaps_in_a_steady_noise_are_no_pauses(share, seed, colour, left):
    noise = hiss(2 * RATE, seed, colour)
    quiet = noise.copy()
    quiet[: int(share * len(noise))] *= left
    assert snr_db(quiet) <= snr_db(noise) + 5.0 and snr_db(noise) < 2.0
    gated = noise * (np.arange(len(noise)) % 1600 < 1600 * (1 - share))
    assert snr_db(gated) <= 5.0


def test_a_steady_sound_with_a_gap_is_not_clean_and_a_click_is_no_sound():
    tone = np.sin(np.arange(RATE) * 0.3)
    assert snr_db(np.r_[np.zeros(RATE // 4), tone]) == MIN_DB
    for level in (0.0, 1e-6):  # digital silence, and nearly
        click = np.full(RATE, level, np.float32)
        click[8000] = 0.5
        (score,) = NoiseEstimate().score([Clip(click, RATE)])
        assert math.isnan(score.value) and "0.005 s of sound in silence, at least 0.2 s" in score.reason


@pytest.mark.parametrize("voice", VOICES)
def test_speech_with_silent_pauses_and_padding_keeps_its_value(voice):
    padded = np.pad(talk(voice), (RATE // 4, RATE // 4))
    assert snr_db(padded) == snr_db(talk(voice)) == 60.0


@given(st.floats(0.02, 5.0), st.integers(0, 100))
def test_loudness_does_not_count(gain, seed):
    sound = talk("rms") + 0.01 * hiss(len(talk("rms")), seed)
    assert snr_db(gain * sound) == pytest.approx(snr_db(sound), abs=1e-6)


def test_flat_tops_are_counted_by_hand():
    assert clipped_share(np.array([0.1, 1, 1, 1, 0.2, -1, -1, -1, -1, 0.0])) == 0.7
    assert (
        clipped_share(np.array([0.1, 1, 1, 0.5, 0.5, 0.5, 0.5, -1, 0.2, 0.0])) == 0.0
    )  # two may be chance, and 0.5 is no top
    assert clipped_share(talk("slt")) == 0.0


@given(st.sampled_from(VOICES), st.floats(0.2, 0.55), st.floats(0.65, 0.95))
def test_harder_clipping_flattens_more(voice, hard, soft):
    speech = talk(voice) / np.abs(talk(voice)).max()
    shares = [clipped_share(np.clip(speech, -limit, limit)) for limit in (hard, soft)]
    assert shares[0] > shares[1] >= 0.0


def test_scores_of_a_batch_and_stereo():
    noisy = talk("awb") + (0.02 * hiss(len(talk("awb")), 1)).astype(np.float32)
    stereo = np.stack([talk("awb"), 2 * noisy - talk("awb")]).astype(np.float32)
    clips = [Clip(talk("awb"), RATE), Clip(noisy.astype(np.float32), RATE), Clip(stereo, RATE)]
    values = [score.value for score in NoiseEstimate().score(clips)]
    assert values[::-1] == [score.value for score in NoiseEstimate().score(clips[::-1])]
    assert values == [NoiseEstimate().score([clip])[0].value for clip in clips]
    assert values[2] == pytest.approx(values[1], abs=1e-4) and values[0] > values[1]


@pytest.mark.parametrize(
    ("clip", "reason"),
    [
        (Clip(None, RATE), "no sound"),
        (Clip(np.zeros(RATE, np.float32), RATE), "silent"),
        (Clip(np.ones(900, np.float32), RATE), "0.2 s"),
    ],
)
def test_what_cannot_be_scored_is_nan_with_a_reason(clip, reason):
    bad, good = NoiseEstimate().score([clip, Clip(talk("slt"), RATE)])
    assert math.isnan(bad.value) and reason in bad.reason and good.value == 60.0


def test_diagonal_gaussians_in_closed_form():
    """|m1 - m2|^2 + sum (s1 - s2)^2 with the standard deviations s."""
    mean1, mean2, dev1, dev2 = (
        np.array([1.0, 2.0, 0.0]),
        np.array([0.0, 2.0, -2.0]),
        np.array([1.0, 0.5, 2.0]),
        np.array([3.0, 0.5, 0.0]),
    )
    assert gaussian_distance(mean1, np.diag(dev1**2), mean2, np.diag(dev2**2)) == pytest.approx(
        5.0 + 4.0 + 0.0 + 4.0
    )


@given(st.integers(0, 2**16), st.integers(1, 6))
def test_covariances_with_the_same_axes_in_closed_form(seed, dim):
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.standard_normal((dim, dim)))[0]
    dev1, dev2 = rng.random((2, dim)) * 3
    first, second = (axes @ np.diag(dev**2) @ axes.T for dev in (dev1, dev2))
    assert gaussian_distance(np.zeros(dim), first, np.zeros(dim), second) == pytest.approx(
        ((dev1 - dev2) ** 2).sum(), abs=1e-6
    )


def test_covariances_that_do_not_commute_equal_the_matrix_square_root():
    from scipy.linalg import sqrtm

    rng = np.random.default_rng(0)
    first, second = (root @ root.T for root in rng.standard_normal((2, 5, 5)))
    expected = np.trace(first + second - 2 * np.real(sqrtm(first @ second)))
    assert gaussian_distance(np.zeros(5), first, np.zeros(5), second) == pytest.approx(expected, abs=1e-6)


def sets(seed: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((2, dim, dim))
    return rng.standard_normal((8, dim)) @ mix[0], rng.standard_normal((12, dim)) @ mix[
        1
    ] + rng.standard_normal(dim)


@given(st.integers(0, 2**16), st.integers(1, 10))
def test_distance_is_symmetric_never_negative_and_0_for_equal_sets(seed, dim):
    first, second = sets(seed, dim)
    there, back = frechet_distance(first, second), frechet_distance(second, first)
    assert there == pytest.approx(back, rel=1e-6, abs=1e-6) and there >= 0.0
    assert frechet_distance(first, first[::-1]) == pytest.approx(0.0, abs=1e-5 * (1 + float(np.var(first))))
    assert there > 1e-3


@given(st.integers(0, 2**16), st.integers(2, 10))
def test_distance_is_the_same_after_a_rotation_and_a_shift_of_both(seed, dim):
    first, second = sets(seed, dim)
    turn = np.linalg.qr(np.random.default_rng(seed + 1).standard_normal((dim, dim)))[0]
    turned = frechet_distance(first @ turn + 3.0, second @ turn + 3.0)
    assert turned == pytest.approx(frechet_distance(first, second), rel=1e-6, abs=1e-6)


def test_moving_a_set_adds_the_square_of_the_way():
    first, _ = sets(0, 4)
    assert frechet_distance(first, first + np.array([3.0, 0.0, 4.0, 0.0])) == pytest.approx(25.0, abs=1e-6)


@given(st.integers(0, 2**16))
def test_verse_bench_formula_on_one_embedding_is_2_minus_2_cos(seed):
    """numpy 1 takes np.cov of one row as the variance of its entries: a scalar, whose matrix root is its
    square root."""
    pair = np.random.default_rng(seed).standard_normal((2, 512))
    first, second = pair / np.linalg.norm(pair, axis=1, keepdims=True)
    variances = [entries.var(ddof=1) for entries in (first, second)]
    by_hand = (
        ((first - second) ** 2).sum()
        + variances[0]
        + variances[1]
        - 2 * math.sqrt(variances[0] * variances[1])
    )
    assert by_hand == pytest.approx(2 - 2 * float(first @ second), abs=1e-6)
    assert verse_bench_distance(first[None], 5 * second[None])[0] == pytest.approx(by_hand, abs=1e-6)


def test_verse_bench_distance_has_its_ends_at_0_and_4():
    vectors = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    np.testing.assert_allclose(
        verse_bench_distance(vectors, np.array([[3.0, 0.0], [-1.0, 0.0], [1.0, 0.0]])), [0.0, 4.0, 2.0]
    )


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (np.ones((1, 4)), np.ones((5, 4)), "one embedding has no covariance"),
        (np.ones((5, 4)), np.ones((5, 3)), "4 and 3 dimensions"),
        (np.full((5, 4), np.nan), np.ones((5, 4)), "20 entries that are NaN"),
    ],
)
def test_sets_without_a_distance_are_refused(first, second, message):
    with pytest.raises(ValueError, match=message):
        frechet_distance(first, second)


def test_a_matrix_that_is_no_covariance_is_refused():
    with pytest.raises(ValueError, match="eigenvalue -1"):
        gaussian_distance(np.zeros(2), np.eye(2), np.zeros(2), np.diag([1.0, -1.0]))
