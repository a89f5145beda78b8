"""Networks loaded on first use: decoding a clip does not load 11 GB of text encoder."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import Generic, TypeVar

Value = TypeVar("Value")


class PartError(OSError):
    """A codec part is missing or damaged: not the clip's fault, so no reason to reject a manifest row."""


class Deferred(Generic[Value]):
    """`make()`, called once, thread-safe. Its ValueError or FileNotFoundError is PartError at every call."""

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

    A GPU is returned with its index: the current device is per thread, and readers run in other threads.
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
