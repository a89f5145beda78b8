"""A prompt's text with its speech spans, and the reference voice of each span."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pretrain.prompt.marks import SPEECH_END, SPEECH_START, TIMBRE
from pretrain.prompt.spans import Span, find_spans


@dataclass(frozen=True)
class ParsedPrompt:
    """A prompt, its speech spans in order, and one reference (path, or None) for each span."""

    text: str
    spans: tuple[Span, ...]
    references: tuple[str | None, ...]


def parse(text: str, references: Sequence[str | None] = ()) -> ParsedPrompt:
    """Finds the spans and binds the i-th reference to the i-th span; spans beyond the references get None.

    Raises ValueError for marks that are nearly right, unbalanced, nested or empty spans, a timbre token in
    the text, or more references than spans.
    """
    spans = find_spans(text)
    if len(references) > len(spans):
        raise ValueError(too_many(len(references), len(spans)))
    padded = [reference or None for reference in references] + [None] * (len(spans) - len(references))
    return ParsedPrompt(text, spans, tuple(padded))


def with_timbre_tokens(parsed: ParsedPrompt) -> str:
    """The text the encoder sees: a timbre token right after every opening mark, `<S><extra_id_2>words<E>`."""
    return parsed.text.replace(SPEECH_START, SPEECH_START + TIMBRE)


def too_many(num_references: int, num_spans: int) -> str:
    """What is wrong with more references than spans."""
    return (
        f"{num_references} references for {num_spans} speech spans; give at most one per "
        f"{SPEECH_START}...{SPEECH_END} span"
    )
