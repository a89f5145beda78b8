"""Where the spoken words of a prompt are."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from pretrain.prompt.characters import is_sounded
from pretrain.prompt.marks import MARKS, SPEECH_END, SPEECH_START, TIMBRE
from pretrain.prompt.near_marks import near_mark

_MARKS = re.compile("|".join(map(re.escape, MARKS)))


@dataclass(frozen=True)
class Span:
    """Spoken words: `text == prompt[start:end]`, characters between (not including) the marks."""

    start: int
    end: int
    text: str


def find_spans(text: str) -> tuple[Span, ...]:
    """The spans in order.

    Raises ValueError for marks that are nearly right (`near_marks`), unbalanced or nested, for a span without
    a letter or number, and for a timbre token.
    """
    if near := near_mark(text):
        raise ValueError(near.message)
    spans: list[Span] = []
    opened: int | None = None
    for mark in _MARKS.finditer(text):
        at = f"at character {mark.start() + 1}"
        if mark.group() == TIMBRE:
            raise ValueError(f"{TIMBRE} {at}; remove it, it is put in after every {SPEECH_START} by itself")
        if unicodedata.combining(text[mark.end() : mark.end() + 1] or " "):
            raise ValueError(f"a combining character right behind {mark.group()} {at} changes it; remove it")
        if mark.group() == SPEECH_START:
            if opened is not None:
                raise ValueError(
                    f"{SPEECH_START} {at} inside an open span; close the span with {SPEECH_END} first"
                )
            opened = mark.end()
        elif opened is None:
            raise ValueError(
                f"{SPEECH_END} {at} without {SPEECH_START}; put {SPEECH_START} before the spoken words"
            )
        else:
            spans.append(_span(text, opened, mark.start()))
            opened = None
    if opened is not None:
        raise ValueError(
            f"{SPEECH_START} at character {opened - len(SPEECH_START) + 1} without {SPEECH_END}; close the "
            "span"
        )
    return tuple(spans)


def _span(text: str, start: int, end: int) -> Span:
    words = text[start:end]
    if not is_sounded(words):
        found = f"{words!a} has no letter or number; " if words.strip() else ""
        raise ValueError(
            f"empty speech span at character {end + 1}; {found}write the spoken words between {SPEECH_START} "
            f"and {SPEECH_END}"
        )
    return Span(start, end, words)
