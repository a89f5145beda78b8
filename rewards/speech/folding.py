"""Text to the words that are counted: one folding for scorings, recognisers and vocabularies."""

from __future__ import annotations

import unicodedata

import regex

from rewards.speech.chinese import simplified
from rewards.speech.scripts import UNSPACED_CLASS
from rewards.speech.typography import typography

_WIDE_BLANK_BETWEEN_DIGITS = regex.compile(r"(?<=\d)[\u00a0\u2007\u2009\u202f](?=\d{3}(?!\d))")
_THOUSANDS = regex.compile(r"(?<![\d.,'])[1-9]\d{0,2}(?:([,.'\u066c])\d{3})(?:\1\d{3})*(?!\d)")
_LAKHS = regex.compile(r"(?<![\d.,'])[1-9]\d?(?:,\d{2})+,\d{3}(?!\d)")
_SEPARATOR = regex.compile(r"[,.'\u066c]")
_DIGIT = regex.compile(r"\p{Nd}")
_BETWEEN_LETTERS = (
    # a written stress, which no recogniser writes; й and ѓ are letters of their own by now
    (regex.compile(r"(?<=\p{Cyrillic}\p{M}*)[\u0300\u0301\u0341]"), ""),
    # vowel signs and cantillation, which are optional; hamza and madda belong to the letter
    (regex.compile(r"[\u0610-\u061a\u064b-\u0652\u0656-\u065f\u0670\u06d6-\u06ed\u0640]"), ""),
    (regex.compile(r"[\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7]"), ""),
    (regex.compile(r"(?<=\p{Hebrew})[״\"](?=\p{Hebrew})"), ""),
    (regex.compile(r"(?<=\p{Hebrew})׳"), "'"),
    (regex.compile(r"(?<=\p{Latin})·(?=\p{Latin})"), ""),
)
# one spoken word each: a typographic ligature, a letter that most texts leave out, another keyboard's letter
_SAME = {"œ": "oe", "æ": "ae", "ё": "е", "ی": "ي", "ک": "ك", "i̇": "i"}
_CHARACTER = rf"[[\p{{L}}\p{{N}}]&&[{UNSPACED_CLASS}]][\p{{M}}ำຳ]*"  # sara am joins as a vowel sign does
_LETTERS = rf"(?:[[\p{{L}}\p{{N}}]--[{UNSPACED_CLASS}]]\p{{M}}*)+"
_WORD = regex.compile(rf"(?V1){_CHARACTER}|{_LETTERS}(?:'{_LETTERS})*")


def fold(text: str) -> str:
    """A text in which one spoken word has one spelling; punctuation is still there.

    `typography`, numbers as plain digits (1,000 and 1.000 and 1'000 as 1000; digits of all scripts as 0 to
    9), case folded (so ß is ss), traditional characters simplified, optional signs dropped: vowel points of
    Arabic and Hebrew, tatweel, stress over Cyrillic vowels. Marks that are part of a word's spelling
    (Devanagari matras, Thai vowels and tones, accents) stay.
    """
    text = typography(_WIDE_BLANK_BETWEEN_DIGITS.sub(",", text))
    text = _DIGIT.sub(lambda digit: str(unicodedata.decimal(digit[0], digit[0])), text)
    for grouped in (_THOUSANDS, _LAKHS):
        text = grouped.sub(lambda number: _SEPARATOR.sub("", number[0]), text)
    text = unicodedata.normalize("NFC", text.casefold())
    for found, replacement in _BETWEEN_LETTERS:
        text = found.sub(replacement, text)
    for letter, usual in _SAME.items():
        text = text.replace(letter, usual)
    return simplified(text)


def split_words(folded: str) -> list[str]:
    """Words of a folded text: runs of letters, digits and their marks, with inner apostrophes.

    In scripts without blanks each letter with its marks is a word (the "mixed error rate": 我用iPhone has
    three). Everything else, punctuation of all scripts above all, separates words.
    """
    return _WORD.findall(folded)
