"""Training data of a stage: an exactly resumable stream of micro-batches, independent of the rank count."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from pretrain.config import nearest
from pretrain.data.stream.collate import CollatedBatch, collate, num_tokens
from pretrain.data.stream.order import Order
from pretrain.data.stream.sample_set import SampleSet
from pretrain.randomness import stable_hash
from pretrain.schedule import StageConfig, task_of_step
from pretrain.tasks import TASKS
from pretrain.types import Task

Taken = list[tuple[int, int]]  # (number of the sample in its set, epoch)


@dataclass(frozen=True)
class Slice:
    """Which part of the global batch this rank takes, in micro-batches of `local` samples."""

    rank: int = 0
    world_size: int = 1
    local_batch_size: int = 1


class _Made(NamedTuple):
    """A micro-batch and where the stream stands once it was used."""

    batch: CollatedBatch
    step: int
    read: dict[str, int]


class StageLoader:
    """Iterates (batch dict, labels) micro-batches for one rank, forever.

    A step's task, set, bucket and samples are pure functions of (seed, stage, step, how far each bucket was
    read), so every rank knows the whole global batch and takes its part. Samples of a bucket come without
    replacement, in an order drawn anew every epoch. `prefetch` micro-batches are made ahead by a thread; the
    state is that of what was used. What goes wrong there, as a damaged shard, is raised where its micro-batch
    is requested. Raises ValueError where the stage names an unknown set or the batch does not split.
    """

    def __init__(
        self,
        stage: StageConfig,
        sets: Mapping[str, SampleSet],
        seed: int,
        global_batch_size: int,
        part: Slice,
        prefetch: int = 0,
    ) -> None:
        if global_batch_size % (part.world_size * part.local_batch_size):
            raise ValueError(
                f"global_batch_size {global_batch_size} must be a multiple of ranks x local_batch_size = "
                f"{part.world_size} x {part.local_batch_size}"
            )
        for name, weight in (*stage.sets.items(), *stage.audio_sets.items()):
            if weight > 0 and name not in sets:
                raise ValueError(f"{stage.name}.sets: unknown data set {name!r}; {nearest(name, sets)}")
        self.stage, self.sets, self.part, self.prefetch = stage, sets, part, prefetch
        self.seed, self.global_batch_size = stable_hash(seed, stage.name), global_batch_size
        self.base_seed = seed
        self.step = 0
        self.read: dict[str, int] = {}  # samples taken so far, per "set/bucket"
        self._orders: dict[str, tuple[int, Order]] = {}

    def __iter__(self) -> Iterator[tuple[CollatedBatch, Tensor]]:
        with closing(prefetched(self._make(self.step, self.read), self.prefetch)) as made:
            for batch, self.step, self.read in made:
                # torchtitan counts tokens by the size of the labels; an expanded zero costs no memory
                yield batch, torch.zeros(1, dtype=torch.int8).expand(num_tokens(batch))

    def state_dict(self) -> dict[str, Any]:
        """Position, exact between steps; one string, since DCP only loads keys that exist before loading."""
        return {"position": json.dumps({"step": self.step, "read": self.read}, sort_keys=True)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        position = json.loads(state["position"])
        self.step, self.read = position["step"], position["read"]

    def _make(self, step: int, read: dict[str, int]) -> Iterator[_Made]:
        while True:
            step += 1
            task, source, key, count = self._drawn(step)
            where = f"{source.name}/{key}"
            start = read.get(where, 0)
            read = {**read, where: start + count}
            for rows in self._parts(source, self._take(source, key, start, count)):
                samples = [source.samples[index] for index, _ in rows]
                yield _Made(collate(samples, [epoch for _, epoch in rows], task), step, read)

    def clips_of_step(self, step: int) -> int:
        """Samples in the global batch of a step, over all ranks."""
        return self._drawn(step)[3]

    def _drawn(self, step: int) -> tuple[Task, SampleSet, str, int]:
        """A step's task, set, bucket and number of samples."""
        task, set_name = task_of_step(self.base_seed, self.stage, step)
        source = self.sets[set_name]
        key = source.bucket(stable_hash(self.seed, step, "bucket") / 2**63)
        return (
            task,
            source,
            key,
            self.global_batch_size * (self.stage.audio_only_batch_factor if not TASKS[task].video else 1),
        )

    def _take(self, source: SampleSet, key: str, start: int, count: int) -> Taken:
        """The samples at positions [start, start + count) of the bucket's endless stream."""
        members, taken = source.buckets[key], []
        for position in range(start, start + count):
            epoch, place = divmod(position, len(members))
            taken.append((int(members[self._order(source, key, epoch)[place]]), epoch))
        return taken

    def _order(self, source: SampleSet, key: str, epoch: int) -> Order:
        where = f"{source.name}/{key}"
        if where not in self._orders or self._orders[where][0] != epoch:
            self._orders[where] = (epoch, source.order(key, self.seed, where, epoch))
        return self._orders[where][1]

    def _parts(self, source: SampleSet, taken: Taken) -> Iterator[Sequence[tuple[int, int]]]:
        """This rank's micro-batches."""
        local = self.part.local_batch_size * (len(taken) // self.global_batch_size)
        # sorted: a rank's samples come from few shards of the window
        if source.by_shards:
            per_rank = len(taken) // self.part.world_size
            mine = sorted(taken)[self.part.rank * per_rank : (self.part.rank + 1) * per_rank]
            yield from (mine[start : start + local] for start in range(0, per_rank, local))
        else:
            yield from (
                taken[start : start + local]
                for start in range(self.part.rank * local, len(taken), self.part.world_size * local)
            )


_Item = TypeVar("_Item")
_POLL_S = 0.1
_END = object()


def prefetched(items: Iterator[_Item], depth: int) -> Generator[_Item, None, None]:
    """The same items, up to `depth` of them made in advance by a thread; 0 = none, and no thread.

    An error of `items` is raised here, as it is, in its turn. Closing this iterator ends the thread and
    closes `items`.
    """
    if depth == 0:
        yield from items
        return
    made: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(depth)
    stop = threading.Event()
    thread = threading.Thread(target=_make, args=(items, made, stop), name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            item, error = made.get()
            if error is not None:
                raise error
            if item is _END:
                return
            yield item
    finally:
        stop.set()
        thread.join()


def _make(
    items: Iterator[_Item], made: queue.Queue[tuple[Any, BaseException | None]], stop: threading.Event
) -> None:
    try:
        for item in items:
            if not _put(made, (item, None), stop):
                break
        else:
            _put(made, (_END, None), stop)
    except BaseException as error:  # raised again in the consumer
        _put(made, (None, error), stop)
    finally:
        close = getattr(items, "close", None)
        if close is not None:
            close()


def _put(
    made: queue.Queue[tuple[Any, BaseException | None]],
    entry: tuple[Any, BaseException | None],
    stop: threading.Event,
) -> bool:
    """Waits for space in the queue; False after `stop`."""
    while not stop.is_set():
        try:
            made.put(entry, timeout=_POLL_S)
            return True
        except queue.Full:
            continue
    return False
