"""Intelligibility by degrees: alignment exactly, monotone under degradation, right above wrong; the judging
recogniser."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.signal import butter, sosfilt

from pretrain.data.corpus.bank import load_bank
from rewards.speech.intelligibility import EVIDENCE_MIDDLE, NO_EVIDENCE, TEMPERATURE, Intelligibility, align
from rewards.speech.recognizer import Recognizer
from rewards.speech.settings import JUDGE, REWARD
from rewards.speech.sphinx import Spot
from rewards.speech.wer import WordErrorRate, set_word_error_rate
from rewards.types import Clip

RATE = 16_000
PHONES = {"one": 3, "seven": 5, "green": 4}
BANK = load_bank()


@pytest.fixture(scope="module")
def recognizer():
    return Recognizer(BANK.words)


def track(word: str, voice: str = "slt") -> np.ndarray:
    waveform = BANK.utterances[word, voice][0].waveform[:14_000]
    return np.pad(waveform, (2000, 14_640 - len(waveform)))


def degraded(kind: str, level: float, word: str, other: str) -> np.ndarray:
    clean = track(word)
    if kind == "mix":
        return (1 - level) * clean + level * track(other)
    if kind == "lowpass":
        return np.asarray(sosfilt(butter(6, level, fs=RATE, output="sos"), clean), np.float32)
    noise = np.random.default_rng(0).standard_normal(len(clean)) * clean[clean != 0].std()
    return np.asarray(clean + noise * 10 ** (-level / 20), np.float32)


def test_a_word_alone_has_its_closed_form():
    (word,) = align(["one"], [Spot("one", 0.1, 0.4, 3 * EVIDENCE_MIDDLE)], PHONES)
    rivals = sum(
        math.exp((NO_EVIDENCE * PHONES[w] - 3 * EVIDENCE_MIDDLE) / TEMPERATURE) for w in ("seven", "green")
    )
    assert word.clearness == 0.5
    assert math.isclose(word.posterior, 1 / (1 + rivals))
    assert math.isclose(word.score, math.sqrt(0.5 / (1 + rivals)))


def test_a_rival_as_good_halves_the_posterior_only_in_its_own_stretch():
    one, seven = Spot("one", 0.0, 0.4, -60.0), Spot("seven", 1.0, 1.4, -60.0)
    alone = align(["one", "seven"], [one, seven], PHONES)
    rival = align(["one", "seven"], [one, seven, Spot("green", 1.1, 1.5, -60.0)], PHONES)
    assert rival[0] == alone[0]
    assert rival[1].posterior == pytest.approx(0.5, abs=1e-3) and alone[1].posterior > 0.99


def test_a_word_that_fits_nowhere_scores_zero():
    green, one = align(["green", "one"], [Spot("one", 0.0, 0.4, -60.0)], PHONES)
    assert green.score == 0.0 < one.score and green.spot is None


SPOTS = st.lists(
    st.builds(
        lambda word, start, length, evidence: Spot(word, start, start + length, -evidence),
        st.sampled_from(["one", "seven"]),
        st.integers(0, 8),
        st.integers(1, 4),
        st.floats(0, 300),
    ),
    max_size=6,
)


@given(SPOTS, st.lists(st.sampled_from(["one", "seven", "green"]), min_size=1, max_size=4))
def test_alignment_is_the_best_of_all(spots, words):
    def evidence(path):
        return sum(
            NO_EVIDENCE * PHONES[word] if spot is None else spot.evidence
            for word, spot in zip(words, path, strict=True)
        )

    def ordered(path):
        placed = [spot for spot in path if spot]
        return all(first.end_s <= second.start_s for first, second in itertools.pairwise(placed))

    every = itertools.product(*([None, *(spot for spot in spots if spot.word == word)] for word in words))
    chosen = [word.spot for word in align(words, spots, PHONES)]
    assert ordered(chosen)
    assert math.isclose(evidence(chosen), max(evidence(path) for path in every if ordered(path)))


def test_the_right_word_stands_above_every_other(recognizer):
    scorer = Intelligibility(recognizer)
    said = BANK.words[::2]
    found = recognizer.spot([track(word) for word in said])
    right = [
        align([word], spots, recognizer.num_phones)[0].score for word, spots in zip(said, found, strict=True)
    ]
    wrong = [
        align([w], spots, recognizer.num_phones)[0].score
        for word, spots in zip(said, found, strict=True)
        for w in BANK.words
        if w != word
    ]
    assert scorer.name == "intelligibility_pocketsphinx"
    assert np.mean(right) > 0.8 and np.mean(wrong) < 0.05
    assert np.mean(np.array(right)[:, None] > np.array(wrong)[None]) >= 0.995


@pytest.mark.parametrize(
    ("kind", "levels"),
    [
        ("noise", (60, 25, 15, 5, -5)),
        ("mix", (0, 0.25, 0.4, 0.55, 0.7, 1)),
        ("lowpass", (6000, 2500, 1500, 800, 300)),
    ],
)
def test_it_falls_at_every_step_down(recognizer, kind, levels):
    pairs = [("seven", "green"), ("table", "orange"), ("doctor", "yellow"), ("banana", "sugar")]
    clips = [
        Clip(degraded(kind, level, word, other), RATE, spans=(word,))
        for level in levels
        for word, other in pairs
    ]
    values = (
        np.array([score.value for score in Intelligibility(recognizer).score(clips)])
        .reshape(len(levels), -1)
        .mean(axis=1)
    )
    assert (np.diff(values) < 0).all() and values[0] > 0.7 and values[-1] < 0.15


def test_it_has_slope_where_the_word_error_rate_is_flat(recognizer):
    levels = (0.0, 0.1, 0.2, 0.7, 0.85)
    pairs = [(word, BANK.words[(index + 7) % 20]) for index, word in enumerate(BANK.words) if index % 2]
    clips = [Clip(degraded("mix", level, *pair), RATE, spans=pair[:1]) for pair in pairs for level in levels]
    errors = np.array([score.value for score in WordErrorRate(recognizer).score(clips)]).reshape(
        len(pairs), -1
    )
    values = np.array([score.value for score in Intelligibility(recognizer).score(clips)]).reshape(
        len(pairs), -1
    )
    flat = (errors == [0, 0, 0, 1, 1]).all(axis=1)
    assert flat.sum() >= 5
    assert (np.diff(values[flat].mean(axis=0)) < -0.02).all()


def test_words_are_found_in_order_and_where_they_are(recognizer):
    sound = np.concatenate([track("seven"), track("green", "rms"), track("seven", "awb")])
    scores = Intelligibility(recognizer).score(
        [
            Clip(sound, RATE, spans=spans)
            for spans in (("seven", "green", "seven"), ("green", "green", "green"))
        ]
    )
    assert scores[0].value > 0.75 and scores[1].parts["lowest_word"] < 0.05
    spots = [
        word.spot
        for word in align(["seven", "green", "seven"], recognizer.spot([sound])[0], recognizer.num_phones)
    ]
    for index, (spot, (word, voice)) in enumerate(
        zip(spots, (("seven", "slt"), ("green", "rms"), ("seven", "awb")), strict=True)
    ):
        start = index * 1.04 + 0.125
        assert spot is not None and abs(spot.start_s - start) < 0.1
        assert abs(spot.end_s - start - len(BANK.utterances[word, voice][0].waveform) / RATE) < 0.1


def test_batch_order_stereo_and_processes_change_nothing(recognizer):
    clips = [Clip(track(word, "rms"), RATE, spans=(word,)) for word in BANK.words[:8]]
    scorer = Intelligibility(recognizer)
    values = [score.value for score in scorer.score(clips)]
    assert [scorer.score([clip])[0].value for clip in clips[::-1]] == values[::-1]
    two = [
        dataclasses.replace(clip, waveform=np.stack([clip.waveform, clip.waveform]))
        for clip in clips[:2]
        if clip.waveform is not None
    ]
    assert [score.value for score in scorer.score(two)] == values[:2]
    with Recognizer(BANK.words, num_processes=2) as pool:
        assert [score.value for score in Intelligibility(pool).score(clips)] == values


@pytest.mark.parametrize(
    ("clip", "reason"),
    [
        (Clip(np.zeros(16_000, np.float32), RATE, spans=("one",)), "silent"),
        (Clip(np.full(16_000, np.nan, np.float32), RATE, spans=("one",)), "NaN"),
        (Clip(np.ones(16_000, np.float32), RATE, spans=("…",)), "no speech text"),
        (
            Clip(np.ones(16_000, np.float32), RATE, spans=("one xylophone",)),
            "xylophone: not in the recogniser's vocabulary",
        ),
    ],
)
def test_what_cannot_be_scored_is_nan_with_a_reason(recognizer, clip, reason):
    (score,) = Intelligibility(recognizer).score([clip])
    assert math.isnan(score.value) and reason in score.reason


def test_the_judge_hears_real_words_as_well_and_bad_ones_otherwise(recognizer):
    judge = Recognizer(BANK.words, settings=JUDGE)
    clean = [
        Clip(track(word, voice), RATE, spans=(word,))
        for word, voice in zip(BANK.words, itertools.cycle(BANK.voices), strict=False)
    ]
    scores = WordErrorRate(judge).score(clean)
    assert (
        WordErrorRate(judge).name == "wer_pocketsphinx_judge"
        and Intelligibility(judge).name == "intelligibility_pocketsphinx_judge"
    )
    assert set_word_error_rate(scores) <= 0.05
    bad = [
        degraded("mix", 0.35, word, other)
        for word, other in zip(BANK.words, BANK.words[7:] + BANK.words[:7], strict=True)
    ]
    different = [
        first != second
        for first, second in zip(judge.transcribe(bad), recognizer.transcribe(bad), strict=True)
    ]
    assert 0.1 <= np.mean(different) <= 0.6


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match="penalty and peak"):
        dataclasses.replace(REWARD, peak=0.0)
