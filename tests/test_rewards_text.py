"""One folding of texts: what is one word to a listener is one word to the scoring, in every script."""

import math
import re
import unicodedata
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from multilingual_lines import LANGUAGES, lines

from rewards.speech.chinese import simplified
from rewards.speech.folding import fold, split_words
from rewards.speech.scoring import (
    DEFAULT,
    NORMALISED,
    SCORINGS,
    SEED_TTS_EN,
    SEED_TTS_ZH,
    VERSE_BENCH,
    normalised_english,
)
from rewards.speech.scripts import named, scripts_of, without_blanks
from rewards.speech.typography import typography
from rewards.speech.wer import WordErrorRate, word_errors
from rewards.types import Clip

LINES = lines(500)
CASES = [  # said, heard, words, errors
    ("今天天气很好我们去公园", "今天天气很好，我们去公园。", 11, 0),
    ("今天天气很好我们去公园", "今天天气很坏，我们去公园。", 11, 1),
    ("今天天气很好", "今天天氣很好", 6, 0),
    ("東京へ行きました", "東京へ行きました。", 8, 0),
    ("สวัสดีครับ", "สวัสดีครับ", 7, 0),
    ("น้ำ", "น\u0e4d\u0e49า", 1, 0),
    ("ຂ້ອຍ ກິນ ນ້ຳ", "ຂ້ອຍກິນນ້ຳ", 6, 0),
    ("我用iPhone打3个电话", "我用 iphone 打 3 个电话。", 8, 0),
    ("मैं हिन्दी सीख रहा हूँ", "मैं हिन्दी सिख रहा हूँ", 5, 1),
    ("क़लम", "क\u093cलम", 1, 0),
    ("ന്\u200dൺ", "ൻൺ", 1, 0),
    ("می‌خواهم کتاب", "ميخواهم كتاب", 2, 0),
    ("السَّلامُ عليكم", "السلام عليكم", 2, 0),
    ("سأل", "سال", 1, 1),  # hamza belongs to the letter
    ("שָׁלוֹם צה״ל", 'שלום צה"ל', 2, 0),
    ("за\u0301мок ёлка", "замок елка", 2, 0),
    ("мой", "мои", 1, 1),
    ("I don’t think it’s fine", "I don't think it's fine.", 5, 0),
    ("I donʼt think it＇s fine", "I don‘t think it`s fine", 5, 0),
    ("‘hello’ rock ’n’ roll", "hello rock n roll", 4, 0),
    ("Un cafe\u0301 a\u0300 la cre\u0300me", "Un café à la crème", 5, 0),
    ("café", "cafe", 1, 1),
    ("ex\u00adtra\u00adordinary", "extraordinary", 1, 0),
    ("one\u200b two\u2060", "\ufeffone two", 2, 0),
    ("ＨＥＬＬＯ", "hello", 1, 0),
    ("oﬃce cœur", "office coeur", 2, 0),
    ("well‑known", "well-known", 2, 0),
    ("1,000", "1000", 1, 0),
    ("1.000.000", "1 000 000".replace(" ", "\u202f"), 1, 0),
    ("1,00,000", "100000", 1, 0),
    ("0,125", "0125", 2, 2),  # a fraction is no group of thousands
    ("３ ٣ ३", "3 3 3", 3, 0),
    ("Straße", "STRASSE", 1, 0),
    ("İstanbul", "istanbul", 1, 0),
    ("한국어 문장", unicodedata.normalize("NFD", "한국어 문장"), 2, 0),
    ("བཀྲ་ཤིས།", "བཀྲ་ཤིས", 2, 0),
    ("Nava™…", "nava", 1, 0),
]


@pytest.mark.parametrize(("said", "heard", "num_words", "num_errors"), CASES)
def test_words_and_errors_of_the_default_scoring(said, heard, num_words, num_errors):
    parts = word_errors(said, heard).parts
    assert (parts["words"], parts["errors"]) == (num_words, num_errors)
    if "'" not in fold(said):  # dropped by Whisper's normaliser
        assert word_errors(said, heard, NORMALISED).parts == parts


@pytest.mark.parametrize("line", LINES, ids=lambda line: line.language)
def test_lines_of_many_languages_have_their_known_errors(line):
    parts = word_errors(line.said, line.heard).parts
    assert (parts["words"], parts["errors"]) == (line.num_words, line.num_errors)
    if line.language not in ("en", "fr"):
        assert word_errors(line.said, line.heard, NORMALISED).parts == parts
    assert DEFAULT.refusal(line.said) == ""


def test_the_lines_are_of_all_languages_and_half_of_them_have_errors():
    assert set(Counter(line.language for line in LINES)) == set(LANGUAGES)
    assert 0.4 < sum(line.num_errors > 0 for line in LINES) / len(LINES) < 0.9
    assert len({line.said for line in LINES}) > 450


@given(st.text(max_size=20))
def test_words_are_stable_and_no_mark_stands_alone(text):
    words = split_words(fold(text))
    assert split_words(" ".join(words)) == words
    assert not any(unicodedata.category(word[0])[0] == "M" for word in words)
    assert split_words(fold(unicodedata.normalize("NFC", text))) == words


@given(st.text("abcdefghij KLM,.!?-", max_size=20))
def test_plain_english_is_lower_case_words_between_signs(text):
    plain = "".join(sign.lower() if sign.isalpha() else " " for sign in text)
    assert split_words(fold(text)) == plain.split()


def test_typography_leaves_letters_and_full_width_brackets_alone():
    assert typography("don´t – „Größe“ … ½") == "don't - „Größe“   1⁄2"
    assert typography("（笑）[x]") == "（笑）[x]"


def test_traditional_characters_become_simplified_ones():
    assert simplified("看著窗外，瞭解甚麼頭髮發現計畫") == "看着窗外，了解什么头发发现计划"
    assert word_errors("看着窗外想着什么", "看著窗外想著甚麼", SEED_TTS_ZH).value == 0.0
    assert word_errors("皇后在后面", "皇后在後面", SEED_TTS_ZH).value == 0.0
    assert simplified("no Han at all") == "no Han at all"


def test_traditional_characters_as_the_published_script_converts_them():
    """zhconv is GPL and no dependency; compared where it happens to be installed."""
    zhconv = pytest.importorskip("zhconv")
    for text in (
        "今天天氣很好，我們去公園",
        "他笑著說話",
        "瞭解情況",
        "頭髮與發現",
        "為什麼",
        "裡面很乾淨",
        "乾隆皇帝",
    ):
        assert zhconv.convert(text, "zh-cn") == simplified(text)


def test_scripts():
    assert named("Hello 世界") == "Han and Latin" and scripts_of("zh-CN") == ("Han", "Bopomofo")
    assert (
        without_blanks("ก็ดี")
        and without_blanks("ワー")
        and not without_blanks("一 二")
        and not without_blanks("한국")
    )


def clip(text: str) -> Clip:
    return Clip(np.ones(16_000, np.float32), 16_000, spans=(text,))


class Hears:
    """A recogniser that always hears the same; `language` as it was set."""

    name = "fixed"

    def __init__(self, text: str, language: str = "") -> None:
        self.text, self.language = text, language

    def transcribe(self, waveforms):
        return [self.text for _ in waveforms]


@pytest.mark.parametrize(
    ("text", "scoring", "reason"),
    [
        ("caf\ufffd", DEFAULT, r"U\+FFFD.*character 4"),
        ("x\ud800", DEFAULT, r"U\+D800"),
        ("…", DEFAULT, "no speech text"),
        ("今天天气", SEED_TTS_EN, "counts Latin texts"),
        ("今天天气", VERSE_BENCH, "between blanks"),
        ("hello", SEED_TTS_ZH, "counts Han texts"),
        ("मैं हूँ", SEED_TTS_ZH, "counts Han texts.*Devanagari"),
    ],
)
def test_a_text_that_cannot_be_counted_is_nan_with_its_reason(text, scoring, reason):
    (score,) = WordErrorRate(Hears("hello"), scoring).score([clip(text)])
    assert math.isnan(score.value) and re.search(reason, score.reason) and "\n" not in score.reason


def test_the_english_normaliser_counts_english_only(tmp_path):
    (tmp_path / "normalizer.json").write_text("{}")
    english = normalised_english(tmp_path / "normalizer.json")
    assert "Devanagari" in english.refusal("मैं हूँ") and english.refusal("It’s 1,000") == ""
    for said in ("1,000", "1000", "one thousand", "１，０００"):
        assert word_errors(said, "one thousand", english).parts == {"errors": 0, "words": 1}
    assert word_errors("I don’t think it’s fine", "I do not think it is fine", english).value == 0.0


@pytest.mark.parametrize(
    ("language", "said", "heard", "scored"),
    [
        ("en", "今天天气很好", "the weather is nice today", False),
        ("en", "今天天气很好", "今天天气很好", True),
        ("en", "今天天气很好", "", True),
        ("zh", "今天天气很好", "the weather is nice today", True),  # it was spoken in English
        ("", "今天天气很好", "the weather is nice today", True),
        ("ru", "one two", "уан ту", False),
        ("en", "2026", "twenty", True),
    ],
)
def test_a_recogniser_of_another_language_that_answers_in_it_says_nothing(language, said, heard, scored):
    (score,) = WordErrorRate(Hears(heard, language)).score([clip(said)])
    assert math.isfinite(score.value) == scored and score.text == heard
    assert scored or f"set to language {language}" in score.reason


def test_every_scoring_takes_every_line_or_says_why_not():
    for line in LINES[:60]:
        for scoring in SCORINGS.values():
            if not scoring.refusal(line.said):
                assert math.isfinite(word_errors(line.said, line.heard, scoring).value)
    assert len(SCORINGS) == 5
