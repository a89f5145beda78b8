"""Words: what each benchmark counts, exactly; clips and sets."""

import json
import math

import jiwer
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.base import unscored
from rewards.speech.scoring import (
    CHINESE_PUNCTUATION,
    DEFAULT,
    NORMALISED,
    SCORINGS,
    SEED_TTS_EN,
    SEED_TTS_ZH,
    VERSE_BENCH,
    WerConvention,
    normalised_english,
    normalize,
    seed_tts_en,
    seed_tts_zh,
    verse_bench,
)
from rewards.speech.wer import (
    WordErrorRate,
    mean_word_error_rate,
    metric_name,
    reported_word_error_rate,
    set_word_error_rate,
    word_errors,
)
from rewards.types import Clip

WORDS = st.lists(st.sampled_from(["one", "seven", "green", "window"]), min_size=1, max_size=8)
ENGLISH = (DEFAULT, SEED_TTS_EN, VERSE_BENCH, NORMALISED)


class Fixed:
    """A recogniser that hears what it was told to."""

    def __init__(self, heard: list[str], name: str = "fixed") -> None:
        self.heard, self.name = iter(heard), name

    def transcribe(self, waveforms):
        return [next(self.heard) for _ in waveforms]


def clip(text: str) -> Clip:
    return Clip(np.ones(16_000, np.float32), 16_000, spans=(text,) if text else ())


@pytest.mark.parametrize("scoring", ENGLISH, ids=lambda scoring: scoring.name or "default")
@given(words=WORDS, data=st.data())
def test_replacing_k_of_n_words_is_k_over_n(scoring, words, data):
    changed = data.draw(st.sets(st.integers(0, len(words) - 1)))
    heard = ["xylophone" if i in changed else word for i, word in enumerate(words)]
    score = word_errors(" ".join(words), " ".join(heard), scoring)
    assert score.value == len(changed) / len(words)
    assert score.parts == {"errors": len(changed), "words": len(words)}


@given(st.text("我打破了一个盘子", min_size=1, max_size=12), st.data())
def test_chinese_words_are_characters(text, data):
    changed = data.draw(st.sets(st.integers(0, len(text) - 1)))
    heard = "".join("猫" if i in changed else character for i, character in enumerate(text))
    assert word_errors(text, heard, SEED_TTS_ZH).value == len(changed) / len(text)


@pytest.mark.parametrize("scoring", [*SCORINGS.values()], ids=lambda scoring: scoring.name or "default")
def test_empty_hypothesis_is_all_deletions_and_insertions_may_exceed_one(scoring: WerConvention):
    assert word_errors("一 二", "", scoring).value == 1.0
    assert word_errors("一", "一 二 三", scoring).value == 2.0
    with pytest.raises(ValueError, match="no words"):
        word_errors(" ?! ", "one", scoring)


def test_case_and_punctuation_do_not_count_by_default():
    assert normalize("It's SEVEN, well-known…") == "it's seven well known"
    assert word_errors("Seven!", "seven").value == 0.0


def test_seed_tts_deletes_punctuation_joins_hyphens_and_keeps_apostrophes():
    assert seed_tts_en("It's a well-known, “Old” House.") == "it's a wellknown old house"
    assert seed_tts_en("one  two    three") == "one two  three"  # once; jiwer ignores what is left
    assert word_errors("one two three", "one    two three", SEED_TTS_EN).value == 0.0
    assert (
        word_errors("twenty-one", "twenty one", SEED_TTS_EN).value == 2.0
    )  # a substitution and an insertion for one word
    assert seed_tts_zh("我打破了《盘子》。OK") == "我 打 破 了 盘 子 O K"
    assert len(CHINESE_PUNCTUATION) == len(set(CHINESE_PUNCTUATION)) == 81


def test_verse_bench_keeps_punctuation_and_empties_what_is_nothing_else():
    assert verse_bench("  Hello, World. ") == "hello, world."
    assert verse_bench(" 。 ?! ") == ""
    assert word_errors("hello world", "Hello, world.", VERSE_BENCH).value == 1.0
    assert word_errors("hello world", "。", VERSE_BENCH).value == 1.0


@given(st.text("ab,. ", max_size=12), st.text("ab,. ", max_size=12))
def test_verse_bench_is_jiwer_of_stripped_lower_case(reference, hypothesis):
    if verse_bench(reference):
        assert word_errors(reference, hypothesis, VERSE_BENCH).value == jiwer.wer(
            verse_bench(reference), verse_bench(hypothesis)
        )


def test_normalised_drops_case_marks_and_brackets(tmp_path):
    assert word_errors("Hello, World!", "hello [noise] world", NORMALISED).value == 0.0
    (tmp_path / "normalizer.json").write_text(json.dumps({"colour": "color"}))
    english = normalised_english(tmp_path / "normalizer.json")
    assert word_errors("It's twenty one colours, colour!", "it is 21 colours color", english).value == 0.0
    assert word_errors("colour", "color", NORMALISED).value == 1.0


def test_a_wrong_normalizer_file_is_one_line(tmp_path):
    with pytest.raises(FileNotFoundError, match="take normalizer"):
        normalised_english(tmp_path / "normalizer.json")
    for content in ("{", "[1]"):
        (tmp_path / "normalizer.json").write_text(content)
        with pytest.raises(ValueError, match="take normalizer"):
            normalised_english(tmp_path / "normalizer.json")


def test_rates_of_a_set():
    scores = [word_errors("one", "two"), word_errors("one two three", "one two three"), unscored("silent")]
    assert set_word_error_rate(scores) == 1 / 4
    assert mean_word_error_rate(scores) == 1 / 2
    assert reported_word_error_rate(scores, DEFAULT) == 1 / 4
    assert reported_word_error_rate(scores, VERSE_BENCH) == 1 / 2
    assert reported_word_error_rate([word_errors("one two three", "one two")], SEED_TTS_EN) == 33.333
    assert math.isnan(set_word_error_rate([unscored("silent")])) and math.isnan(mean_word_error_rate([]))


def test_a_benchmarks_bare_name_needs_its_recogniser():
    assert metric_name("pocketsphinx", DEFAULT) == "wer_pocketsphinx"
    assert metric_name("whisper", SEED_TTS_EN) == "wer_whisper_seed_tts_en"
    assert metric_name("whisper_large_v3", SEED_TTS_EN) == "wer_seed_tts_en"
    assert metric_name("whisper_large_v3", VERSE_BENCH) == "wer_whisper_large_v3_verse_bench"
    assert WordErrorRate(Fixed([], "sensevoice_small"), VERSE_BENCH).name == "wer_verse_bench"


def test_clips_without_words_are_nan_with_a_reason():
    scores = WordErrorRate(Fixed(["one", "two"])).score([clip("one"), clip(""), clip("…?"), clip("one")])
    assert [score.value for score in scores[::3]] == [0.0, 1.0]
    assert all(math.isnan(score.value) and "no speech text" in score.reason for score in scores[1:3])


@given(st.permutations(range(5)))
def test_permuting_the_batch_permutes_the_scores(order):
    heard = ["one", "one two", "", "green", "one two three"]
    scores = WordErrorRate(Fixed([heard[i] for i in order])).score([clip("one two")] * 5)
    assert [score.value for score in scores] == [[0.5, 0.0, 1.0, 1.0, 0.5][i] for i in order]
