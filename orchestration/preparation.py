"""Independent pieces of work, such as the raw videos of `nava prepare`, scheduled by Ray Data.

    with ray_workers("local", nproc=8) as workers:
        for place, answer in workers.each(work, items):  # as they are done
            ...

Ray Data schedules and holds back: at most `nproc` pieces are worked on, and little more than the next ones
are cut into blocks of one row. A piece is a task, so that a worker that dies loses only its own: Ray starts
it again TRIES times in all. Results do not travel: `work` writes them, and is called with the same item
again where a machine was lost.
"""

from __future__ import annotations

import logging
import os
import pickle
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from orchestration.cluster import LOCAL, session
from orchestration.futures import is_lost, own_error, short_line

TRIES = 3
OBJECT_STORE_MB = 256
BLOCK_BYTES = 2**20  # Ray Data reserves some blocks of the object store for each task; its default is 128 MB
ROWS_AT_ONCE = 256  # of a block before it is cut

_ItemT = TypeVar("_ItemT")
_AnswerT = TypeVar("_AnswerT")


@dataclass(frozen=True)
class RayWorkers:
    """Workers of the Ray that this process is connected to; `nproc` of them work at once."""

    nproc: int

    def each(
        self, work: Callable[[_ItemT], _AnswerT], items: Sequence[_ItemT]
    ) -> Iterator[tuple[int, _AnswerT]]:
        """(place of the item, answer) in the order in which they are done; items are begun in theirs.

        An item whose worker died TRIES times is left out. Raises what `work` raised, OSError where Ray
        itself fails.
        """
        from ray.exceptions import RayError

        _configure()
        rows = [{"place": place, "item": pickle.dumps(item)} for place, item in enumerate(items)]
        if not rows:
            return
        answers = _dataset(rows, _guarded(work), self.nproc)
        try:
            row: Any
            for row in answers.iter_batches(batch_size=1, prefetch_batches=0):
                yield int(row["place"][0]), _answer(row["answer"][0])
        except RayError as error:
            raise OSError(
                f"Ray ended the work ({short_line(error)}); the same command goes on with what is left"
            ) from None

    def alone(self, work: Callable[[_ItemT], object], item: _ItemT) -> bool:
        """One more try in a worker; False where it died. Raises what `work` raised; OSError of Ray's."""
        import ray
        from ray.exceptions import RayError

        made = ray.remote(num_cpus=1, max_retries=0)(_guarded(work))
        try:
            row = ray.get(made.remote({"place": 0, "item": pickle.dumps(item)}))
        except RayError as error:
            if is_lost(error):
                return False
            raise own_error(error) from None
        _answer(row["answer"])
        return True

    def check_paths(self, paths: Sequence[Path]) -> None:
        """Raises ValueError naming a path that a machine of the cluster does not see; OSError of Ray's."""
        import ray
        from ray.exceptions import RayError
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        def unseen(texts: Sequence[bytes]) -> list[bytes]:
            return [text for text in texts if not os.path.exists(text)]  # noqa: PTH110 (bytes travel whole)

        texts = [os.fsencode(path.absolute()) for path in paths]
        nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
        tasks = [
            ray.remote(num_cpus=0)(unseen)
            .options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False))
            .remote(texts)
            for node in nodes
        ]
        try:
            unseen_by_node = ray.get(tasks)
        except RayError as error:
            raise own_error(error) from None
        for missing in unseen_by_node:
            if missing:
                raise ValueError(
                    f"{os.fsdecode(missing[0])}: a machine of the Ray cluster does not see it; put videos "
                    "and output where all of them do, under the same path"
                )


@contextmanager
def ray_workers(address: str, nproc: int = 0, insecure: bool = False) -> Iterator[RayWorkers]:
    """Connects to Ray, embedded for `local`. nproc 0: one for each processor, of the cluster less one, which
    cuts blocks. Raises as `orchestration.cluster.session`; ValueError where the cluster has no room."""
    import_check()
    count = nproc or os.cpu_count() or 1
    os.environ.setdefault("RAY_task_oom_retries", str(TRIES))  # Ray's default is without end
    with session(address, count + 1, OBJECT_STORE_MB, insecure):
        if address != LOCAL:
            import ray

            cpus = int(ray.cluster_resources().get("CPU", 0))
            count = nproc or max(1, cpus - 1)
            if cpus < 2:
                raise ValueError(f"Ray at {address}: it has {cpus} CPUs, at least 2 are needed")
        yield RayWorkers(count)


def import_check() -> None:
    """Raises ValueError where Ray Data cannot be imported."""
    try:
        import ray.data  # noqa: F401 (needs pandas and pyarrow besides Ray)
    except ImportError as error:
        raise ValueError(f"--ray needs Ray Data ({error}); pip install 'nava[serve]' pandas") from None


def _dataset(rows: Sequence[Mapping[str, Any]], run: Callable[..., Any], nproc: int) -> Any:
    import ray.data

    blocks = -(-len(rows) // ROWS_AT_ONCE)
    single = ray.data.from_items(list(rows), override_num_blocks=blocks).repartition(
        target_num_rows_per_block=1
    )
    with warnings.catch_warnings():
        # without, Ray Data tries a row that kills its worker for ever; Ray 2.64 takes the option away
        warnings.filterwarnings("ignore", message=".*ray_remote_args_fn.*")
        return single.map(
            run,
            num_cpus=1,
            compute=ray.data.TaskPoolStrategy(nproc),
            ray_remote_args_fn=lambda: {"max_retries": TRIES - 1},
        )


def _configure() -> None:
    """Ray Data's settings for rows that are file names: quiet, small blocks, a lost row is not the end."""
    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.max_errored_blocks = -1
    context.target_max_block_size = BLOCK_BYTES
    context.target_min_block_size = 1
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)


def _guarded(work: Callable[[Any], Any]) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """A row to a row; what `work` raises is an answer, because Ray Data would take it for a lost block."""

    def run(row: Mapping[str, Any]) -> dict[str, Any]:
        try:
            said = pickle.dumps((work(pickle.loads(row["item"])), None))
        except Exception as error:
            said = _pickled_error(error)
        return {"place": row["place"], "answer": said}

    def _pickled_error(error: Exception) -> bytes:
        try:
            said = pickle.dumps((None, error))
            pickle.loads(said)
        except Exception:  # of a class that does not travel
            return pickle.dumps((None, ValueError(f"{type(error).__name__}: {error}")))
        return said

    return run


def _answer(said: bytes) -> Any:
    answer, error = pickle.loads(said)
    if error is not None:
        raise error
    return answer
