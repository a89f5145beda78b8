"""Networks that are on their device only while they work, so that many can take turns in one GPU's memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any


class Parking:
    """`networks()`, torch modules that exist by now, wait in the host's memory while nobody is `working` with
    them.

    device: where they work, such as "cuda:0"; "" or "cpu" = nothing ever moves.
    """

    def __init__(self, device: str, networks: Callable[[], Iterable[Any]]) -> None:
        self._device, self._networks = device, networks
        self._workers, self._moving = 0, Lock()

    @contextmanager
    def working(self) -> Iterator[None]:
        """The networks are on their device inside, for any number of threads at once."""
        with self._moving:
            if not self._workers:
                self._move(self._device)
            self._workers += 1
        try:
            yield
        finally:
            with self._moving:
                self._workers -= 1
                if not self._workers:
                    self._move("cpu")

    def _move(self, device: str) -> None:
        if self._device not in ("", "cpu"):
            for network in self._networks():
                network.to(device)


def parked(network: Any, device: str, park: bool) -> Parking:
    """Puts `network` on its device for good, or, with `park`, only while somebody works with it."""
    if not park:
        network.to(device)
    return Parking(device if park else "", lambda: (network,))
