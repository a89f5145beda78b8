"""A prompt as the page shows it."""

from __future__ import annotations

from typing import Any

from pretrain.prompt.marks import MARKS
from pretrain.prompt.spans import find_spans


def prompt_parts(prompt: str) -> list[dict[str, Any]]:
    """Pieces of text in order, `spoken` for those between speech marks; the marks are left out.

    A prompt whose marks are wrong is one piece.
    """
    try:
        spans = find_spans(prompt)
    except ValueError:
        return [{"text": prompt, "spoken": False}]
    parts, at = [], 0
    for span in spans:
        parts += [(prompt[at : span.start], False), (span.text, True)]
        at = span.end
    parts.append((prompt[at:], False))
    cleaned = [(_unmarked(text), spoken) for text, spoken in parts]
    return [{"text": text, "spoken": spoken} for text, spoken in cleaned if text]


def _unmarked(text: str) -> str:
    for mark in MARKS:
        text = text.replace(mark, "")
    return text
