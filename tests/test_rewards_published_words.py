"""The published scripts' counts, derived again from what they do: Seed-TTS eval, Verse-Bench, Whisper."""

import string

import jiwer
import pytest
from hypothesis import given
from hypothesis import strategies as st
from multilingual_lines import lines
from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer

from rewards.speech.folding import fold, split_words
from rewards.speech.scoring import (
    CHINESE_PUNCTUATION,
    NORMALISED,
    SEED_TTS_EN,
    SEED_TTS_ZH,
    VERSE_BENCH,
    normalised_english,
)
from rewards.speech.wer import word_errors

LINES = lines(500, seed=1)
# zhon.hanzi.punctuation, by its blocks
RANGES = (0xFF02, 0xFF0D), (0xFF0F, 0xFF0F), (0xFF1A, 0xFF1E), (0xFF20, 0xFF20), (0xFF3B, 0xFF40)
RANGES += (0xFF5B, 0xFF60), (0xFF62, 0xFF64), (0x3000, 0x3001), (0x3003, 0x3003), (0x3008, 0x3011)
RANGES += (0x3014, 0x301F), (0x3030, 0x3030), (0x303E, 0x303F), (0x2013, 0x2014), (0x2018, 0x2019)
RANGES += (0x201B, 0x201F), (0x2026, 0x2027), (0xFE4F, 0xFE4F), (0xFE51, 0xFE51), (0xFE54, 0xFE54)
RANGES += (0x00B7, 0x00B7), (0xFF01, 0xFF01), (0xFF1F, 0xFF1F), (0xFF61, 0xFF61), (0x3002, 0x3002)
ZHON = {chr(code) for first, last in RANGES for code in range(first, last + 1)}


def seed_tts(heard: str, said: str, language: str) -> tuple[int, int]:
    """Errors and words as run_wer.py of seed-tts-eval counts them; `heard` is simplified already."""
    for sign in [*ZHON, *string.punctuation]:
        if sign != "'":
            said, heard = said.replace(sign, ""), heard.replace(sign, "")
    said, heard = said.replace("  ", " "), heard.replace("  ", " ")
    if language == "zh":
        said, heard = " ".join(said), " ".join(heard)
    else:
        said, heard = said.lower(), heard.lower()
    return _errors(said, heard)


def _errors(said: str, heard: str) -> tuple[int, int]:
    found = jiwer.process_words(said, heard)
    errors = found.substitutions + found.deletions + found.insertions
    return errors, found.hits + found.substitutions + found.deletions


def ours(said, heard, scoring):
    parts = word_errors(said, heard, scoring).parts
    return parts["errors"], parts["words"]


def test_the_deleted_signs_are_those_of_zhon():
    assert set(CHINESE_PUNCTUATION) == ZHON


@pytest.mark.parametrize("language", ["en", "de", "fr"])
def test_seed_tts_english_is_the_published_script_letter_by_letter(language):
    for line in (line for line in LINES if line.language == language):
        assert ours(line.said, line.heard, SEED_TTS_EN) == seed_tts(line.heard, line.said, "en")


@pytest.mark.parametrize("language", ["zh", "zh-en"])
def test_seed_tts_chinese_is_the_published_script(language):
    for line in (line for line in LINES if line.language == language):
        assert ours(line.said, line.heard, SEED_TTS_ZH) == seed_tts(line.heard, line.said, "zh")


@given(st.text("ab' \u00a0\t-,’", min_size=1, max_size=12), st.text("ab' \u00a0\t-,’", max_size=12))
def test_seed_tts_splits_where_jiwer_does(said, heard):
    if SEED_TTS_EN.split(said):
        assert ours(said, heard, SEED_TTS_EN) == seed_tts(heard, said, "en")


def test_verse_bench_is_jiwer_of_stripped_lower_case():
    for line in LINES:
        if not VERSE_BENCH.refusal(line.said):
            assert ours(line.said, line.heard, VERSE_BENCH) == _errors(
                line.said.strip().lower(), line.heard.strip().lower()
            )


def test_normalised_has_the_words_of_whispers_normaliser_where_that_tears_none():
    basic = BasicTextNormalizer()
    texts = [
        "Hello, World! It's (laughs) well-known [noise].",
        "Schöne déjà vu; 3.5 a_b <unk> x",
        "Мой дом – здесь.",
        "한국어 문장입니다.",
    ]
    for text in texts:
        assert NORMALISED.split(text) == basic(text).split()
    assert len(basic("मैं हिन्दी सीख रहा हूँ").split()) == 8 and len(NORMALISED.split("मैं हिन्दी सीख रहा हूँ")) == 5


ENGLISH = (
    "I won't pay $20 million, Mr. Smith.",
    "twenty-one colours on the 2nd of May",
    "double oh seven costs 3.14 percent",
    "one thousand and one nights (hmm) y'all",
    "1,000 is 1000 and not 100",
)


def test_normalised_english_is_whispers_whatever_the_typography(tmp_path):
    (tmp_path / "normalizer.json").write_text('{"colour": "color", "colours": "colors"}')
    scoring = normalised_english(tmp_path / "normalizer.json")
    published = EnglishTextNormalizer({"colour": "color", "colours": "colors"})
    for text in ENGLISH:
        assert scoring.split(text) == published(text).split()
        curly = text.replace("'", "’").replace("-", "‑").replace(" ", " \u2060")
        assert scoring.split(curly) == scoring.split(text)
    for line in (line for line in LINES if line.language == "en"):
        plain = " ".join(split_words(fold(line.said)))  # contractions are two words, "o'clock" is three
        assert scoring.split(line.said) == published(plain).split()
