"""Frozen configuration trees with strict overrides: an unknown key raises with the nearest valid one."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

ConfigT = TypeVar("ConfigT")


def nearest(name: str, valid: Iterable[str]) -> str:
    """Sentence part that helps with a wrong name: the nearest valid one and the whole list."""
    valid = sorted(valid)
    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.0)
    return f"did you mean {close[0]!r}? valid: {', '.join(valid)}" if close else "none exist"


def override(config: ConfigT, values: Mapping[str, Any], where: str = "") -> ConfigT:
    """Copy of a frozen dataclass tree with nested `values`; ValueError on unknown keys or wrong types.

    Members of a mapping of dataclasses are those that are there, unless their class says `may_be_added`.
    """
    hints = typing.get_type_hints(type(config))
    changes: dict[str, Any] = {}
    for key, value in values.items():
        path = f"{where}.{key}" if where else str(key)
        if key not in hints:
            raise ValueError(f"{path}: unknown key; {nearest(str(key), hints)}")
        changes[key] = _coerce(getattr(config, key), value, hints[key], path)
    try:
        return dataclasses.replace(config, **changes)  # type: ignore[type-var]
    except ValueError as error:
        raise ValueError(f"{where or type(config).__name__}: {error}") from None


def _coerce(current: Any, value: Any, hint: Any, path: str) -> Any:
    if dataclasses.is_dataclass(current):
        if not isinstance(value, Mapping):
            raise ValueError(f"{path}: expected a mapping of fields, got {value!r}")
        return override(current, value, path)
    if isinstance(current, Mapping):
        if not isinstance(value, Mapping):
            raise ValueError(f"{path}: expected a mapping of names, got {value!r}")
        if any(map(dataclasses.is_dataclass, current.values())):
            return {
                **current,
                **{key: _coerce_member(current, key, item, path) for key, item in value.items()},
            }
        member = typing.get_args(hint)[1]
        return {str(key): _scalar(item, member, f"{path}.{key}") for key, item in value.items()}
    if isinstance(current, tuple) and isinstance(value, list):
        return tuple(value)
    return _scalar(value, hint, path)


def _coerce_member(current: Mapping[str, Any], key: str, value: Any, path: str) -> Any:
    member = type(next(iter(current.values())))
    if key not in current and getattr(member, "may_be_added", False):
        return _coerce(member(), value, member, f"{path}.{key}")
    if key not in current:
        raise ValueError(f"{path}.{key}: unknown key; {nearest(str(key), current)}")
    return _coerce(current[key], value, type(current[key]), f"{path}.{key}")


def _scalar(value: Any, hint: Any, path: str) -> Any:
    if hint is Any:
        return value
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for option in options:
        base = typing.get_origin(option) or option
        if base is typing.Literal:
            if value in typing.get_args(option):
                return value
            raise ValueError(
                f"{path}: unknown value {value!r}; {nearest(str(value), map(str, typing.get_args(option)))}"
            )
        if base is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
            try:
                return float(value)  # YAML reads 1e-3 as text
            except ValueError:
                continue
        if isinstance(value, bool) and base is not bool:
            continue
        if isinstance(base, type) and isinstance(value, base):
            return value
    raise ValueError(f"{path}: expected {getattr(hint, '__name__', hint)}, got {value!r}")
