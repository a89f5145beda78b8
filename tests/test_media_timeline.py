"""When pictures are shown and where sound goes: closed forms and properties of pure functions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.media.timeline import STANDARD_FPS, increasing, nominal_rate, plan_sounds, show, show_stretch

RATES = st.sampled_from([12.0, 24000 / 1001, 24.0, 25.0, 30000 / 1001, 30.0, 60.0])


@settings(max_examples=50, deadline=None)
@given(
    rate=RATES, count=st.integers(2, 3000), start=st.floats(-2, 5), unit=st.sampled_from([1e-3, 1 / 90_000])
)
def test_a_constant_rate_comes_out_frame_for_frame(
    rate: float, count: int, start: float, unit: float
) -> None:
    times = np.round((start + np.arange(count) / rate) / unit) * unit
    found = nominal_rate(times, [rate, None])
    assert found == rate
    showing = show(increasing(times, 1 / found), found, found, 1 / found)
    assert showing.index.tolist() == list(range(count)) and showing.repeated == 0


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 999), rate=RATES)
def test_jitter_changes_nothing(seed: int, rate: float) -> None:
    rng = np.random.default_rng(seed)
    times = (np.arange(200) + rng.uniform(-0.2, 0.2, 200)) / rate
    found = nominal_rate(times, [rate])
    showing = show(times, rate, found, 1 / rate)
    assert abs(found - rate) < 0.01 * rate
    assert np.abs(times[showing.index] - times[0] - np.arange(len(showing.index)) / rate).max() < 0.6 / rate


@settings(max_examples=100, deadline=None)
@given(gaps=st.lists(st.integers(1, 40), min_size=1, max_size=60), fps=RATES)
def test_every_tick_shows_the_picture_of_its_time(gaps: list[int], fps: float) -> None:
    """The one that began last, within half a tick; never an earlier one again."""
    times = np.concatenate([[0.0], np.cumsum(np.array(gaps) / 100.0)])
    showing = show(times, fps, 50.0, 0.02)
    ticks = np.arange(len(showing.index)) / fps
    begun = np.searchsorted(times, ticks + 0.5 / fps + 1e-9, side="right") - 1
    surely = np.searchsorted(times, ticks - 0.5 / fps - 1e-9, side="right") - 1
    assert (showing.index <= begun).all() and (showing.index >= surely).all()
    assert (np.diff(showing.index) >= 0).all()
    assert abs(len(showing.index) - (times[-1] + 0.02) * fps) <= 0.5 or len(showing.index) == 1


@settings(max_examples=100, deadline=None)
@given(gaps=st.lists(st.integers(1, 40), min_size=1, max_size=60), fps=RATES)
def test_the_whole_file_as_one_stretch_is_the_whole_file(gaps: list[int], fps: float) -> None:
    times = 3.0 + np.concatenate([[0.0], np.cumsum(np.array(gaps) / 100.0)])
    whole = show(times, fps, 50.0, 0.02)
    stretch = show_stretch(times, fps, 50.0, 0.02, float(times[0]), len(whole.index))
    # what begins at the end of a stretch is not in it; the last picture of a whole file may begin there
    late = times[whole.index] > times[0] + len(whole.index) / fps - 1e-6
    assert stretch.index[~late].tolist() == whole.index[~late].tolist()


@settings(max_examples=100, deadline=None)
@given(
    gaps=st.lists(st.integers(1, 60), min_size=1, max_size=60),
    fps=RATES,
    at=st.floats(0, 1),
    count=st.integers(1, 60),
)
def test_a_stretch_shows_no_picture_before_its_time_or_of_what_comes_after(
    gaps: list[int], fps: float, at: float, count: int
) -> None:
    times = np.concatenate([[0.0], np.cumsum(np.array(gaps) / 100.0)])
    start = float(at * times[-1])
    index = show_stretch(times, fps, 50.0, 0.02, start, count).index
    ticks = start + np.arange(count) / fps
    assert len(index) == count and (np.diff(index) >= 0).all()
    assert (times[index] <= ticks + 0.5 / fps + 1e-9).all()
    assert (times[index] < start + count / fps).all()
    surely = np.searchsorted(times, ticks - 0.5 / fps - 1e-9, side="right") - 1
    assert (index >= np.maximum(surely, 0)).all()


@settings(max_examples=100, deadline=None)
@given(start=st.floats(0, 3), rate=st.sampled_from([24.0, 24000 / 1001]), unit=st.sampled_from([1e-3, 1e-4]))
def test_a_stretch_of_a_constant_rate_keeps_its_pictures_one_by_one(
    start: float, rate: float, unit: float
) -> None:
    """Wherever it starts, though a container counts milliseconds: no picture twice and none left out."""
    times = np.round(np.arange(200) / rate / unit) * unit
    showing = show_stretch(times, 24.0, rate, 1 / rate, start, 97)
    assert (np.diff(showing.index) == 1).all() and showing.repeated == 0
    assert abs(times[showing.index[0]] - start) <= 0.5 / rate + unit


def test_a_hole_within_a_stretch_holds_the_last_picture_and_is_said() -> None:
    times = np.delete(np.arange(96) / 24, range(34, 44))
    showing = show_stretch(times, 24.0, 24.0, 1 / 24, 1.0, 25)
    assert showing.index.tolist() == [*range(24, 34), *[33] * 10, *range(34, 39)] and showing.repeated == 10
    assert show_stretch(times, 24.0, 24.0, 1 / 24, 0.0, 25).repeated == 0
    slides = np.arange(10) / 2 + 0.23 * (np.arange(10) % 2)
    showing = show_stretch(slides, 24.0, 2.0, 0.5, 1.1, 25)
    assert (slides[showing.index] <= 1.1 + np.arange(25) / 24 + 0.5 / 24).all()


def test_a_hole_holds_the_last_picture_and_is_said() -> None:
    times = np.delete(np.arange(48) / 24, range(10, 20))
    showing = show(times, 24.0, nominal_rate(times, [24.0]), 1 / 24)
    assert showing.index[:22].tolist() == [*range(10), *[9] * 10, 10, 11] and showing.repeated == 10


def test_a_mean_rate_that_is_right_does_not_hide_uneven_times() -> None:
    times = np.concatenate([np.arange(36) / 36, 1 + np.arange(12) / 12])
    assert nominal_rate(times, [24.0, 36.0]) == 24.0
    showing = show(times, 24.0, 24.0, 1 / 12)
    assert showing.index[24:28].tolist() == [36, 36, 37, 37]


@pytest.mark.parametrize("declared", [90_000.0, 1000.0, None])
def test_a_time_base_is_never_a_rate(declared: float | None) -> None:
    uneven = np.cumsum([0.04, 0.04, 0.08, 0.04, 0.2, 0.04, 0.04, 0.0001, 0.04])
    assert nominal_rate(uneven, [declared]) == 25.0
    assert nominal_rate(np.array([0.0]), [declared]) in STANDARD_FPS


def test_times_that_are_missing_doubled_or_go_back() -> None:
    nan = np.nan
    assert np.allclose(increasing(np.array([nan, 1.0, nan, 3.0, nan]), 1.0), range(5))
    assert np.allclose(increasing(np.array([nan, nan, nan]), 0.5), [0, 0.5, 1])
    assert np.allclose(increasing(np.array([0.0, 1.0, 1.0, 3.0]), 1.0), [0, 1, 2, 3])
    assert np.allclose(increasing(np.array([0.0, 1.0, 0.5, 3.0]), 1.0), [0, 1, 2, 3])
    assert np.allclose(increasing(np.array([5.0, 6.0, 0.0, 1.0, 2.0]), 1.0), [5, 6, 7, 8, 9])


@settings(max_examples=50, deadline=None)
@given(
    lengths=st.lists(st.integers(160, 2000), min_size=1, max_size=50),
    jitter=st.sampled_from([0.0, 0.0005, 0.004]),
    start=st.floats(-0.5, 0.5),
    seed=st.integers(0, 99),
)
def test_sound_without_holes_is_one_piece(lengths: list[int], jitter: float, start: float, seed: int) -> None:
    noise = np.random.default_rng(seed).uniform(-jitter, jitter, len(lengths))
    starts = start + np.concatenate([[0], np.cumsum(lengths)[:-1]]) / 16_000 + noise
    plan = plan_sounds(starts.tolist(), lengths, 16_000)
    assert plan.silence == plan.overlap == 0
    first = round(starts[0] * 16_000)
    assert plan.num_samples == max(0, first + sum(lengths))
    assert not plan.placed or plan.placed[0].start == max(0, first) or first < 0


def test_holes_stay_overlaps_go_and_clocks_that_start_anew_go_on() -> None:
    starts, lengths = np.arange(20) * 0.064, [1024] * 20
    hole = np.where(np.arange(20) < 7, starts, starts + 0.2)
    plan = plan_sounds(hole.tolist(), lengths, 16_000)
    assert plan.silence == 3200 and plan.placed[7].start == 7 * 1024 + 3200
    overlapping = np.where(np.arange(20) < 7, starts, starts - 0.05)
    plan = plan_sounds(overlapping.tolist(), lengths, 16_000)
    assert plan.overlap == 800 and plan.num_samples == 20 * 1024 - 800 and plan.silence == 0
    reset = np.where(np.arange(20) < 17, starts + 5.0, starts - 17 * 0.064)
    plan = plan_sounds(reset.tolist(), lengths, 16_000)
    assert plan.silence == plan.overlap == 0 and plan.num_samples == 80_000 + 20 * 1024
    alone = starts.copy()
    alone[7] += 0.03
    assert plan_sounds(alone.tolist(), lengths, 16_000).silence == 0
    unknown = np.where(np.arange(20) % 3 == 1, np.nan, hole)
    assert plan_sounds(unknown.tolist(), lengths, 16_000).num_samples == 20 * 1024 + 3200
