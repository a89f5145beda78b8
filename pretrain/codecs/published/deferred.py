"""Networks that load when they are first asked something: to decode a clip must not wait for 11 GB of text encoder."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Deferred(Generic[Value]):
    """`make()`, called once whichever thread asks first; a failure is raised and tried again at the next call."""

    def __init__(self, make: Callable[[], Value]) -> None:
        self._make, self._lock = make, Lock()
        self._made: list[Value] = []

    def __call__(self) -> Value:
        with self._lock:
            if not self._made:
                self._made.append(self._make())
            return self._made[0]

    @property
    def loaded(self) -> bool:
        return bool(self._made)


def device_named(name: str) -> str:
    """`auto` is the current GPU where there is one, else the CPU; ValueError for a device that is not here."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name != "cpu" and not (name.startswith("cuda") and torch.cuda.is_available()):
        raise ValueError(f"codec device: {name!r} is not here; set auto, cpu" + (" or cuda" if torch.cuda.is_available() else ""))
    return name
