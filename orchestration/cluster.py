"""Ray itself: an embedded instance or a cluster, and the processes of an alignment on it."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.align_run import AlignRun
from orchestration.actors import RewardWorker, RolloutWorker, TrainerRank
from orchestration.config import RayConfig, Workers
from orchestration.futures import short_line
from orchestration.ray_security import embedded_options, join_securely
from rewards import plugins

LOCAL = "local"
STARTS = 3  # tries of an embedded Ray: it gives itself 30 s, which a busy machine may not keep
EMBEDDED = {
    # its helper processes wait that long for a head that died with its driver
    "RAY_gcs_rpc_server_reconnect_timeout_s": "5",
    "RAY_worker_niceness": "0",  # run workers at normal priority; Ray's default is 15
}


@dataclass(frozen=True)
class Place:
    """Resources of each process of one kind."""

    cpus: float
    gpus: float
    runtime_env: Mapping[str, Any]

    @property
    def threads(self) -> int:
        return max(1, int(self.cpus))

    def options(self, **more: Any) -> dict[str, Any]:
        environment = {"runtime_env": dict(self.runtime_env)} if self.runtime_env else {}
        return {"num_cpus": self.cpus, "num_gpus": self.gpus, **environment, **more}


@contextmanager
def connected(address: str, config: RayConfig, ranks: int, insecure: bool = False) -> Iterator[None]:
    """`session` with room for the processes of an alignment."""
    needed = sum(count * _cpus(given, count, _cores()) for _, given, count in _kinds(config, ranks))
    # more than the machine has: kinds of processes run in turns
    cpus = max(_cores(), math.ceil(needed))
    with session(address, cpus, config.object_store_mb, insecure):
        yield


@contextmanager
def session(address: str, cpus: int, object_store_mb: int, insecure: bool = False) -> Iterator[None]:
    """Connect to Ray: embedded for `local`, with that many CPUs whatever the machine has, else the cluster at
    `address`; disconnects on exit.

    Raises OSError where it cannot be reached, ValueError for one without a token unless `insecure`.
    """
    if address == LOCAL:
        private = embedded_options(insecure)
    else:
        join_securely(address, insecure)
        private = {}
    import ray

    if ray.is_initialized():
        raise ValueError("this process is connected to a Ray already; leave it first (ray.shutdown)")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    for left in reversed(range(STARTS if address == LOCAL else 1)):
        try:
            _connect(address, cpus, object_store_mb, private)
            break
        except (
            Exception
        ) as error:  # Ray has no exception class of its own for most of these, such as a startup timeout
            ray.shutdown()
            if left:
                continue
            hint = (
                "run again, when the machine has less to do"
                if address == LOCAL
                else "`ray start --head` starts one"
            )
            raise OSError(f"Ray at {address} cannot be reached ({short_line(error)}); {hint}") from None
    try:
        yield
    finally:
        ray.shutdown()


def _connect(address: str, cpus: int, object_store_mb: int, private: Mapping[str, Any]) -> None:
    import ray

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address == LOCAL:
        os.environ |= {name: value for name, value in EMBEDDED.items() if name not in os.environ}
        ray.init(
            address="local",
            num_cpus=cpus,
            object_store_memory=object_store_mb * 2**20,
            include_dashboard=False,
            **private,
            **quiet,
        )
    else:
        repository = str(Path(__file__).resolve().parents[1])
        variables = {"PYTHONPATH": _python_path(repository), **plugins.inherited()}
        ray.init(address=address, runtime_env={"env_vars": variables}, **quiet)


def places(config: RayConfig, ranks: int, address: str) -> dict[str, Place]:
    """Resources per process: "trainers", "rollout" and "pool NAME".

    Raises ValueError if the total exceeds what is available.
    """
    import ray

    cores = _cores() if address == LOCAL else 0
    of_ranks, of_workers = shared_gpus(
        int(ray.cluster_resources().get("GPU", 0)), ranks, config.rollout.workers
    )
    found = {}
    for kind, given, count in _kinds(config, ranks):
        gpus = given.num_gpus if given.num_gpus != -1 else of_ranks if kind == "trainers" else of_workers
        found[kind] = Place(_cpus(given, count, cores), gpus, given.runtime_env)
    _check_room(address, found, config, ranks)
    return found


class Group:
    """The trainer processes; every call goes to all ranks."""

    def __init__(self, run: AlignRun, ranks: int, place: Place) -> None:
        import ray

        made = ray.remote(TrainerRank).options(**place.options(max_restarts=0))
        self.actors = [made.remote(run, rank, ranks, place.threads) for rank in range(ranks)]

    def call(self, method: str, arguments: Sequence[Sequence[Any]]) -> list[Any]:
        """Call a method on every rank with its own arguments; returns one future per rank."""
        return [
            getattr(actor, method).remote(*given) for actor, given in zip(self.actors, arguments, strict=True)
        ]

    def end(self) -> None:
        import ray

        for actor in self.actors:
            ray.kill(actor)  # type: ignore[arg-type]


def rollout_workers(run: AlignRun, given: Workers, place: Place) -> list[Any]:
    import ray

    made = ray.remote(RolloutWorker).options(**_lasting(place, given))
    return [made.remote(run, f"rollout {number}", place.threads, ray.get) for number in range(given.workers)]


def reward_workers(
    pool: str, scorer: tuple[str, Mapping[str, Any]], given: Workers, place: Place
) -> list[Any]:
    import ray

    made = ray.remote(RewardWorker).options(**_lasting(place, given))
    return [made.remote(scorer, f"{pool} {number}", place.threads) for number in range(given.workers)]


def _lasting(place: Place, given: Workers) -> dict[str, Any]:
    """Ray options that restart a lost worker and retry its unfinished tasks."""
    return place.options(max_restarts=given.max_restarts, max_task_retries=given.max_restarts)


def _kinds(config: RayConfig, ranks: int) -> list[tuple[str, Workers, int]]:
    pools = [(f"pool {name}", pool, pool.workers) for name, pool in config.pools.items()]
    return [("trainers", config.trainers, ranks), ("rollout", config.rollout, config.rollout.workers), *pools]


def _check_room(address: str, given: Mapping[str, Place], config: RayConfig, ranks: int) -> None:
    """Raises ValueError where Ray would wait forever for resources."""
    import ray

    available = ray.cluster_resources()
    counts = {kind: count for kind, _, count in _kinds(config, ranks)}
    for name, field in (("CPU", "cpus"), ("GPU", "gpus")):
        needed = sum(counts[kind] * getattr(place, field) for kind, place in given.items())
        if needed > available.get(name, 0) + 1e-6:
            found = f"{needed:g} {name}s are needed and it has {available.get(name, 0):g}"
            raise ValueError(
                f"Ray at {address}: {found}; lower ray.rollout.workers, those of ray.pools, their "
                f"num_{field} or --nproc"
            )


def _cpus(given: Workers, count: int, cores: int) -> float:
    return given.num_cpus or max(1, cores // count)


def shared_gpus(available: int, ranks: int, workers: int) -> tuple[float, float]:
    """GPUs per trainer rank and per rollout worker.

    One each if there are enough. Otherwise ranks get whole GPUs (NCCL refuses shared ones) and workers share
    the rest.
    """
    if available >= ranks + workers:
        return 1.0, 1.0
    if available < ranks:
        return (0.0, 0.0) if not available else (1.0, 1.0)  # rejected later for lack of resources
    return 0.6, math.floor(1e4 * 0.4 / math.ceil(workers / available)) / 1e4


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _python_path(repository: str) -> str:
    return os.pathsep.join([repository, *filter(None, [os.environ.get("PYTHONPATH")])])
