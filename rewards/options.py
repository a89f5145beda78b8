"""Strict reading of mappings into frozen dataclasses.

An unknown key, a wrong type or an invalid value raises a one-line ValueError with its path and the nearest
valid name. Rewards take it from here, everything else from `pretrain.config`. Fields may be of any type of
JSON or YAML, Path, Literal, unions, tuples, mappings and further dataclasses. Members of a mapping of
dataclasses are those that the default has, unless the field's metadata (MEMBER, INLINE) overrides that.
"""

from __future__ import annotations

import dataclasses
import datetime
import difflib
import math
import re
import types
import typing
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
# Field metadata: the class of additional members of a mapping from names to dataclasses.
MEMBER = "member"
# Field metadata: the members are stored beside the other fields in files and overrides; the value is a
# function from the values read to the members' defaults by name.
INLINE = "inline"
# Field metadata: files leave the field out at its default, so that what is identified by its settings, and
# was made before there was such a field, is still what is asked for.
ADDED = "added"
MAX_WHOLE = 2**64  # of whole numbers in files
MAX_YAML_BYTES = 16 * 2**20
MAX_YAML_DEPTH = 100
MAX_YAML_NODES = 1_000_000
_UNFIT = object()
_TRUTHS = {
    "yes": True,
    "on": True,
    "no": False,
    "off": False,
}  # of YAML 1.1, for fields that are true or false


@dataclasses.dataclass(frozen=True)
class Bounds:
    """An interval of numbers that a field may have; NaN is in none.

    above: `low` itself is outside; below: `high` itself is; endless: infinity is inside.
    """

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False
    endless: bool = False

    def __contains__(self, value: float) -> bool:
        """Whether it is in the interval."""
        over = value > self.low if self.above else value >= self.low
        under = value < self.high if self.below else value <= self.high
        return over and under and (self.endless or math.isfinite(value))

    def __str__(self) -> str:
        ends = []
        if self.low > -math.inf:
            ends.append(f"{'above' if self.above else 'at least'} {self.low:g}")
        if self.high < math.inf:
            ends.append(f"{'below' if self.below else 'at most'} {self.high:g}")
        return " and ".join(ends) or "a finite number"


FINITE = Bounds()
NOT_NEGATIVE, POSITIVE = Bounds(0), Bounds(0, above=True)
FROM_ONE = Bounds(1)
SHARE, BELOW_ONE = Bounds(0, 1), Bounds(0, 1, below=True)


def check_bounds(config: object, bounds: Mapping[str, Bounds], where: str = "") -> None:
    """Raises ValueError naming the first field of `config` that is outside, what it is and may be.

    where: in front of the field's name, such as `optimizer.`.
    """
    for name, allowed in bounds.items():
        value = getattr(config, name)
        if value not in allowed:
            raise ValueError(f"{where}{name} must be {allowed}, got {value:g}")


def nearest(name: str, valid: Iterable[str]) -> str:
    """Part of an error message for an unknown name: the nearest valid one and the full list."""
    valid = sorted(valid)
    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.0)
    return f"did you mean {close[0]!r}? valid: {', '.join(valid)}" if close else "there are none"


def read_yaml(content: str | bytes) -> Any:
    """A YAML document in which yes, no, on and off are words, as in YAML 1.2, and no key is given twice.

    Raises yaml.YAMLError, also for a document that is made to take time or memory: of more than
    MAX_YAML_BYTES, nested without end, with aliases of aliases or whole numbers beyond 64 bits.
    """
    import yaml

    if len(content) > MAX_YAML_BYTES:
        raise yaml.YAMLError(f"more than {MAX_YAML_BYTES >> 20} MiB")
    try:
        return yaml.load(content, _yaml_loader())  # a SafeLoader
    except RecursionError:
        raise yaml.YAMLError("nested too deeply") from None
    except (
        ValueError,
        OverflowError,
        TypeError,
        AttributeError,
    ) as error:  # of a date that is none, and the like
        if isinstance(error, UnicodeDecodeError):
            raise
        raise yaml.YAMLError(one_line(error, 200)) from None


@cache
def _yaml_loader() -> Any:
    import yaml
    from yaml.scanner import ScannerError

    class Loader(yaml.SafeLoader):
        """YAML 1.1 reads the word `yes` of a vocabulary as true, and keeps the last of equal keys."""

        yaml_implicit_resolvers = {
            first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
            for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }

        def fetch_flow_collection_start(self, TokenClass: Any) -> None:
            if self.flow_level >= MAX_YAML_DEPTH:  # each level makes every later sign slower to read
                raise ScannerError(None, None, "nested too deeply", self.get_mark())
            super().fetch_flow_collection_start(TokenClass)

        def get_single_node(self) -> Any:
            node = super().get_single_node()
            _check_size(node, {})
            return node

        def construct_yaml_int(self, node: Any) -> int:
            value = super().construct_yaml_int(node) if len(node.value) <= 80 else MAX_WHOLE + 1
            if abs(value) > MAX_WHOLE:
                problem = "a whole number beyond 64 bits"
                raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
            return value

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            seen: set[str] = set()
            for key, _ in node.value:
                if key.tag != "tag:yaml.org,2002:merge" and isinstance(key.value, str):
                    if key.value in seen:
                        problem = f"the key {key.value!r} is given twice, keep one"
                        raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
                    seen.add(key.value)
            return super().construct_mapping(node, deep)

    Loader.add_constructor("tag:yaml.org,2002:int", Loader.construct_yaml_int)
    truth = re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z")
    Loader.add_implicit_resolver("tag:yaml.org,2002:bool", truth, list("tTfF"))
    return Loader


def _check_size(node: Any, seen: dict[int, int]) -> int:
    """Nodes of a document with its aliases written out. Raises yaml.YAMLError for too many of them."""
    import yaml

    if (known := seen.get(id(node))) is not None:
        if not known:
            raise yaml.YAMLError("an alias that holds itself")
        return known
    seen[id(node)] = 0
    inside = node.value if isinstance(node, (yaml.SequenceNode, yaml.MappingNode)) else ()
    children = (child for item in inside for child in (item if isinstance(item, tuple) else (item,)))
    total = 1 + sum(_check_size(child, seen) for child in children)
    if total > MAX_YAML_NODES:
        raise yaml.YAMLError(f"more than {MAX_YAML_NODES:,} values with its aliases written out")
    seen[id(node)] = total
    return total


def fill(kind: type[T], values: Any, where: str) -> T:
    """A `kind` from a mapping of options as YAML gives it; None is the empty one."""
    return _Reader("option").read(kind, {} if values is None else values, where)


def override(config: T, values: Mapping[str, Any], where: str = "") -> T:
    """Copy of a dataclass tree with `values` (nested mappings) put in."""
    return _Reader("key").read(type(config), values, where, config)


def from_json(kind: type[T], values: Mapping[str, Any], where: str = "") -> T:
    """The tree that `to_json` gave. Fields that a file of an earlier version lacks have their defaults.

    Raises ValueError for a field that is not known, as of a later version, and for a required one missing.
    """
    return _Reader("field", whole=True).read(kind, values, where)


def to_json(value: Any) -> Any:
    """Dataclass tree -> plain dicts and lists."""
    if dataclasses.is_dataclass(value):
        return {name: to_json(item) for name, item in plain_fields(value).items()}
    if isinstance(value, Mapping):
        return {key: to_json(item) for key, item in value.items()}
    return [to_json(item) for item in value] if isinstance(value, (list, tuple)) else value


def plain_fields(config: Any) -> dict[str, Any]:
    """A dataclass as its fields, the members of an INLINE one among them, without ADDED ones at default."""
    found: dict[str, Any] = {}
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if ADDED in item.metadata and _is_default(item, value):
            continue
        found |= value if INLINE in item.metadata else {item.name: value}
    return found


def _is_default(item: dataclasses.Field[Any], value: Any) -> bool:
    none = dataclasses.MISSING
    return value == (item.default if item.default_factory is none else item.default_factory())


def one_line(error: object, limit: int | None = None) -> str:
    """An error's text on one line, its class where it has none."""
    return " ".join(str(error).split())[:limit] or type(error).__name__


def _number(value: Any) -> float | None:
    """A number, also one written as text; None for anything else."""
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        with suppress(ValueError, OverflowError):
            return float(value)
    return None


def _is_finite(value: Any) -> bool:
    """No number anywhere in a value of JSON or YAML is NaN or infinite."""
    if isinstance(value, Mapping):
        return all(map(_is_finite, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def _required(fields: Mapping[str, dataclasses.Field[Any]]) -> list[str]:
    """Names of those without a default."""
    none = dataclasses.MISSING
    return [name for name, item in fields.items() if item.default is none and item.default_factory is none]


@dataclasses.dataclass(frozen=True)
class _Reader:
    noun: str  # what a key is called
    whole: bool = False  # every field without a default must be there

    def read(self, kind: type[T], values: Any, where: str, base: Any = None) -> T:
        """Read a `kind`, or `base` updated with `values`.

        Raises ValueError, including for values that the class rejects.
        """
        if not isinstance(values, Mapping):
            raise ValueError(f"{where}: expected a mapping of {self.noun}s, got {values!r}")
        fields = {item.name: item for item in dataclasses.fields(kind)}  # type: ignore[arg-type]
        hints, members, changes = typing.get_type_hints(kind), {}, {}
        inline = next((item for item in fields.values() if INLINE in item.metadata), None)
        if inline:
            members = changes[inline.name] = {
                **inline.metadata[INLINE](values),
                **getattr(base, inline.name, {}),
            }
            del fields[inline.name]
        names = {*fields, *members}
        if self.whole and (missing := [name for name in _required(fields) if name not in values]):
            raise ValueError(f"{where or kind.__name__}: {', '.join(missing)}: missing; was the file cut?")
        for key, value in values.items():
            path = f"{where}.{key}" if where else str(key)
            if key in members:
                members[key] = self._value(value, type(members[key]), path, members[key])
            elif key in fields:
                member = fields[key].metadata.get(MEMBER)
                changes[key] = self._value(value, hints[key], path, getattr(base, key, None), member)
            else:
                raise ValueError(f"{path}: unknown {self.noun}; {nearest(str(key), names)}")
        try:
            return kind(**changes) if base is None else dataclasses.replace(base, **changes)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where or kind.__name__}: {error}") from None

    def _value(self, value: Any, hint: Any, where: str, base: Any, member: type | None = None) -> Any:
        if dataclasses.is_dataclass(base) and isinstance(value, Mapping):
            return self.read(type(base), value, where, base)
        union = typing.get_origin(hint) in (types.UnionType, typing.Union)
        options = typing.get_args(hint) if union else (hint,)
        for option in options:
            kind = typing.get_origin(option) or option
            if isinstance(value, Mapping) and isinstance(kind, type) and issubclass(kind, Mapping):
                return self._members(value, option, where, base if isinstance(base, Mapping) else {}, member)
            if kind is tuple and isinstance(value, (list, tuple)):
                return self._items(value, option, where)
            if dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
                return self.read(kind, value, where)  # type: ignore[arg-type]
            if (found := self._scalar(value, kind, option)) is not _UNFIT:
                return found
        for option in options:
            kind = typing.get_origin(option) or option
            if kind is typing.Literal:
                advice = nearest(str(value), map(str, typing.get_args(option)))
                raise ValueError(f"{where}: unknown value {value!r}; {advice}")
            if dataclasses.is_dataclass(kind) or (isinstance(kind, type) and issubclass(kind, Mapping)):
                raise ValueError(f"{where}: expected a mapping of {self.noun}s, got {value!r}")
        known = float not in options or _number(value) is None
        wanted = getattr(hint, "__name__", hint) if known and _is_finite(value) else "finite numbers"
        text = str in options and isinstance(value, (bool, int, float, datetime.date))
        advice = "; put it in quotes to have it as text" if text else ""
        raise ValueError(f"{where}: expected {wanted}, got {value!r}{advice}")

    def _members(
        self,
        values: Mapping[str, Any],
        hint: Any,
        where: str,
        base: Mapping[str, Any],
        member: type | None,
    ) -> dict[str, Any]:
        """A mapping's values; where they are dataclasses, those of `base` stay and are changed."""
        inner = (typing.get_args(hint)[1:] or (Any,))[0]
        base = base if any(map(dataclasses.is_dataclass, base.values())) else {}
        found = {}
        for name, value in values.items():
            path = f"{where}.{name}"
            if isinstance(name, bool) or not isinstance(name, (str, int)):
                raise ValueError(
                    f"{path}: expected a name, got {name!r}; put it in quotes to have it as text"
                )
            if base and name not in base and not member:
                raise ValueError(f"{path}: unknown {self.noun}; {nearest(str(name), base)}")
            found[str(name)] = self._value(value, member or inner, path, base.get(name))
        return {**base, **found}

    def _items(self, values: list[Any] | tuple[Any, ...], hint: Any, where: str) -> tuple[Any, ...]:
        kinds = typing.get_args(hint) or (Any, ...)
        if kinds[-1] is ...:
            kinds = (kinds[0],) * len(values)
        if len(values) != len(kinds):
            raise ValueError(f"{where}: expected {len(kinds)} values, got {values!r}")
        pairs = enumerate(zip(values, kinds, strict=True))
        return tuple(self._value(value, kind, f"{where}[{index}]", None) for index, (value, kind) in pairs)

    def _scalar(self, value: Any, kind: Any, option: Any) -> Any:
        if kind is Any:
            return value if self.whole or _is_finite(value) else _UNFIT
        if kind is typing.Literal:
            return value if value in typing.get_args(option) else _UNFIT
        if kind is bool and isinstance(value, str):
            return _TRUTHS.get(value.lower(), _UNFIT)
        if kind is Path and isinstance(value, str):
            return Path(value)
        if kind is float and (number := _number(value)) is not None:  # YAML reads 1e-3 as text
            if self.whole and not isinstance(value, str):
                return value  # returned unchanged: identities are hashes of the written form
            return number if math.isfinite(number) else _UNFIT
        fits = isinstance(kind, type) and isinstance(value, kind)
        return value if fits and (kind is bool or not isinstance(value, bool)) else _UNFIT
