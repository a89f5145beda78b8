"""Nested mappings as lines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def flattened(config: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of a nested mapping as (dotted name, value)."""
    for name, value in config.items():
        path = f"{where}.{name}" if where else str(name)
        if isinstance(value, Mapping) and value:
            yield from flattened(value, path)
        else:
            yield path, value
