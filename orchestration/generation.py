"""A generation on Ray: actors that hold the model each take the next batch when they are free.

A lost actor is replaced and its batch made again; batches are those of a single process, so the clips are the
same. Nodes must see all paths of the order; `--to` may be a URL.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Generic, TypeVar

from orchestration.cluster import LOCAL, Place, connected
from orchestration.config import RayConfig, Workers
from orchestration.futures import is_lost, own_error, short_line
from pretrain.generate import Spread
from pretrain.generation.maker import ClipMaker
from pretrain.generation.order import ClipDone, ClipOrder

MOST_LOST = 5  # workers, without a batch that was made between them
_WorkerT = TypeVar("_WorkerT")
_FutureT = TypeVar("_FutureT")
_ResultT = TypeVar("_ResultT")


class LostWorkerError(Exception):
    """A worker is gone, and with it what it was doing."""


class ClipWorker:
    """Makes batches of one order; the model is loaded at the first call."""

    def __init__(self, order: ClipOrder) -> None:
        import torch

        torch.set_num_threads(order.threads)
        self.order = order

    @cached_property
    def maker(self) -> ClipMaker:
        return self.order.load()

    def ready(self) -> None:
        """Raises ValueError or FileNotFoundError in one line where the model cannot be loaded."""
        _ = self.maker

    def make(self, number: int) -> list[ClipDone]:
        """Sample, decode and write a batch; what became of each of its missing clips."""
        latents = self.order.latents(number, self.maker)
        self.order.keep(number, latents)
        return list(self.order.write(number, latents, self.maker))


@dataclass
class Hands(Generic[_WorkerT, _FutureT, _ResultT]):
    """Workers that take tasks as they are free, over plain callables, so that no Ray is needed to test it.

    hire: a new worker; start: gives it a task; wait: some finished futures; result: of one, or raises
    LostWorkerError; dismiss: ends a lost one, which may live yet. A lost worker's task goes to the next free
    one; raises OSError after MOST_LOST in a row.
    """

    hire: Callable[[], _WorkerT]
    start: Callable[[_WorkerT, int], _FutureT]
    wait: Callable[[Sequence[_FutureT]], Sequence[_FutureT]]
    result: Callable[[_FutureT], _ResultT]
    dismiss: Callable[[_WorkerT], object] = lambda worker: None
    workers: list[_WorkerT] = field(default_factory=list)
    lost: int = 0  # in a row

    def work(self, tasks: Sequence[int], count: int) -> Iterator[_ResultT]:
        """The result of each task, as it comes; `count` workers, hired where there are fewer."""
        left, running = deque(tasks), {}
        self.workers += [self.hire() for _ in range(count - len(self.workers))]
        free = deque(self.workers)
        while left or running:
            while left and free:
                worker, task = free.popleft(), left.popleft()
                running[self.start(worker, task)] = (worker, task)
            for future in self.wait(list(running)):
                worker, task = running.pop(future)
                try:
                    found = self.result(future)
                except LostWorkerError as error:
                    left.appendleft(task)
                    free.append(self._replace(worker, error))
                    continue
                self.lost = 0
                free.append(worker)
                yield found

    def prove(self, ask: Callable[[_WorkerT], _FutureT]) -> None:
        """One of the workers answers. Raises as `work`, and what it raises."""
        while True:
            try:
                self.result(ask(self.workers[0]))
                return
            except LostWorkerError as error:
                self._replace(self.workers[0], error)

    def _replace(self, worker: _WorkerT, error: Exception) -> _WorkerT:
        self.lost += 1
        if self.lost >= MOST_LOST:
            raise OSError(
                f"{self.lost} workers were lost without a batch made in between ({short_line(error)}); give "
                "them more memory, then run again to go on"
            )
        self.dismiss(worker)
        self.workers.remove(worker)
        self.workers.append(self.hire())
        return self.workers[-1]


def on_ray(config: RayConfig, address: str = LOCAL, insecure: bool = False) -> Spread:
    """Spread over `config.rollout.workers` actors of an embedded Ray, or of the cluster at `address`."""
    processes = config.rollout.workers if address == LOCAL else 1
    return Spread(partial(_run, config, address, insecure), processes)


def _run(
    config: RayConfig, address: str, insecure: bool, order: ClipOrder, begin: Callable[[], None]
) -> Iterator[ClipDone]:
    import ray

    count = max(1, min(config.rollout.workers, len(order.todo)))
    with _quiet_signals(), connected(address, config, 1, insecure):
        place = _place(config.rollout, address, order.threads, count)
        made = ray.remote(ClipWorker).options(**place.options(max_restarts=0))
        given = ray.put(order)
        hands: Hands[Any, Any, list[ClipDone]] = Hands(
            hire=lambda: made.remote(given),
            start=lambda worker, number: worker.make.remote(number),
            wait=lambda futures: ray.wait(list(futures), num_returns=1)[0],
            result=_result,
            dismiss=ray.kill,
        )
        hands.workers = [hands.hire() for _ in range(count)]
        hands.prove(lambda worker: worker.ready.remote())  # a model that cannot be loaded changes nothing
        begin()
        for clips in hands.work(order.todo, count):
            yield from clips


def _result(future: Any) -> Any:
    """Of a future. Raises LostWorkerError, OSError of one line where Ray fails, and what its worker raised: a
    ValueError or OSError as that, another error as a ValueError with its class."""
    import ray
    from ray.exceptions import RayError

    try:
        return ray.get(future)
    except RayError as error:
        if is_lost(error):
            raise LostWorkerError(str(error)) from None
        found = own_error(error)
        raise (ValueError if isinstance(found, ValueError) else OSError)(str(found)) from None


def _place(given: Workers, address: str, threads: int, count: int) -> Place:
    """Raises ValueError where Ray would wait forever for a worker's resources."""
    import ray

    there = ray.cluster_resources()
    gpus = given.num_gpus
    if gpus == -1:
        total = int(there.get("GPU", 0))
        gpus = 0.0 if not total else 1.0 if total >= count else int(1e4 * total / count) / 1e4
    cpus = given.num_cpus or float(threads)
    for name, needed in (("CPU", cpus), ("GPU", gpus)):
        if needed > there.get(name, 0) + 1e-6:
            raise ValueError(
                f"Ray at {address}: a worker needs {needed:g} {name}s and all of it has "
                f"{there.get(name, 0):g}; lower ray.rollout.num_{name.lower()}s"
            )
    return Place(cpus, gpus, given.runtime_env)


@contextmanager
def _quiet_signals() -> Iterator[None]:
    """`ray.init` installs handlers of its own; those that were there come back."""
    import signal

    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
