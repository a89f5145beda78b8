"""Dissolves and fades, which detectors of cuts miss: one picture turns into another evenly.

A mix of two pictures lies on the straight line between them, whatever they show; moving pictures hardly do.
Cuts between pictures of like brightness, which content detectors miss, are steps of their thumbnails.
"""

from __future__ import annotations

import numpy as np

SIDE = 8  # pixels of the thumbnails that are compared
HALVES = (5, 6, 8, 10, 12, 15, 18, 22, 26)  # pictures; half of a transition
MIN_CHANGE = 14.0  # root mean square of levels between both ends
LINEAR = 0.06  # of it; distance of the pictures between from the straight line
STABLE = 0.2  # of it; change of either end in the pictures outside
OUTSIDE = 4
STEP_AROUND, STEP_RATIO = 4, 4.0  # a cut changes that much more than each picture around it
ROWS = 4096  # pictures at once


def transitions(thumbnails: np.ndarray) -> list[int]:
    """Middle pictures of dissolves and fades in uint8 [T, SIDE, SIDE, 3], in order, each once."""
    count, reach = len(thumbnails), HALVES[-1] + OUTSIDE
    found: list[tuple[float, int, int]] = []
    for first in range(0, count, ROWS):
        begin, end = max(0, first - reach), min(count, first + ROWS + reach)
        rows = thumbnails[begin:end].reshape(end - begin, -1).astype(np.float32)
        for half in HALVES:
            fit = _straightness(rows, half)
            places = np.flatnonzero(fit < LINEAR)
            inside = (places + begin >= first) & (places + begin < first + ROWS)
            found += [(float(fit[place]), half, int(place + begin)) for place in places[inside]]
    kept: list[tuple[int, int]] = []
    for _, half, place in sorted(found, key=lambda one: (-one[1], one[0])):  # the longest that is straight
        if all(abs(place - other) > half + reach for other, reach in kept):
            kept.append((place, half))
    return sorted(place for place, _ in kept)


def _straightness(rows: np.ndarray, half: int) -> np.ndarray:
    """[T]: how far pictures around t are from the line between t - half and t + half, in shares of it;
    inf where the ends are alike, or change themselves."""
    count, answer = len(rows), np.full(len(rows), np.inf)
    room = half + OUTSIDE
    if count < 2 * room + 1:
        return answer
    at = np.arange(room, count - room)
    before, after = rows[at - half], rows[at + half]
    length = np.maximum(_rms(before - after), 1e-6)
    worst = np.zeros(len(at))
    for step in {-half // 2, -half // 4, 0, half // 4, half // 2}:
        share = (half + step) / (2 * half)
        worst = np.maximum(worst, _rms(rows[at + step] - (1 - share) * before - share * after) / length)
    moved = np.maximum(_rms(rows[at - room] - before), _rms(rows[at + room] - after)) / length
    answer[at] = np.where((length >= MIN_CHANGE) & (moved < STABLE), worst, np.inf)
    return answer


def steps(thumbnails: np.ndarray) -> list[int]:
    """First pictures after a change at once that is large beside those around it, of uint8 [T, S, S, 3]."""
    rows = thumbnails.reshape(len(thumbnails), -1)
    change = np.zeros(len(rows))
    for first in range(1, len(rows), ROWS):
        some = rows[first - 1 : first + ROWS].astype(np.float32)
        change[first : first + ROWS] = _rms(some[1:] - some[:-1])
    padded = np.pad(change, STEP_AROUND)
    around = np.lib.stride_tricks.sliding_window_view(padded, 2 * STEP_AROUND + 1).copy()
    around[:, STEP_AROUND] = 0
    return np.flatnonzero((change >= MIN_CHANGE) & (change > STEP_RATIO * around.max(axis=1))).tolist()


def _rms(differences: np.ndarray) -> np.ndarray:
    return np.sqrt(np.mean(np.square(differences), axis=1))


def far_from(places: list[int], cuts: list[int], pictures: int) -> list[int]:
    """`places` that are more than `pictures` from every cut."""
    return [place for place in places if all(abs(place - cut) > pictures for cut in cuts)]
