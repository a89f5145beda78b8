"""A fault-tolerant group of trainer ranks: calls go to all, and a group that lost a rank is rebuilt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from finetune.checkpoint import FOLDER, newest
from finetune.executor import RestoredFromCheckpoint
from orchestration.cluster import Group
from orchestration.futures import Futures, LostRank
from pretrain.titan.checkpoints import remove_incomplete


class RankGroup:
    """build: starts a group of processes. attend: waits for futures while other work proceeds.

    Raises ValueError or OSError in one line where a rank cannot be built, and OSError after `max_restarts`
    groups were lost.
    """

    def __init__(
        self,
        out: Path,
        world_size: int,
        build: Callable[[], Group],
        futures: Futures,
        attend: Callable[[Sequence[Any]], None],
        max_restarts: int,
    ) -> None:
        self.out, self.world_size, self.build, self.futures = out, world_size, build, futures
        self.attend, self.left = attend, max_restarts
        self.lost = 0
        self.base_id = ""
        try:
            self.group = self._built()
        except LostRank as error:
            self._rebuild(error)

    def do(self, method: str, *arguments: Any) -> list[Any]:
        """Call a learner method on every rank; raises as `call` does."""
        return self.call("do", [[method, *arguments]] * self.world_size)

    def call(self, method: str, arguments: Sequence[Sequence[Any]]) -> list[Any]:
        """Call with separate arguments per rank; returns all results.

        Raises RestoredFromCheckpoint after the loss of a rank: the new group needs `load`.
        """
        try:
            return self._attended(self.group.call(method, arguments))
        except LostRank as error:
            self._rebuild(error)
            raise RestoredFromCheckpoint from error

    def _attended(self, futures: list[Any]) -> list[Any]:
        stoppable, self.futures.stoppable = self.futures.stoppable, False
        self.futures.watch(futures)
        try:
            self.attend(futures)
            return self.futures.watched()
        finally:
            self.futures.stoppable = stoppable
            self.futures.watch(())

    def _rebuild(self, error: LostRank) -> None:
        while True:
            self.lost += 1
            if self.lost > self.left:
                state = f"the checkpoint of round {newest(self.out)} is intact; run again to resume"
                raise OSError(f"a rank that trains was lost {self.lost} times ({error}); {state}") from None
            self.group.end()
            try:
                self.group = self._built()
                return
            except LostRank as again:
                error = again

    def _built(self) -> Group:
        self.group = group = self.build()
        host, port = self._attended([group.actors[0].address.remote()])[0]
        try:
            self.base_id = self._attended(group.call("join", [(host, port)] * self.world_size))[0]
        except ValueError as error:
            if "EADDRINUSE" in str(error):  # another process took the port first
                raise LostRank(str(error)) from None
            raise
        remove_incomplete(self.out / FOLDER)  # safe: `join` has waited for the previous ranks to exit
        return group
