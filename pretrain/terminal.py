"""Text for a terminal: names and messages from data without what would steer it or reorder what one reads."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TextIO

# Control characters but tab and newline, marks of direction, separators of lines, halves of surrogate pairs.
_STEERING = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]|\r(?!\n)"
)


def shown(text: str) -> str:
    """The text with such characters written as \\uXXXX, which JSON reads as the character itself."""
    return _STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def shown_all(value: Any, change: Callable[[str], str] = shown) -> Any:
    """Plain nested values with every text in them, keys too, as `shown` or by another `change`."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {shown_all(key, change): shown_all(item, change) for key, item in value.items()}
    return [shown_all(item, change) for item in value] if isinstance(value, (list, tuple)) else value


class EscapedStream:
    """A text stream that writes `shown` text; `plain` is the stream itself, for one's own colours."""

    def __init__(self, plain: TextIO) -> None:
        self.plain = plain

    def write(self, text: str) -> int:
        self.plain.write(shown(text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.plain, name)


def plain(stream: Any) -> Any:
    """The stream behind an `EscapedStream`; any other as it is."""
    return stream.plain if isinstance(stream, EscapedStream) else stream


@contextmanager
def escaped_output() -> Iterator[None]:
    """Within it, standard output and standard error write `shown` text."""
    before = sys.stdout, sys.stderr
    streams: Any = [EscapedStream(plain(stream)) for stream in before]
    sys.stdout, sys.stderr = streams
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
