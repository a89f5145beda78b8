"""When pictures are shown and where samples go, from presentation times: pure functions.

FFmpeg's terms: a stream's times are in seconds, from any zero; NaN is a time that the file does not give.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

DEFAULT_FPS = 24.0
MAX_FPS = 960.0  # above it a rate is a time base taken for one (1000, 90000)
_WHOLE_FPS = (24.0, 25.0, 30.0, 48.0, 50.0, 60.0, 12.0, 15.0, 10.0, 20.0, 5.0, 100.0, 120.0)
STANDARD_FPS = (*_WHOLE_FPS, *(rate * 1000 / 1001 for rate in (24.0, 30.0, 48.0, 60.0, 120.0)))
GRID_SHARE = 0.3  # of a frame's interval: how far a constant rate's times may be from the even grid
ROUNDING_S = 0.0015  # matroska and flv count milliseconds
SAME_RATE = 1e-3  # relative; 23.976 frames a second are taken for 24 one by one
JITTER_S = 0.015  # shorter than the shortest usual packet of sound, 20 ms
LASTING = 5  # packets that have to agree on a hole; one alone may be mistimed
RESET_S = 1.0  # times that go back further belong to another clock


@dataclass(frozen=True, eq=False)
class Showing:
    """Which picture is shown at each tick of a constant rate."""

    index: np.ndarray  # int [T]
    fps: float
    repeated: int  # ticks for which the file has no picture of their own: the last one stays


@dataclass(frozen=True)
class Placed:
    """Samples `cut` to the end of chunk `chunk` go to `start` and later."""

    chunk: int
    cut: int
    start: int


@dataclass(frozen=True)
class SoundPlan:
    """Chunks in order without overlap; between them is silence."""

    placed: tuple[Placed, ...]
    num_samples: int
    silence: int  # samples of holes within the sound
    overlap: int  # samples that were there twice


def increasing(times: np.ndarray, interval: float) -> np.ndarray:
    """[N] -> strictly increasing [N]: missing times are filled, single wrong ones moved, clock resets undone.

    `interval` is the usual distance in seconds.
    """
    known = _filled(np.asarray(times, np.float64), interval)
    if len(known) < 2 or (np.diff(known) > 0).all():
        return known
    answer, shift = known.copy(), 0.0
    for i in range(1, len(known)):
        before, at = answer[i - 1], known[i] + shift
        if at <= before:
            following = known[i + 1] + shift if i + 1 < len(known) else math.inf
            if following > before:  # this one alone is wrong
                at = before + min(interval, (following - before) / 2)
            else:
                at = before + interval
                shift = at - known[i]
        answer[i] = at
    return answer


def nominal_rate(times: np.ndarray, declared: Sequence[float | None] = ()) -> float:
    """Frames a second of pictures at `times` [N] (any order, NaN allowed).

    The even rate of a constant one; else the mean rate where it is a usual one; else that of the most
    frequent interval. The header's rates `declared` and usual ones are preferred where the times fit them;
    without times the first sane declared one.
    """
    sane = [rate for rate in declared if rate and 0 < rate <= MAX_FPS]
    times = np.unique(np.asarray(times, np.float64))
    times = times[np.isfinite(times)]
    if len(times) < 2:
        return sane[0] if sane else DEFAULT_FPS
    measured = (len(times) - 1) / (times[-1] - times[0])
    if measured <= MAX_FPS:
        rates = [*sane, *STANDARD_FPS, measured]
        errors = [_grid_error(times, rate) for rate in rates]
        fitting = [
            rate
            for rate, error in zip(rates, errors, strict=True)
            if error <= min(GRID_SHARE / rate, min(errors) + ROUNDING_S)
        ]
        if fitting:
            return fitting[0]
    for mean in (measured, *declared[:1]):
        usual = nearest_rate(mean or 0.0, STANDARD_FPS)
        if mean and abs(usual - mean) <= SAME_RATE * mean:
            return usual
    return _most_frequent(np.diff(times), [*sane, *STANDARD_FPS])


def is_constant(times: np.ndarray, rate: float) -> bool:
    """Increasing times [N] lie on an even grid of this rate, but for jitter."""
    return _grid_error(times, rate) <= GRID_SHARE / rate


def num_ticks(times: np.ndarray, fps: float, last_s: float) -> int:
    """Ticks from the first time to `last_s` seconds after the last one."""
    return max(1, round((times[-1] - times[0] + last_s) * fps))


def shown_at(times: np.ndarray, at_s: np.ndarray, fps: float) -> np.ndarray:
    """int [T]: which of the pictures with increasing `times` [N] is shown at each tick `at_s` [T] of `fps`.

    A picture is shown from its time, rounded to the nearest tick, until the next one's, as FFmpeg's fps
    filter does; where pictures are denser than ticks, the nearest in time.
    """
    from_s = times[1:] - np.minimum(np.diff(times), 1.0 / fps) / 2
    return np.searchsorted(from_s, at_s - 1e-6, side="right")


def show(times: np.ndarray, fps: float, nominal: float, last_s: float) -> Showing:
    """Pictures with increasing `times` [N] at a constant `fps` from the first one's time on; the last one is
    shown for `last_s` seconds.

    A constant rate within SAME_RATE of `fps` keeps its pictures one by one, others are shown by `shown_at`.
    """
    held = last_s > 1.5 / nominal
    if not held and _one_by_one(times, fps, nominal):
        return Showing(np.arange(len(times)), fps, 0)
    ticks = np.arange(num_ticks(times, fps, last_s)) / fps
    index = shown_at(times - times[0], ticks, fps)
    return Showing(index, fps, _repeated(index, times, fps, nominal, last_s))


def show_stretch(
    times: np.ndarray, fps: float, nominal: float, last_s: float, start_s: float, count: int
) -> Showing:
    """As `show`, of the `count` ticks from `start_s` on, which is on the clock of `times`.

    A rate that is constant there and within SAME_RATE of `fps` keeps its pictures one by one from the picture
    that is shown at `start_s`. A picture whose time is at the end of the stretch or later is never shown.
    """
    index = shown_at(times, start_s + np.arange(count) / fps, fps)
    first = int(index[0])
    if _one_by_one(times[first : first + count], fps, nominal):
        index = first + np.arange(count)
    within = int(np.searchsorted(times, start_s + count / fps - 1e-6)) - 1
    index = np.minimum(index, max(first, within))
    return Showing(index, fps, _repeated(index, times, fps, nominal, last_s))


def _one_by_one(times: np.ndarray, fps: float, nominal: float) -> bool:
    return abs(nominal - fps) <= SAME_RATE * fps and is_constant(times, nominal)


def _repeated(index: np.ndarray, times: np.ndarray, fps: float, nominal: float, last_s: float) -> int:
    """Ticks beyond a picture's usual ones, of pictures that stay longer than usual."""
    shown = np.bincount(index, minlength=len(times))
    usual = max(1, math.ceil(fps / nominal - 1e-6))
    sparse = np.append(np.diff(times), last_s) > 1.5 / nominal
    return int(np.maximum(0, shown[sparse] - usual).sum())


def plan_sounds(starts_s: Sequence[float], lengths: Sequence[int], rate: int) -> SoundPlan:
    """Chunks of sound, `lengths` in samples, by their times from the clip's zero in seconds.

    Chunks follow each other while their times agree within JITTER_S. A hole on which LASTING chunks agree
    stays as silence, samples that are there twice are taken once, what is before zero is cut off. Times that
    go back by more than RESET_S go on from where they were.
    """
    counts = np.asarray(lengths, np.int64)
    following = np.concatenate([[0], np.cumsum(counts)[:-1]])
    offsets = _filled_forward(np.asarray(starts_s, np.float64) * rate - following)
    tolerance, shift = JITTER_S * rate, round(offsets[0])
    placed, cursor, silence, overlap = [], 0, 0, 0
    for chunk, count in enumerate(counts):
        step = _lasting_step(offsets[chunk : chunk + LASTING] - shift, tolerance)
        if step < -RESET_S * rate:
            offsets[chunk:] -= step
            step = 0
        shift += step
        start = int(following[chunk]) + shift
        cut = max(0, cursor - start)
        if placed:
            silence += max(0, start - cursor)
            overlap += min(cut, int(count))
        if cut < count:
            placed.append(Placed(chunk, cut, start + cut))
            cursor = start + int(count)
    return SoundPlan(tuple(placed), cursor, silence, overlap)


def _lasting_step(deviations: np.ndarray, tolerance: float) -> int:
    """Samples by which these chunks are away from where they would follow; 0 where they do not agree."""
    if abs(deviations[0]) <= tolerance:
        return 0
    if deviations.min() <= tolerance and deviations.max() >= -tolerance:
        return 0
    alike = deviations[np.cumprod(np.abs(deviations - deviations[0]) <= tolerance).astype(bool)]
    return round(float(np.median(alike)))


def _filled_forward(values: np.ndarray) -> np.ndarray:
    """NaN takes the value before it; at the start, 0 or the first known one."""
    known = np.flatnonzero(np.isfinite(values))
    if not len(known):
        return np.zeros_like(values)
    before = np.searchsorted(known, np.arange(len(values)), side="right") - 1
    return values[known[np.maximum(before, 0)]]


def _filled(times: np.ndarray, interval: float) -> np.ndarray:
    """NaN between known times is interpolated, outside of them it is `interval` away from its neighbour."""
    places, known = np.arange(len(times)), np.isfinite(times)
    if known.all():
        return times
    if not known.any():
        return places * interval
    answer = np.interp(places, places[known], times[known])
    first, last = places[known][[0, -1]]
    answer[:first] = times[first] - (first - places[:first]) * interval
    answer[last + 1 :] = times[last] + (places[last + 1 :] - last) * interval
    return answer


def _grid_error(times: np.ndarray, rate: float) -> float:
    """Seconds by which times [N] are away from the nearest even grid of this rate, at most."""
    off = times - np.arange(len(times)) / rate
    return float(off.max() - off.min()) / 2


def nearest_rate(rate: float, rates: Sequence[float]) -> float:
    return min(rates, key=lambda one: abs(one - rate))


def _most_frequent(gaps: np.ndarray, preferred: Sequence[float]) -> float:
    gaps = np.sort(gaps[gaps >= 1.0 / MAX_FPS])
    if not len(gaps):
        return DEFAULT_FPS
    widths = np.maximum(0.05 * gaps, ROUNDING_S)
    first = np.searchsorted(gaps, gaps - widths, side="left")
    past = np.searchsorted(gaps, gaps + widths, side="right")
    densest = int(np.argmax(past - first))
    rate = 1.0 / float(gaps[first[densest] : past[densest]].mean())
    nearest = nearest_rate(rate, preferred)
    return nearest if abs(nearest - rate) <= 0.01 * rate else rate
