"""What of a text counts as its words."""

from __future__ import annotations

import re


def normalize(text: str) -> str:
    """Lower case, punctuation (but for apostrophes) dropped, single blanks."""
    return " ".join(re.sub(r"[^\w\s']|_", " ", text.lower()).split())
