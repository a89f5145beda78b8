"""Characters that a text or a name cannot have, or that cannot be seen in it."""

from __future__ import annotations

import re
import unicodedata

_SURROGATE = re.compile("[\ud800-\udfff]")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_JOINERS = "\u200c\u200d"  # they change how letters of some scripts, and emoji, are written
# letters by their category, and blank all the same
_BLANK_LETTERS = frozenset("\u115f\u1160\u3164\uffa0\u2800\u17b4\u17b5")


def broken_character(text: str) -> str:
    """What is wrong with the first character that no text has: half a surrogate pair or a control character
    other than tabs and line ends. "" where there is none."""
    if found := _SURROGATE.search(text):
        at = f"(\\u{ord(found[0]):04x}) at character {found.start() + 1}"
        return f"half a surrogate pair {at}, which is no character; write the whole character"
    if found := _CONTROL.search(text):
        return f"control character U+{ord(found[0]):04X} at character {found.start() + 1}; remove it"
    return ""


def is_invisible(sign: str) -> bool:
    """Zero width, a direction sign, a filler, or another sign of format that shows nothing by itself."""
    return sign in _BLANK_LETTERS or unicodedata.category(sign) == "Cf"


def is_sounded(text: str) -> bool:
    """Has a letter or a number, so that there is something to say."""
    return any(sign.isalnum() and sign not in _BLANK_LETTERS for sign in text)


def hidden_characters(name: str) -> list[str]:
    """The invisible characters of a name, without joiners between its letters."""
    inner = name.strip(_JOINERS)
    return [sign for sign in inner if is_invisible(sign) and sign not in _JOINERS] + [
        sign for sign in (name[:1], name[-1:]) if sign and sign in _JOINERS
    ]


def folded_name(name: str) -> str:
    """A name as it is compared: NFC, invisible signs dropped, one blank for white space inside, none around.

    Half surrogate pairs stay, for the caller to refuse.
    """
    seen = "".join(sign for sign in name if not is_invisible(sign) or sign in _JOINERS)
    return " ".join(unicodedata.normalize("NFC", seen).split()).strip(_JOINERS)


def caseless(name: str) -> str:
    """Equal for names that differ by case or by compatible forms of characters only."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", folded_name(name)).casefold())
