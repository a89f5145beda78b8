"""Different encodings of the same written text made equal: nothing that a reader would pronounce changes."""

from __future__ import annotations

import unicodedata

import regex

# Signs that stand for an apostrophe in one keyboard layout, font or word processor or another; the acute
# accent has to go before NFKC, which turns it into a blank with a combining mark.
_APOSTROPHES = str.maketrans(dict.fromkeys("’‘‛ʼʻʽʹˈˊˋ′‵＇՚ꞌ´`΄᾽᾿῾", "'"))
# NFKC would make letters of the first two, and full stops of the others.
_DROPPED = str.maketrans(dict.fromkeys("™℠", "") | dict.fromkeys("…‥⋯", " "))
# NFKC would make brackets of them, in which a normaliser looks for text to drop; the published ones do not.
_BRACKETS = regex.compile(r"([＜＞（）［］｛｝⁽⁾₍₎﹙﹚﹛﹜﹤﹥])")
_DASHES = regex.compile(r"[\p{Pd}−]")
# Soft hyphens, zero-width blanks and joiners, byte order and direction marks, variation selectors and fillers
_INVISIBLE = regex.compile(r"[\p{Default_Ignorable_Code_Point}\p{Cf}]")
# Letters of their own that older texts write as consonant, virama, zero-width joiner (Unicode 5.1, 12.9)
_JOINED = {
    "ണ്\u200d": "ൺ",
    "ന്\u200d": "ൻ",
    "ര്\u200d": "ർ",
    "ല്\u200d": "ൽ",
    "ള്\u200d": "ൾ",
    "ക്\u200d": "ൿ",
    "ত্\u200d": "ৎ",
}
# NFKC takes Thai and Lao sara am apart and leaves the parts unordered around a tone mark
_SARA_AM = regex.compile(r"([\u0e48-\u0e4b]?)\u0e4d([\u0e48-\u0e4b]?)\u0e32")
_SARA_AM_LAO = regex.compile(r"([\u0ec8-\u0ecb]?)\u0ecd([\u0ec8-\u0ecb]?)\u0eb2")
_DAMAGED = regex.compile(r"[\ufffd\p{Cs}\p{Co}]")


def typography(text: str) -> str:
    """NFKC with every kind of apostrophe as ', every dash as - and without invisible signs.

    Combining marks stay with their letters (composed with them where Unicode has such a letter), so NFD and
    NFC are equal. Full-width brackets stay as they are.
    """
    text = text.translate(_DROPPED).translate(_APOSTROPHES)
    for sequence, letter in _JOINED.items():
        text = text.replace(sequence, letter)
    text = _INVISIBLE.sub("", text)
    pieces = _BRACKETS.split(text)
    text = "".join(
        piece if _BRACKETS.fullmatch(piece) else unicodedata.normalize("NFKC", piece) for piece in pieces
    )
    text = _SARA_AM_LAO.sub("\\1\\2\u0eb3", _SARA_AM.sub("\\1\\2\u0e33", text))
    return _DASHES.sub("-", text.translate(_APOSTROPHES))


def damage(text: str) -> str:
    """Why a text cannot be read: replacement characters, lone surrogates or private letters; "" if it can."""
    found = _DAMAGED.search(text)
    if found is None:
        return ""
    code, place = f"U+{ord(found[0]):04X}", found.start() + 1
    return f"the text has {code}, which is no letter, at character {place}; write it again as UTF-8"
