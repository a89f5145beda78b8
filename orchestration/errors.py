"""What others raise, as part of one line."""

from __future__ import annotations

MAX_CHARACTERS = 300


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:MAX_CHARACTERS] or type(error).__name__
