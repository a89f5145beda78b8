"""Frozen configuration trees and strict overrides: an unknown key is an error that names the nearest valid
one."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

ConfigT = TypeVar("ConfigT")
# Metadata of a field that maps names to dataclasses: in files and overrides its members stand beside the
# other fields. The value is a function from the values that are read to the members' defaults by name.
INLINE = "inline"


def nearest(name: str, valid: Iterable[str]) -> str:
    """Sentence part that helps with a wrong name: the nearest valid one and the whole list."""
    valid = sorted(valid)
    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.0)
    return f"did you mean {close[0]!r}? valid: {', '.join(valid)}" if close else "none exist"


def override(config: ConfigT, values: Mapping[str, Any], where: str = "") -> ConfigT:
    """Copy of a frozen dataclass tree with `values` (nested mappings) put in; raises ValueError on unknown
    keys or wrong types.

    Members of a mapping of dataclasses are those that are there, unless their class says `may_be_added`.
    """
    hints = typing.get_type_hints(type(config))
    changes: dict[str, Any] = {}
    inline, members = inline_field(type(config)), {}
    if inline:
        members = {**inline.metadata[INLINE](values), **getattr(config, inline.name)}
        del hints[inline.name]
    for key, value in values.items():
        path = f"{where}.{key}" if where else str(key)
        if key in members:
            members[key] = _coerce(members[key], value, type(members[key]), path)
        elif key in hints:
            changes[key] = _coerce(getattr(config, key), value, hints[key], path)
        else:
            raise ValueError(f"{path}: unknown key; {nearest(str(key), [*hints, *members])}")
    if inline:
        changes[inline.name] = members
    try:
        return dataclasses.replace(config, **changes)  # type: ignore[type-var]
    except ValueError as error:
        raise ValueError(f"{where or type(config).__name__}: {error}") from None


def inline_field(kind: Any) -> dataclasses.Field[Any] | None:
    """The field of a dataclass that is marked INLINE."""
    return next((item for item in dataclasses.fields(kind) if INLINE in item.metadata), None)


def plain_fields(config: Any) -> dict[str, Any]:
    """A dataclass as its fields, the members of an INLINE one among them."""
    found: dict[str, Any] = {}
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        found |= value if INLINE in item.metadata else {item.name: value}
    return found


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
