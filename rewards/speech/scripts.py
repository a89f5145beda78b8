"""Scripts: which are written without blanks, which a text has, and which a language is written in."""

from __future__ import annotations

from functools import cache

import regex

# Nothing between words; characters are counted instead (Tibetan has a sign between syllables, Korean blanks).
UNSPACED = (
    *("Han", "Hiragana", "Katakana", "Bopomofo", "Yi"),
    *("Thai", "Lao", "Khmer", "Myanmar", "Tai_Le", "New_Tai_Lue", "Tai_Tham", "Tai_Viet"),
    *("Javanese", "Balinese"),
)
# by extensions, so that signs which several scripts share (such as ー and 々) belong to them
UNSPACED_CLASS = "".join(rf"\p{{scx={name}}}" for name in UNSPACED)
_UNSPACED_RUN = regex.compile(rf"(?V1)(?:[\p{{L}}&&[{UNSPACED_CLASS}]]\p{{M}}*){{2}}")
_LETTER = regex.compile(r"\p{L}")
_NAMES = (
    *("Latin", "Han", "Hiragana", "Katakana", "Hangul", "Bopomofo", "Cyrillic", "Greek", "Arabic", "Hebrew"),
    *("Devanagari", "Bengali", "Gurmukhi", "Gujarati", "Oriya", "Tamil", "Telugu", "Kannada", "Malayalam"),
    *("Sinhala", "Thai", "Lao", "Khmer", "Myanmar", "Tibetan", "Georgian", "Armenian", "Ethiopic", "Thaana"),
)
# Of languages that are not, or not only, written in Latin letters
_CYRILLIC = ("be", "bg", "ba", "kk", "ky", "mk", "mn", "ru", "tg", "tt", "uk")
_SCRIPTS_OF: dict[str, tuple[str, ...]] = {
    **{language: ("Han", "Bopomofo") for language in ("zh", "yue", "cmn", "wuu")},
    "ja": ("Han", "Hiragana", "Katakana"),
    "ko": ("Hangul", "Han"),
    **dict.fromkeys(_CYRILLIC, ("Cyrillic",)),
    **dict.fromkeys(("sr", "bs", "uz", "az", "tk"), ("Cyrillic", "Latin")),
    "el": ("Greek",),
    **dict.fromkeys(("ar", "fa", "ur", "ps", "sd", "ug"), ("Arabic",)),
    **dict.fromkeys(("he", "iw", "yi"), ("Hebrew",)),
    **dict.fromkeys(("hi", "mr", "ne", "sa"), ("Devanagari",)),
    **dict.fromkeys(("bn", "as"), ("Bengali",)),
    "pa": ("Gurmukhi", "Arabic"),
    "gu": ("Gujarati",),
    "or": ("Oriya",),
    "ta": ("Tamil",),
    "te": ("Telugu",),
    "kn": ("Kannada",),
    "ml": ("Malayalam",),
    "si": ("Sinhala",),
    "th": ("Thai",),
    "lo": ("Lao",),
    "km": ("Khmer",),
    "my": ("Myanmar",),
    "bo": ("Tibetan",),
    "ka": ("Georgian",),
    "hy": ("Armenian",),
    **dict.fromkeys(("am", "ti"), ("Ethiopic",)),
}


def scripts(text: str) -> set[str]:
    """Names of the scripts of a text's letters; letters of rare scripts are "other"."""
    return {_script(letter) for letter in set(_LETTER.findall(text))}


def without_blanks(text: str) -> bool:
    """Whether two letters of a script that puts no blanks between words stand side by side."""
    return _UNSPACED_RUN.search(text) is not None


def scripts_of(language: str) -> tuple[str, ...]:
    """Scripts that a language (ISO 639, a region after - or _ is ignored) is written in; Latin by default."""
    return _SCRIPTS_OF.get(language.lower().replace("_", "-").partition("-")[0], ("Latin",))


def named(text: str, *, but: tuple[str, ...] = ()) -> str:
    """The scripts of a text in words, as "Han and Latin", without those in `but`."""
    return " and ".join(sorted(scripts(text) - set(but)))


@cache
def _script(letter: str) -> str:
    return next((name for name in _NAMES if regex.match(rf"\p{{Script={name}}}", letter)), "other")
