"""Lines of many languages made by rule, with edits whose number is known: (said, heard, words, errors).

Words are lists of their units, so that what has to be counted is written down here and not computed: a word
between blanks, or a letter with its marks where there are no blanks.
"""

from __future__ import annotations

import random
import unicodedata
from dataclasses import dataclass


@dataclass(frozen=True)
class Language:
    """`foreign` is a unit that no word has; `marks` go between words and never count."""

    words: tuple[tuple[str, ...], ...]
    foreign: str
    marks: tuple[str, ...]
    blank: str = " "
    optional: str = ""  # a sign that may stand after a word's first letter without making another word


@dataclass(frozen=True)
class Line:
    language: str
    said: str
    heard: str
    num_words: int
    num_errors: int


def _spaced(text: str) -> tuple[tuple[str, ...], ...]:
    return tuple((word,) for word in text.split())


def _unspaced(text: str) -> tuple[tuple[str, ...], ...]:
    """Words between blanks, their units between dots."""
    return tuple(tuple(word.split(".")) for word in text.split())


LANGUAGES = {
    "en": Language(
        _spaced("don't the river it's green window seven o'clock we'll open"), "xylophone", (",", " –", "!")
    ),
    "de": Language(
        _spaced("schöne Straße über kleinen Fluß Äpfel grüßen wir"), "xylofon", (",", " –", "“", ";")
    ),
    "fr": Language(
        _spaced("l'été café à la crème cœur déjà aujourd'hui français"), "xylophone", (",", " «", "…")
    ),
    "ru": Language(_spaced("ещё мой чай летит домой река зелёный"), "щука", (",", " —", "»")),
    "hi": Language(_spaced("मैं हिन्दी सीख रहा हूँ किताब पढ़ती क्षेत्र"), "ज्ञान", ("।", ",", " -")),
    "ar": Language(_spaced("كتاب أخضر مدرسة يقرأ الولد سؤال"), "ظلّ", ("،", "؟", "؛"), optional="\u064e"),
    "he": Language(_spaced("שלום ילד ספר ירוק גדול הולך"), "צפרדע", (",", " ־ ", "׃"), optional="\u05b8"),
    "ko": Language(_spaced("오늘 날씨가 좋아요 우리는 공원에 갑니다"), "고양이", (",", ".", "?")),
    "zh": Language(
        _unspaced("今.天 天.气 很.好 我.们 去 公.园 说.话"), "猫", ("，", "。", "！", "《", "、"), ""
    ),
    "ja": Language(
        _unspaced("東.京 へ 行.き.ま.し.た タ.ワ.ー ば.な.な 人.々"), "犬", ("、", "。", "「", "」", "・"), ""
    ),
    "th": Language(_unspaced("ส.วั.ส.ดี วั.น.นี้ อ.า.ก.า.ศ เ.ย็.น น้ำ ค.รั.บ"), "ฮู", (" ", "\u200b", "!", "๚"), ""),
    "zh-en": Language(
        (*_unspaced("我 用 打.电.话 给 你"), ("iphone",), ("email",)), "猫", ("，", " ", "。"), ""
    ),
}


def lines(count: int, seed: int = 0) -> list[Line]:
    """`count` lines, the languages in turn, the same for the same seed."""
    rng = random.Random(seed)
    names = list(LANGUAGES)
    return [_line(names[index % len(names)], rng) for index in range(count)]


def _line(name: str, rng: random.Random) -> Line:
    language = LANGUAGES[name]
    said = _said(language, rng)
    changed = rng.sample(range(len(said)), rng.randint(0, min(3, len(said))))
    heard = [language.foreign if index in changed else unit for index, unit in enumerate(said)]
    errors = len(changed)
    # deletions or insertions, not both: one of each would be a substitution
    if rng.random() < 0.3 and errors < len(said) - 1:
        heard.pop(next(index for index in range(len(said)) if index not in changed))
        errors += 1
    elif rng.random() < 0.3:
        heard.insert(rng.randint(0, len(heard)), language.foreign)
        errors += 1
    return Line(name, _written(said, language, rng), _written(heard, language, rng), len(said), errors)


def _said(language: Language, rng: random.Random) -> list[str]:
    return [unit for _ in range(rng.randint(2, 9)) for unit in rng.choice(language.words)]


def _written(units: list[str], language: Language, rng: random.Random) -> str:
    """The units as somebody else's keyboard, editor and file system would write them."""
    text = ""
    for index, unit in enumerate(units):
        unit = unit.replace("'", rng.choice("'’ʼ＇‘"))
        if language.optional and rng.random() < 0.3:
            unit = unit[0] + language.optional + unit[1:]
        if unit.isascii() and rng.random() < 0.1:
            unit = "".join(chr(ord(sign) + 0xFEE0) if "!" <= sign <= "~" else sign for sign in unit)
        elif unit[0].isalpha() and rng.random() < 0.2:
            unit = rng.choice((unit.upper(), unit.capitalize()))
        if language.blank and unit[:3].isalpha() and rng.random() < 0.1:
            unit = unit[:2] + "\u00ad" + unit[2:]
        between = rng.choice(language.marks) if rng.random() < 0.2 else ""
        neighbours = "".join(units[index : index + 2])
        blank = " " if neighbours.isascii() else language.blank  # between Latin words of Chinese too
        text += unit + between + (blank if index + 1 < len(units) else rng.choice(("", ".", "!")))
    if rng.random() < 0.3:
        text = unicodedata.normalize("NFD", text)
    return rng.choice(("", "", "\ufeff", "\u200e")) + text
