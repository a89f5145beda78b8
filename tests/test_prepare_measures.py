"""Measures of `nava prepare` with closed forms: lips and sound, gradual cuts, edges of words, texts."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from overlay_cases import FPS, with_text
from prepare_world import scene

from experiments.preparation.config import PrepareConfig
from experiments.preparation.duplicates import sound_print
from experiments.preparation.edges import snapped
from experiments.preparation.faces import mouth_boxes
from experiments.preparation.gradual import steps, transitions
from experiments.preparation.lips import FaceWindows, lip_evidence, lower_bound
from experiments.preparation.moments import picture_track, shifted_duplicates
from experiments.preparation.overlays import text_share
from experiments.preparation.records import Word
from rewards.sync.faces import Detection

CONFIG = PrepareConfig()


def walk(count: int, seed: int, dim: int = 16) -> np.ndarray:
    """Embeddings [count, dim] that change over some 5 windows, as those of speech do."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((count + 8, dim))
    return np.stack([noise[i : i + 8].mean(axis=0) for i in range(count)])


def test_the_lower_bound_is_fishers():
    for correlation, count in ((0.6, 40), (0.3, 12), (0.9, 100)):
        z = 0.5 * math.log((1 + correlation) / (1 - correlation)) - 1.645 / math.sqrt(count - 3)
        assert lower_bound(correlation, count) == pytest.approx(math.tanh(z))
    assert lower_bound(0.99, 3) == -1.0 and lower_bound(1.0, 50) < 1.0


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(-12, 12))
def test_lips_that_follow_the_sound_are_told_from_others(seed, lag):
    count = 220
    sound = walk(count + 40, seed)
    lips = sound[20 + lag : 20 + lag + count] + 0.03 * walk(count, seed + 1)
    own = lip_evidence([FaceWindows(0, lips, sound[20 : 20 + count])], [(0.0, count / 25)], 1)
    assert own.lag == lag
    if lag == 0:
        assert own.correlation > 0.6 and own.low > 0.4 and own.weakest == pytest.approx(own.correlation)
    other = lip_evidence([FaceWindows(0, walk(count, seed + 2), sound[:count])], [(0.0, count / 25)], 1)
    assert other.low < CONFIG.min_sync_correlation


def test_a_longer_clip_is_surer_and_a_still_face_says_nothing():
    sound = walk(400, 3)
    bounds = [
        lip_evidence([FaceWindows(0, sound[:n] + 0.1 * walk(n, 4), sound[:n])], [(0.0, n / 25)], 1).low
        for n in (20, 60, 120, 400)
    ]
    assert bounds == sorted(bounds) and bounds[0] < CONFIG.min_sync_correlation < bounds[-1]
    still = lip_evidence([FaceWindows(0, np.ones((200, 16)), sound[:200])], [(0.0, 8.0)], 1)
    assert abs(still.correlation) < 0.05
    with pytest.raises(ValueError, match="at least one face"):
        lip_evidence([], [(0.0, 1.0)], 1)


def test_each_span_goes_to_the_face_that_says_it_and_one_off_screen_is_found():
    count, sound = 250, walk(250, 5)
    first, second = np.tile(sound[:1], (count, 1)), np.tile(sound[:1], (count, 1))
    first[:120], second[130:] = sound[:120], sound[130:]
    spans = [(0.0, 4.8), (5.2, 10.0)]
    both = lip_evidence([FaceWindows(0, first, sound), FaceWindows(0, second, sound)], spans, 1)
    assert both.low > 0.5 and both.weakest > 0.5
    alone = lip_evidence([FaceWindows(0, first, sound)], spans, 1)
    assert alone.weakest < CONFIG.min_sync_of_span < both.weakest


def test_mouths_of_two_faces_and_of_a_face_seen_once():
    def face(x: float, y: float = 10.0) -> Detection:
        return Detection((x, y, x + 40.0, y + 40.0), 5.0)

    frames = [[face(5 + i % 2), face(100)] if i % 2 else [face(5)] for i in range(10)] + [[face(60, 90)]]
    boxes = mouth_boxes(frames, (140, 160), 5.0)
    assert len(boxes) == 2 and boxes[0][0] < 40 < boxes[1][0]
    assert all(0 <= x0 < x1 <= 160 and 0 <= y0 < y1 <= 140 for x0, y0, x1, y1 in boxes)
    assert mouth_boxes([[], []], (140, 160), 5.0) == []


def thumbnails(seed: int, count: int) -> np.ndarray:
    return np.repeat(np.random.default_rng(seed).integers(0, 255, (1, 8, 8, 3)), count, axis=0)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([12, 16, 20, 24, 30, 48]))
def test_a_dissolve_is_found_in_its_middle(seed, length):
    mix = np.linspace(0, 1, length)[:, None, None, None]
    before, after = thumbnails(seed, length), thumbnails(seed + 1, length)
    turning = before * (1 - mix) + after * mix
    whole = np.concatenate([thumbnails(seed, 60), turning, thumbnails(seed + 1, 60)]).round().astype(np.uint8)
    found = transitions(whole)
    assert len(found) == 1 and abs(found[0] - (60 + length / 2)) <= length / 2
    assert steps(whole) == []


def test_cuts_are_steps_and_no_dissolves_and_motion_is_neither():
    hard = np.concatenate([thumbnails(1, 50), thumbnails(2, 50)]).astype(np.uint8)
    assert steps(hard) == [50] and transitions(hard) == []
    rng = np.random.default_rng(0)
    moving = rng.integers(0, 255, (150, 8, 8, 3)).astype(np.uint8)
    assert transitions(moving) == [] and steps(moving) == []
    assert transitions(hard[:5]) == [] and steps(hard[:1]) == []


def tones(parts: list[tuple[float, float]], seconds: float, noise: float) -> np.ndarray:
    time = np.arange(round(seconds * 16_000)) / 16_000
    sound = noise * np.random.default_rng(0).standard_normal(len(time))
    for start, end in parts:
        sound += 0.3 * np.sin(2 * np.pi * 220 * time) * ((time >= start) & (time < end))
    return sound.astype(np.float32)


def test_edges_of_words_move_to_where_the_sound_is():
    sound, speech = tones([(0.5, 0.8), (1.0, 1.4)], 2.0, 1e-4), [(0.4, 1.5)]
    words = [Word("one", 0.6, 0.9), Word("two", 0.86, 1.3)]
    found = snapped(words, sound, speech)
    edges = [(round(word.start_s, 2), round(word.end_s, 2)) for word in found]
    assert edges == [(0.5, 0.8), (1.0, 1.4)] and [word.text for word in found] == ["one", "two"]
    joined = [Word("a", 1.0, 1.2), Word("b", 1.2, 1.4)]
    assert [(round(one.start_s, 2), round(one.end_s, 2)) for one in snapped(joined, sound, speech)] == [
        (1.0, 1.2),
        (1.2, 1.4),
    ]


def test_edges_stay_in_noise_and_without_speech():
    words = [Word("one", 0.6, 0.9)]
    assert snapped(words, tones([(0.5, 0.8)], 2.0, 0.2), [(0.4, 1.0)]) == words
    assert snapped(words, tones([(0.5, 0.8)], 2.0, 1e-4), []) == words


@pytest.mark.parametrize("number", [0, 1, 3, 4])
def test_a_line_of_text_is_told_from_pictures_without(number):
    frames = scene(1.5, 80 + number, FPS, (180, 320))
    assert text_share(frames, FPS) <= CONFIG.max_text_share
    assert text_share(with_text(frames, number), FPS) > CONFIG.max_text_share


def talk_print(seed: int, seconds: float = 12.0) -> np.ndarray:
    """Sound [N] at 16 kHz whose loudness in bands changes like speech."""
    rng = np.random.default_rng(seed)
    count, sound = round(seconds * 16_000), np.zeros(round(seconds * 16_000))
    for hertz in (200, 700, 1800, 4500):
        level = np.interp(
            np.arange(count), np.arange(0, count, 2000), rng.uniform(0, 1, len(range(0, count, 2000)))
        )
        sound += level**2 * np.sin(2 * np.pi * hertz * np.arange(count) / 16_000)
    return (0.1 * sound).astype(np.float32)


@pytest.mark.parametrize("shift_s", [0.0, 1.3, 3.37])
def test_clips_of_the_same_moments_are_found_at_any_shift(shift_s):
    film, sound = scene(12.0, 7, 24.0, (64, 96)), talk_print(1)
    first, last = round(shift_s * 24), round((shift_s + 8) * 24)
    clips = [
        (film[: 8 * 24], sound[: 8 * 16_000]),
        (scene(8.0, 8, 24.0, (64, 96)), talk_print(2, 8.0)),
        (film[first:last, :, ::-1], sound[round(shift_s * 16_000) : round((shift_s + 8) * 16_000)] * 0.6),
        (film[first:last], talk_print(3, 8.0)),  # the same pictures with another sound
        (scene(8.0, 9, 24.0, (64, 96)), sound[: 8 * 16_000]),  # the same sound with other pictures
    ]
    prints = [sound_print(one) for _, one in clips]
    tracks = [picture_track(frames, 24.0) for frames, _ in clips]
    found = shifted_duplicates(prints, tracks, 0.15, 0.9)
    assert {place: other for place, (other, _) in found.items()} == {2: 0}
