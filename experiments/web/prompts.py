"""A prompt as it is typed: its spans, its words, and the place of what is wrong with it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from html import escape
from typing import Literal

from pretrain.prompt import SPEECH_END, SPEECH_START, Span, SpanError
from pretrain.prompt.characters import broken_character
from pretrain.prompt.spans import find_spans

PieceKind = Literal["plain", "mark", "speech", "wrong"]
EXCERPT = 12  # characters on both sides of a fault
_CHARACTER = re.compile(r" at character (\d+)")
_TAGS = {"plain": "span", "mark": "b", "speech": "mark", "wrong": "em"}


@dataclass(frozen=True)
class TypedPrompt:
    """`pieces`: (text, kind), which together are the text. problem: one line, "" where it is right."""

    text: str
    pieces: tuple[tuple[str, PieceKind], ...]
    spans: tuple[str, ...]  # words to be spoken, one text per span before the fault
    words: int  # of all spans, counted as the word error rate counts them
    problem: str = ""

    @property
    def told(self) -> str:
        """What is in the prompt, or what is wrong with it and where."""
        if self.problem:
            return self.problem
        spans = f"{len(self.spans)} speech span{'s' * (len(self.spans) != 1)}"
        words = f"{self.words} spoken word{'s' * (self.words != 1)}"
        return f"{spans}, {words}, {len(self.text)} characters" if self.text.strip() else ""


def read_typed(text: str, most_characters: int = 0) -> TypedPrompt:
    """The text by the parser of prompts; never raises. most_characters: the service's limit, 0 = none."""
    if wrong := broken_character(text):
        found = _CHARACTER.search(wrong)
        start = int(found[1]) - 1 if found else 0
        return _faulty(text, f"{wrong} ({_place(text, start)})", start, start + 1)
    try:
        spans = find_spans(text)
    except SpanError as error:
        where = f"{_place(text, error.start)}: {_excerpt(text, error.start, error.end)}"
        return _faulty(text, f"{error} ({where})", error.start, error.end)
    problem = ""
    if most_characters and len(text) > most_characters:
        problem = f"{len(text)} characters; the service takes at most {most_characters}, make it shorter"
    return TypedPrompt(text, _pieces(text, spans), _texts(spans), _count(spans), problem)


def prompt_html(prompt: TypedPrompt) -> str:
    """The highlighted text, and below it what is told; every sign of the user's is escaped."""
    shown = "".join(
        f'<{_TAGS[kind]} class="nava-{kind}">{escape(text)}</{_TAGS[kind]}>' for text, kind in prompt.pieces
    )
    role = ' role="alert" class="nava-told nava-bad"' if prompt.problem else ' class="nava-told"'
    return f'<div class="nava-prompt">{shown}</div><p{role}>{escape(prompt.told)}</p>'


def _faulty(text: str, problem: str, start: int, end: int) -> TypedPrompt:
    """What is before the fault as far as it is right by itself; an open span in it is shown as text."""
    spans: tuple[Span, ...] = ()
    right = text[:start]
    while right:
        try:
            spans = find_spans(right)
            break
        except SpanError as error:
            right = right[: min(error.start, len(right) - 1)]
    before = _pieces(text[:start], spans)
    wrong: tuple[tuple[str, PieceKind], ...] = ((text[start:end], "wrong"), (text[end:], "plain"))
    after = tuple(piece for piece in wrong if piece[0])
    return TypedPrompt(text, (*before, *after), _texts(spans), _count(spans), problem)


def _pieces(text: str, spans: tuple[Span, ...]) -> tuple[tuple[str, PieceKind], ...]:
    found: list[tuple[str, PieceKind]] = []
    at = 0
    for span in spans:
        found.append((text[at : span.start - len(SPEECH_START)], "plain"))
        found.append((SPEECH_START, "mark"))
        found.append((span.text, "speech"))
        found.append((SPEECH_END, "mark"))
        at = span.end + len(SPEECH_END)
    found.append((text[at:], "plain"))
    return tuple(piece for piece in found if piece[0])


def _texts(spans: tuple[Span, ...]) -> tuple[str, ...]:
    return tuple(span.text for span in spans)


def _count(spans: tuple[Span, ...]) -> int:
    from rewards.speech.scoring import DEFAULT

    return sum(len(DEFAULT.split(span.text)) for span in spans)


def _place(text: str, start: int) -> str:
    before = text[:start]
    return f"line {before.count(chr(10)) + 1}, column {start - before.rfind(chr(10))}"


def _excerpt(text: str, start: int, end: int) -> str:
    """The fault between arrows with some text around it, in one line."""
    left, right = text[max(0, start - EXCERPT) : start], text[end : end + EXCERPT]
    fault = text[start:end] if end - start <= 3 * EXCERPT else f"{text[start : start + 3 * EXCERPT]}…"
    cut = f"{'…' * (start > EXCERPT)}{left}→{fault}←{right}{'…' * (end + EXCERPT < len(text))}"
    return " ".join(cut.split())
