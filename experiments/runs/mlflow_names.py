"""Names and values as MLflow takes them: letters, digits and `_ . - : / space` in names, text without NUL,
limited lengths. What is changed is said, never done silently."""

from __future__ import annotations

import hashlib
import posixpath
import re
from collections.abc import Iterator, Mapping
from typing import Any

MAX_NAME = 250
MAX_PARAM = 6000
MAX_TAG = 5000  # servers of MLflow 2 take no more
_REFUSED = re.compile(r"[^/\w.\- :]")


def taken_name(name: str) -> str:
    """The name, or the nearest one that MLflow takes."""
    fitted = _REFUSED.sub("_", name)
    # a name that would be another one as a path, such as a//b or ../a, is refused
    fitted = posixpath.normpath(fitted.lstrip("/")).replace("../", "__/") if fitted else "_"
    fitted = "_" if fitted in (".", "..") else fitted
    return fitted if len(fitted) <= MAX_NAME else f"{fitted[: MAX_NAME - 9]}-{_short(name)}"


def distinct_name(name: str, taken: Mapping[str, str]) -> str:
    """`taken_name`, apart from the names in `taken` (name in MLflow -> original) that come from another."""
    fitted = taken_name(name)
    if taken.get(fitted, name) == name:
        return fitted
    return f"{fitted[: MAX_NAME - 9]}-{_short(name)}"


def taken_text(value: Any, limit: int) -> str:
    """A value as text that every database takes: no NUL, valid UTF-8, at most `limit` characters."""
    text = str(value).replace("\0", "").encode("utf-8", "replace").decode("utf-8")
    return text if len(text) <= limit else text[: limit - 3] + "..."


def flattened(config: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of a nested mapping as (dotted name, value)."""
    for name, value in config.items():
        path = f"{where}.{name}" if where else str(name)
        if isinstance(value, Mapping) and value:
            yield from flattened(value, path)
        else:
            yield path, value


def _short(name: str) -> str:
    return hashlib.sha256(name.encode("utf-8", "backslashreplace")).hexdigest()[:8]
