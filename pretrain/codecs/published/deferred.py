"""Networks loaded on first use: decoding a clip does not load 11 GB of text encoder. Parked ones are on their
device only while they work."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from threading import Lock
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from rewards.parking import Parking

Value = TypeVar("Value")
Returned = TypeVar("Returned")
Given = ParamSpec("Given")


class PartError(OSError):
    """A codec part is missing or damaged: not the clip's fault, so no reason to reject a manifest row."""


class Deferred(Generic[Value]):
    """`make()`, called once, thread-safe. Its ValueError or FileNotFoundError is PartError at every call.

    parked_from: the device that `make` puts the networks on; they wait in the host's memory while nobody is
    `working` with them. "" = they stay where they are.
    """

    def __init__(self, make: Callable[[], Value], parked_from: str = "") -> None:
        self._make, self._lock = make, Lock()
        self._made: list[Value] = []
        self._parking = Parking(parked_from, self._networks)

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

    def working(self) -> AbstractContextManager[None]:
        """The networks are on their device inside, for any number of threads at once."""
        return self._parking.working()

    def _networks(self) -> Iterable[Any]:
        for made in self._made:
            parts: tuple[Any, ...] = made if isinstance(made, tuple) else (made,)
            yield from (part for part in parts if hasattr(part, "parameters"))  # a tokenizer has none


def on_device(
    method: Callable[Concatenate[Any, Given], Returned],
) -> Callable[Concatenate[Any, Given], Returned]:
    """A codec's method during which its `networks`, where they are `Deferred`, are on their device."""

    @wraps(method)
    def working(codec: Any, *args: Given.args, **kwargs: Given.kwargs) -> Returned:
        networks = codec.networks
        with networks.working() if isinstance(networks, Deferred) else nullcontext():
            return method(codec, *args, **kwargs)

    return working


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
