"""Networks that load when they are first asked something: to decode a clip must not wait for 11 GB of text
encoder."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import Generic, TypeVar

Value = TypeVar("Value")


class PartError(OSError):
    """A part of the codec is missing, damaged or another one: no fault of the clip that asked for it, so no
    reason to reject a row."""


class Deferred(Generic[Value]):
    """`make()`, called once whichever thread asks first. Its ValueError or FileNotFoundError comes out as
    PartError, at every call."""

    def __init__(self, make: Callable[[], Value]) -> None:
        self._make, self._lock = make, Lock()
        self._made: list[Value] = []

    def __call__(self) -> Value:
        with self._lock:
            if not self._made:
                try:
                    self._made.append(self._make())
                except (ValueError, FileNotFoundError) as error:
                    raise PartError(str(error)) from error
            return self._made[0]

    @property
    def loaded(self) -> bool:
        return bool(self._made)


def device_named(name: str) -> str:
    """`auto` is the current GPU where there is one, else the CPU; ValueError for a device that is not here.

    A GPU comes out with its number: the current one belongs to a thread, and readers in other threads would
    ask another GPU.
    """
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "cpu" or (name == "auto" and not count):
        return "cpu"
    if name in ("auto", "cuda") and count:
        return f"cuda:{torch.cuda.current_device()}"
    if name not in [f"cuda:{index}" for index in range(count)]:
        raise ValueError(
            f"codec device: {name!r} is not here; set auto or cpu"
            + (f", or cuda:0 to cuda:{count - 1}" if count else "")
        )
    return name
