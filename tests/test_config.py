"""Overrides are strict: unknown keys, wrong types and wrong values are named."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from pretrain.config import from_json, nearest, override, to_json


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = 0.1
    mode: Literal["fast", "slow"] = "fast"


@dataclass(frozen=True, kw_only=True)
class Outer:
    steps: int = 3
    names: tuple[str, ...] = ("a",)
    inner: Inner = field(default_factory=Inner)
    parts: dict[str, Inner] = field(default_factory=lambda: {"one": Inner()})
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ValueError(f"steps must not be negative, got {self.steps}")


def test_nested_values_are_put_in() -> None:
    changed = override(
        Outer(),
        {
            "inner": {"rate": "1e-3", "mode": "slow"},
            "parts": {"one": {"rate": 2}},
            "names": ["b", "c"],
            "limit": 4,
        },
    )
    assert changed == Outer(
        inner=Inner(rate=1e-3, mode="slow"), parts={"one": Inner(rate=2.0)}, names=("b", "c"), limit=4
    )
    assert override(changed, {"limit": None}).limit is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"stepz": 1}, "stepz: unknown key; did you mean 'steps'"),
        ({"inner": {"rat": 1}}, "inner.rat: unknown key; did you mean 'rate'"),
        ({"parts": {"two": {}}}, "parts.two: unknown key; did you mean 'one'"),
        ({"inner": {"mode": "fats"}}, "inner.mode: unknown value 'fats'; did you mean 'fast'"),
        ({"steps": "many"}, "steps: expected"),
        ({"steps": True}, "steps: expected"),
        ({"steps": -1}, "steps must not be negative, got -1"),
        ({"inner": 3}, "inner: expected a mapping"),
    ],
)
def test_mistakes_are_named(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        override(Outer(), values)


def test_nearest_lists_what_is_valid() -> None:
    assert nearest("mimi", ["nava_6b", "mini"]) == "did you mean 'mini'? valid: mini, nava_6b"


@dataclass(frozen=True, kw_only=True)
class Numbers:
    rate: float = 0.1
    either: float | None = None
    pair: tuple[float, float] = (0.9, 0.99)
    named: Mapping[str, float] = field(default_factory=dict)
    free: Any = None


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, "nan", "-.inf"])
@pytest.mark.parametrize(
    ("key", "put"),
    [
        ("rate", lambda number: number),
        ("either", lambda number: number),
        ("pair", lambda number: [0.5, number]),
        ("named", lambda number: {"a": 1.0, "b": number}),
    ],
)
def test_numbers_of_settings_are_finite(key, put, number) -> None:
    with pytest.raises(ValueError, match=key):
        override(Numbers(), {key: put(number)})


def test_free_values_are_finite_too() -> None:
    assert override(Numbers(), {"free": {"a": [1.0, "nan"]}}).free == {"a": [1.0, "nan"]}
    with pytest.raises(ValueError, match="free: expected finite numbers"):
        override(Numbers(), {"free": {"a": [1.0, math.nan]}})


def test_what_was_written_is_read_as_it_is() -> None:
    assert from_json(Numbers, to_json(Numbers(rate=math.inf))).rate == math.inf


@dataclass(frozen=True)
class Recorded:
    rate: float
    kept: int = 3


def test_a_file_of_an_earlier_version_has_the_defaults_of_newer_fields() -> None:
    assert from_json(Recorded, {"rate": 0.5}) == Recorded(0.5)
    with pytest.raises(ValueError, match="config: rate: missing"):
        from_json(Recorded, {"kept": 3}, "config")
    with pytest.raises(ValueError, match=r"config\.kepp: unknown field; did you mean 'kept'"):
        from_json(Recorded, {"rate": 0.5, "kepp": 3}, "config")
