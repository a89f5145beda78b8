"""Edges of words where the sound says they are: an aligner gives the pauses around a word to the word."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from experiments.preparation.records import SPEECH_RATE_HZ, Stretch, Word

FRAME_S = 0.01
QUIET_DB = 26.0  # below the loudest speech
OVER_FLOOR_DB = 9.0  # and so much above the noise, or nothing is known of edges
MIN_RANGE_DB = 20.0  # between both
REACH_S = 0.22  # that an edge may move outwards
MIN_WORD_S = 0.06


def snapped(words: Sequence[Word], waveform: np.ndarray, speech: Sequence[Stretch]) -> list[Word]:
    """Words whose first and last 10 ms are loud: quiet ends are cut off, and an edge within a loud stretch
    moves to its end where that is near and no other word is in between. Unchanged in noise."""
    loud = loud_frames(waveform, speech)
    if loud is None:
        return list(words)
    found: list[Word] = []
    for place, word in enumerate(words):
        low = found[-1].end_s if found else 0.0
        high = words[place + 1].start_s if place + 1 < len(words) else len(loud) * FRAME_S
        start, end = (round(at / FRAME_S) for at in (word.start_s, word.end_s))
        start = _edge(loud, start, -1, max(start - round(REACH_S / FRAME_S), round(low / FRAME_S)), end)
        last = _edge(loud, end - 1, 1, min(end + round(REACH_S / FRAME_S), round(high / FRAME_S)) - 1, start)
        if (last + 1 - start) * FRAME_S < MIN_WORD_S:
            found.append(word)
            continue
        found.append(replace(word, start_s=start * FRAME_S, end_s=(last + 1) * FRAME_S))
    return found


def loud_frames(waveform: np.ndarray, speech: Sequence[Stretch]) -> np.ndarray | None:
    """bool [N / 160]: where [N] at 16 kHz is loud beside its speech and noise; None where these are near."""
    step = round(FRAME_S * SPEECH_RATE_HZ)
    frames = waveform[: len(waveform) // step * step].reshape(-1, step)
    decibels = 10 * np.log10(np.square(frames, dtype=np.float64).mean(axis=1) + 1e-9)
    inside = np.zeros(len(decibels), bool)
    for start_s, end_s in speech:
        inside[round(start_s / FRAME_S) : round(end_s / FRAME_S)] = True
    if not inside.any():
        return None
    top, floor = np.percentile(decibels[inside], 95), np.percentile(decibels, 5)
    if top - floor < MIN_RANGE_DB:
        return None
    return decibels > max(top - QUIET_DB, floor + OVER_FLOOR_DB)


def _edge(loud: np.ndarray, at: int, way: int, furthest: int, other: int) -> int:
    """The outermost loud frame of a word's side from frame `at`: outwards (`way`) at most to `furthest`, else
    inwards, not beyond `other`."""
    at = min(max(at, 0), len(loud) - 1)
    if loud[at]:
        place = at
        while place != furthest and 0 <= place + way < len(loud) and loud[place + way]:
            place += way
        return at if place == furthest else place  # loud up to the next word: as it was
    place = at
    while place != other and 0 <= place - way < len(loud) and not loud[place]:
        place -= way
    return place if loud[place] else at
