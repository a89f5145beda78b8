"""The sync network's front end against slow re-derivations, closed forms and the counts of columns and
windows."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.fft import dct

from rewards.base import Unscorable
from rewards.sync.mfcc import SMALLEST, mel_filters, mfcc, num_columns
from rewards.sync.windows import (
    SyncInput,
    input_windows,
    num_windows,
    sound_windows,
    to_25_fps,
    windows_of_sound,
)

LOUD = 32_768.0


def slow_mfcc(samples: list[int]) -> np.ndarray:
    """Column by column, filter by filter, with a Fourier sum instead of an FFT."""
    emphasised = [float(samples[0])] + [samples[i] - 0.97 * samples[i - 1] for i in range(1, len(samples))]
    count = 1 if len(samples) <= 400 else 1 + math.ceil((len(samples) - 400) / 160)
    corners = []
    for place in range(28):
        mel = 2595 * math.log10(1 + 8000 / 700) * place / 27
        corners.append(math.floor(513 * 700 * (10 ** (mel / 2595) - 1) / 16_000))
    turns = np.exp(-2j * np.pi * np.outer(np.arange(257), np.arange(400)) / 512)
    columns = []
    for index in range(count):
        window = (emphasised + [0.0] * 400)[160 * index : 160 * index + 400]
        window += [0.0] * (400 - len(window))
        power = np.abs(turns @ np.array(window)) ** 2 / 512
        logs = []
        for low, middle, high in zip(corners, corners[1:], corners[2:], strict=False):
            energy = sum(power[k] * (k - low) / (middle - low) for k in range(low, middle))
            energy += sum(power[k] * (high - k) / (high - middle) for k in range(middle, high))
            logs.append(math.log(energy or SMALLEST))
        column = np.asarray(dct(np.array(logs), type=2, norm="ortho"))[:13] * (
            1 + 11 * np.sin(np.pi * np.arange(13) / 22)
        )
        column[0] = math.log(sum(power) or SMALLEST)
        columns.append(column)
    return np.array(columns)


@pytest.mark.parametrize("num", [1, 399, 400, 401, 560, 561, 3_333])
def test_mfcc_equals_its_slow_derivation(num):
    samples = np.random.default_rng(num).integers(-20_000, 20_000, num)
    np.testing.assert_allclose(mfcc(samples / LOUD), slow_mfcc(samples.tolist()), atol=1e-4)


def test_mfcc_of_speech_like_sound_equals_its_slow_derivation():
    time = np.arange(2_000) / 16_000
    voice = sum(np.sin(2 * np.pi * 120 * k * time) / k for k in range(1, 30)) * (0.1 + time * 2) / 3
    samples = np.rint(voice * 8_000).astype(int)
    np.testing.assert_allclose(mfcc(samples / LOUD), slow_mfcc(samples.tolist()), atol=1e-4)


def test_mfcc_of_one_click_by_hand():
    """One sample of 1: after pre-emphasis 1, -0.97, so the spectrum is |1 - 0.97 e^(-iw)|^2 / 512."""
    sound = np.zeros(400)
    sound[7] = 1 / LOUD
    power = (1 + 0.97**2 - 2 * 0.97 * np.cos(2 * np.pi * np.arange(257) / 512)) / 512
    column = mfcc(sound)[0]
    assert column[0] == pytest.approx(math.log(power.sum()), abs=1e-5)
    flat = np.asarray(dct(np.log(mel_filters() @ power), norm="ortho"))[1] * (1 + 11 * math.sin(math.pi / 22))
    assert column[1] == pytest.approx(flat, abs=1e-4)


def test_mfcc_of_digital_silence_is_the_smallest_step():
    """Equal logarithms have one coefficient of the DCT, and that one is replaced by the energy."""
    columns = mfcc(np.zeros(1_000))
    np.testing.assert_allclose(columns[:, 0], math.log(2.0**-52), atol=1e-4)
    np.testing.assert_allclose(columns[:, 1:], 0, atol=1e-4)


def test_a_floor_makes_silence_and_less_than_hearing_alike():
    faint = np.random.default_rng(0).choice([-1, 0, 0, 0, 0, 0, 0, 0, 0, 1], 4_000) / LOUD / 4
    np.testing.assert_array_equal(mfcc(faint, floor=1.0), mfcc(np.zeros(4_000), floor=1.0))
    assert mfcc(np.zeros(4_000), floor=1.0).max() == pytest.approx(0, abs=1e-5)
    loud = np.random.default_rng(1).standard_normal(4_000) * 0.1
    np.testing.assert_array_equal(mfcc(loud, floor=1.0), mfcc(loud))


@given(st.floats(0.01, 0.9), st.integers(1, 5))
def test_gain_moves_only_the_energy(level, factor):
    """No normalisation: a gain of g adds 2 log g to coefficient 0 and, spread over no other, nothing
    elsewhere."""
    samples = np.rint(np.random.default_rng(3).uniform(-1, 1, 1_200) * level * 6_000)
    before, after = mfcc(samples / LOUD), mfcc(samples * factor / LOUD)
    np.testing.assert_allclose(after[:, 0] - before[:, 0], 2 * math.log(factor), atol=1e-4)
    np.testing.assert_allclose(after[:, 1:], before[:, 1:], atol=1e-3)


def test_sound_is_clipped_and_rounded_as_a_wav_file():
    over = np.array([2.0, -2.0, 1.0, 0.4 / LOUD] * 200)
    held = np.array([32_767, -32_768, 32_767, 0] * 200) / LOUD
    np.testing.assert_array_equal(mfcc(over), mfcc(held))


@pytest.mark.parametrize("shape", [(0,), (2, 16_000)])
def test_mfcc_wants_a_vector(shape):
    with pytest.raises(ValueError, match="mono sound"):
        mfcc(np.zeros(shape))


@pytest.mark.parametrize(
    ("num", "columns"), [(1, 1), (400, 1), (401, 2), (560, 2), (561, 3), (16_000, 99), (32_000, 199)]
)
def test_columns_by_hand(num, columns):
    assert num_columns(num) == columns
    assert mfcc(np.ones(num) * 0.1).shape == (columns, 13)


@pytest.mark.parametrize(
    ("frames", "samples", "windows"),
    [(50, 32_000, 45), (50, 31_999, 44), (40, 32_000, 35), (5, 3_200, 0), (3, 0, 0)],
)
def test_windows_are_counted_as_published(frames, samples, windows):
    assert num_windows(frames, samples) == windows
    item = SyncInput(np.zeros((frames, 8, 8, 3), np.uint8), np.full(samples, 0.1, np.float32))
    crops, heard = input_windows(item)
    assert len(heard) == windows and heard.shape[1:] == (1, 13, 20)
    assert len(crops) == (windows + 4 if windows else 0)


@given(st.integers(0, 120), st.integers(0, 80_000))
def test_there_is_sound_for_every_counted_window(frames, samples):
    assert len(windows_of_sound(np.full(samples, 0.1))) >= num_windows(frames, samples)


def test_sound_window_i_holds_columns_4i_to_4i_plus_19():
    columns = np.arange(50 * 13, dtype=np.float32).reshape(50, 13)
    windows = sound_windows(columns)
    assert windows.shape == (8, 1, 13, 20)
    for i in range(8):
        np.testing.assert_array_equal(windows[i, 0], columns[4 * i : 4 * i + 20].T)
    assert sound_windows(columns[:19]).shape == (0, 1, 13, 20)


def test_24_fps_is_shown_at_25_by_repeating_one_frame_a_second():
    shown = to_25_fps(np.arange(48), 24.0)
    assert len(shown) == 50 and shown[0] == 0 and shown[-1] == 47
    assert sorted(set(np.diff(shown))) == [0, 1] and (np.diff(shown) == 0).sum() == 2


@given(st.integers(1, 200), st.sampled_from([10.0, 23.976, 24.0, 25.0, 29.97, 30.0, 50.0, 60.0]))
def test_every_frame_is_the_nearest_in_time_and_the_length_stays(num, fps):
    shown = to_25_fps(np.arange(num), fps)
    assert abs(len(shown) / 25 - num / fps) <= 0.5 / 25 + 1e-9
    late = np.minimum(np.arange(len(shown)) / 25, (num - 1) / fps) - shown / fps
    assert np.abs(late).max(initial=0) <= 0.5 / fps + 1e-9


def test_25_fps_stays_and_50_loses_every_other():
    np.testing.assert_array_equal(to_25_fps(np.arange(9), 25.0), np.arange(9))
    np.testing.assert_array_equal(to_25_fps(np.arange(10), 50.0), [0, 2, 4, 6, 8])


@pytest.mark.parametrize("fps", [0.0, -24.0, math.nan, math.inf])
def test_a_frame_rate_that_is_none_is_unscorable(fps):
    with pytest.raises(Unscorable, match="frames per second"):
        to_25_fps(np.arange(9), fps)
