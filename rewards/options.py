"""Options of rewards, rubrics and guardrails: frozen dataclasses filled strictly, an unknown key names the
nearest valid one."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

OptionsT = TypeVar("OptionsT")


def nearest(name: str, valid: Iterable[str]) -> str:
    """Sentence part that helps with a wrong name: the nearest valid one and the whole list."""
    valid = sorted(valid)
    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.0)
    return f"did you mean {close[0]!r}? valid: {', '.join(valid)}" if close else "there are none"


def fill(kind: type[OptionsT], values: Any, where: str) -> OptionsT:
    """A `kind` (dataclass) from a mapping as YAML gives it; None is the empty one.

    Raises ValueError, beginning with `where`, for what is no mapping, unknown keys, wrong types, and what the
    class itself refuses.
    """
    if values is None:
        values = {}
    if not isinstance(values, Mapping):
        raise ValueError(f"{where}: expected a mapping of options, got {values!r}")
    hints = typing.get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    for key in values:
        if key not in names:
            raise ValueError(f"{where}.{key}: unknown option; {nearest(str(key), names)}")
    try:
        return kind(**{key: _typed(value, hints[key], f"{where}.{key}") for key, value in values.items()})
    except TypeError as error:
        raise ValueError(f"{where}: {error}") from None


def _typed(value: Any, hint: Any, where: str) -> Any:
    for option in typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,):
        base = typing.get_origin(option) or option
        if base is typing.Literal:
            if value in typing.get_args(option):
                return value
            raise ValueError(
                f"{where}: unknown value {value!r}; {nearest(str(value), map(str, typing.get_args(option)))}"
            )
        if base is tuple and isinstance(value, (list, tuple)):
            member = typing.get_args(option)[0]
            return tuple(_typed(item, member, f"{where}[{index}]") for index, item in enumerate(value))
        if base is Path and isinstance(value, (str, Path)):
            return Path(value)
        if base is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
            try:
                return float(value)  # YAML reads 1e-3 as text
            except ValueError:
                continue
        if isinstance(value, bool) and base is not bool:
            continue
        if isinstance(base, type) and isinstance(value, base):
            return value
    raise ValueError(f"{where}: expected {getattr(hint, '__name__', hint)}, got {value!r}")
