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


class SpanError(ValueError):
    """What is wrong with the marks of a text, in one line; the fault is at `text[start:end]`."""

    def __init__(self, message: str, start: int = 0, end: int = 0) -> None:  # pickled by its message
        super().__init__(message)
        self.start, self.end = start, end


def find_spans(text: str) -> tuple[Span, ...]:
    """The spans in order.

    Raises SpanError for marks that are nearly right (`near_marks`), unbalanced or nested, for a span without
    a letter or number, and for a timbre token.
    """
    if near := near_mark(text):
        raise SpanError(near.message, near.start, near.start + len(near.found))
    spans: list[Span] = []
    opened: int | None = None
    for mark in _MARKS.finditer(text):
        if problem := _mark_problem(text, mark, opened is not None):
            raise SpanError(problem, mark.start(), mark.end())
        if opened is None:
            opened = mark.end()
        else:
            spans.append(_span(text, opened, mark.start()))
            opened = None
    if opened is not None:
        start = opened - len(SPEECH_START)
        raise SpanError(
            f"{SPEECH_START} at character {start + 1} without {SPEECH_END}; close the span", start, opened
        )
    return tuple(spans)


def _mark_problem(text: str, mark: re.Match[str], is_open: bool) -> str:
    """What is wrong with an exact mark where it stands, "" if nothing is."""
    at = f"at character {mark.start() + 1}"
    if mark.group() == TIMBRE:
        return f"{TIMBRE} {at}; remove it, it is put in after every {SPEECH_START} by itself"
    if unicodedata.combining(text[mark.end() : mark.end() + 1] or " "):
        return f"a combining character right behind {mark.group()} {at} changes it; remove it"
    if mark.group() == SPEECH_START and is_open:
        return f"{SPEECH_START} {at} inside an open span; close the span with {SPEECH_END} first"
    if mark.group() == SPEECH_END and not is_open:
        return f"{SPEECH_END} {at} without {SPEECH_START}; put {SPEECH_START} before the spoken words"
    return ""


def _span(text: str, start: int, end: int) -> Span:
    words = text[start:end]
    if not is_sounded(words):
        found = f"{words!a} has no letter or number; " if words.strip() else ""
        raise SpanError(
            f"empty speech span at character {end + 1}; {found}write the spoken words between {SPEECH_START} "
            f"and {SPEECH_END}",
            start - len(SPEECH_START),
            end + len(SPEECH_END),
        )
    return Span(start, end, words)
