"""What recipes have in common: parts that rewards share, options that many have, weights that are not
there."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

PartT = TypeVar("PartT")
SPEED_ONLY = {"speed_only": True}  # metadata of an option that changes no score


class Shared:
    """Parts that several rewards use, built once; what can be closed is closed with `stack`."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._parts: dict[Hashable, Any] = {}

    def get(self, key: Hashable, make: Callable[[], PartT]) -> PartT:
        if key not in self._parts:
            part: Any = make()
            if hasattr(part, "close"):
                self._stack.callback(part.close)
            self._parts[key] = part
        return self._parts[key]


@dataclass(frozen=True)
class NoOptions:
    """Nothing to set."""


@dataclass(frozen=True)
class WeightsOptions:
    """A file or folder of weights from elsewhere; empty sha256 = any file, its digest is told."""

    weights: Path | None = None
    sha256: str = ""


class WeightsMissing(ValueError):
    """A reward was asked for without the file of weights it needs."""


def needed(path: Path | None, name: str, option: str = "weights") -> Path:
    """The path; raises WeightsMissing naming the option to set."""
    if path is None:
        raise WeightsMissing(f"{name}: weights missing; set {name}.{option}=PATH")
    return path
