"""Parts of `nava prepare` with closed forms: cuts, scenes, duplicates, speakers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prepare_world import scene

from experiments.preparation.config import PrepareConfig
from experiments.preparation.cutting import Leftover, Lengths, Piece, merged, plan
from experiments.preparation.duplicates import alike, near_duplicates, picture_bits, sound_print
from experiments.preparation.scenes import detected, real_cuts
from experiments.preparation.sources import find_sources
from experiments.preparation.speakers import SpanKey, assign_speakers, choose_references
from rewards.sync.shots import colour_histograms

CONFIG = PrepareConfig()


@st.composite
def scenes_with_words(draw):
    words, at = [], draw(st.floats(0, 1))
    for _ in range(draw(st.integers(0, 40))):
        end = at + draw(st.floats(0.05, 2.5))
        words.append((at, end))
        at = end + draw(st.floats(0.0, 1.5))
    start = draw(st.floats(0, 2))
    return (start, start + draw(st.floats(0.1, 60))), words


@settings(max_examples=200, deadline=None)
@given(scenes_with_words(), st.sampled_from([(), (25, 49, 97)]))
def test_clips_have_allowed_lengths_and_no_end_inside_a_word(case, only):
    (start, end), words = case
    lengths = Lengths(24.0, 1.0, 6.0, only)
    parts = plan((start, end), words, lengths, 0.12)
    at = start
    for part in parts:
        first, last = (
            (part.start_s, part.start_s + part.num_frames / 24.0)
            if isinstance(part, Piece)
            else (part.start_s, part.end_s)
        )
        assert first >= at - 1e-6 and last <= end + 1e-5
        at = last
        if isinstance(part, Piece):
            assert part.num_frames in lengths.allowed() and (part.num_frames - 1) % 4 == 0
            for word_start, word_end in words:
                for edge in (first, last):
                    assert not word_start + 1e-5 < edge < word_end - 1e-5
    kept = [
        (part.start_s, part.start_s + part.num_frames / 24.0) for part in parts if isinstance(part, Piece)
    ]
    left = [(part.start_s, part.end_s) for part in parts if isinstance(part, Leftover)]
    covered = sum(last - first for first, last in kept + left)
    skipped = sum(b - a for a, b in merged(words, 0.12))  # words that a later clip began behind
    assert covered <= end - start + 1e-4 and covered >= end - start - skipped - 1e-4


def test_silence_gives_the_longest_clips():
    parts = plan((0.0, 20.0), [], Lengths(24.0, 1.0, 5.0), 0.12)
    counts = [part.num_frames for part in parts if isinstance(part, Piece)]
    assert counts == [117, 117, 117, 117] and all((count - 1) % 4 == 0 for count in counts)


def f1(found: list[int], truth: list[int], within: int = 2) -> float:
    hits = sum(any(abs(one - other) <= within for other in found) for one in truth)
    right = sum(any(abs(one - other) <= within for other in truth) for one in found)
    precision, recall = right / max(1, len(found)), hits / max(1, len(truth))
    return 2 * precision * recall / max(1e-9, precision + recall)


def film(seed: int) -> tuple[np.ndarray, list[int]]:
    """Hard cuts, flashes of 1 to 3 pictures, one dissolve of a second; the truth is where a scene begins."""
    rng = np.random.default_rng(seed)
    parts, truth, at = [], [], 0
    for number in range(5):
        part = scene(rng.uniform(1.6, 3.0), 100 * seed + number)
        for _ in range(number % 2):
            first = int(rng.integers(12, len(part) - 12))
            part[first : first + int(rng.integers(1, 4))] = 255
        if number:
            truth.append(at)
        parts.append(part)
        at += len(part)
    return np.concatenate(parts), truth


def test_scene_boundaries_of_films_with_flashes():
    values = []
    for seed in range(8):
        frames, truth = film(seed)
        detector = detected(CONFIG)
        for frame in frames:
            detector.see(frame)
        values.append(f1([cut.first for cut in detector.cuts()], truth))
    assert np.mean(values) >= 0.95, values


def test_a_dissolve_is_trimmed_and_a_flash_is_no_cut():
    # two pictures a second: a dissolve of pictures that move fast is not found (docs/preparing.md)
    first, second = (scene(2, seed)[np.arange(48) // 12] for seed in (1, 2))
    mix = np.linspace(0, 1, 24)[:, None, None, None]
    middle = (first[-24:] * (1 - mix) + second[:24] * mix).astype(np.uint8)
    frames = np.concatenate([first[:-24], middle, second[24:]])
    detector = detected(CONFIG)
    for frame in frames:
        detector.see(frame)
    cuts = detector.cuts()
    assert len(cuts) == 1 and cuts[0].gradual and 24 <= cuts[0].first <= 50
    flash = scene(2, 3)
    flash[20:22] = 255
    histograms = colour_histograms(flash)
    assert real_cuts([20, 22], histograms, CONFIG.flash) == []


def test_near_duplicates_are_found_and_others_are_not():
    clips = [scene(2, seed) for seed in range(4)]
    changed = [clips[0][:, 2:-2, 3:-3], clips[1][:, :, ::-1], clips[2] // 2 + 10]
    bits = [picture_bits(frames) for frames in (*clips, *changed)]
    rng = np.random.default_rng(0)
    sounds = [np.repeat(rng.uniform(0, 1, 40), 800) * rng.standard_normal(32_000) * 0.1 for _ in range(4)]
    prints = [sound_print(sound) for sound in (*sounds, sounds[0] * 0.5, sounds[1], sounds[2])]
    found = near_duplicates(bits, prints, 0.2, 0.9)
    assert {place: other for place, (other, _) in found.items()} == {4: 0, 5: 1, 6: 2}
    other_sound = [*prints[:4], prints[1], prints[1], prints[3]]
    assert 4 not in near_duplicates(bits, other_sound, 0.2, 0.9)  # the same picture, other words
    assert alike(prints[0], prints[0]) == pytest.approx(1.0)


def spans(*voices: tuple[int, float]) -> list[dict]:
    rows = []
    for number, seconds in voices:
        voice = np.eye(4)[number] + 0.05
        rows.append({"start_s": 0.0, "end_s": seconds, "voice": (voice / np.linalg.norm(voice)).tolist()})
    return rows


def test_speakers_across_sources_and_references_of_other_clips():
    given = {"speaker": "", "reference": ""}
    clips = [
        {"source": "a", "given": given, "spans": spans((0, 2.0), (1, 1.5))},
        {"source": "a", "given": given, "spans": spans((1, 1.2), (0, 0.4))},
        {"source": "b", "given": given, "spans": spans((0, 3.0))},
        {"source": "c", "given": {"speaker": "Ann", "reference": ""}, "spans": spans((2, 2.0))},
    ]
    speakers = assign_speakers(clips, 0.75, 0.8)
    assert [speakers[SpanKey(0, 0)], speakers[SpanKey(1, 1)], speakers[SpanKey(2, 0)]] == ["speaker000"] * 3
    assert speakers[SpanKey(0, 1)] == speakers[SpanKey(1, 0)] == "speaker001"
    assert speakers[SpanKey(3, 0)] == "Ann"
    chosen = choose_references(clips, speakers, 1.0)
    assert chosen["speaker000"] == [[SpanKey(2, 0)], [SpanKey(0, 0)]]
    assert chosen["Ann"] == [[SpanKey(3, 0)]]
    assert choose_references(clips, speakers, 2.2)["speaker000"] == [
        [SpanKey(2, 0)],
        [SpanKey(0, 0), SpanKey(1, 1)],
    ]


def test_one_speaker_of_all_needs_no_voice_and_leaves_given_names():
    given = {"speaker": "", "reference": ""}
    mute = [{"start_s": 0.0, "end_s": 0.2, "voice": None}]
    clips = [
        {"source": "a", "given": given, "spans": spans((0, 2.0), (1, 0.4)) + mute},
        {"source": "b", "given": {"speaker": "Ann", "reference": ""}, "spans": spans((2, 2.0))},
    ]
    speakers = assign_speakers(clips, 0.75, 0.8, "nina")
    assert [speakers[SpanKey(0, number)] for number in range(3)] == ["nina"] * 3
    assert speakers[SpanKey(1, 0)] == "Ann"


def test_sources_of_folders_lists_and_patterns(tmp_path):
    for name in ("b.mp4", "a.MKV", "sub/c.webm", "note.pdf"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "loop").symlink_to(tmp_path)
    sources, _, left_out = find_sources(str(tmp_path), CONFIG)
    assert [source.name for source in sources] == ["a.MKV", "b.mp4", "sub/c.webm"]
    assert left_out == {".pdf": 1, "link to a folder": 1}
    sources, _, _ = find_sources(str(tmp_path / "*.mp4"), CONFIG)
    assert [source.name for source in sources] == ["b.mp4"]
    (tmp_path / "all.txt").write_text("# mine\nsub/c.webm\nb.mp4\n")
    sources, _, _ = find_sources(str(tmp_path / "all.txt"), CONFIG)
    assert [source.name for source in sources] == ["sub/c.webm", "b.mp4"]
    for bad in ("none", "*.avi"):
        with pytest.raises((FileNotFoundError, ValueError), match="no "):
            find_sources(str(tmp_path / bad), CONFIG)
