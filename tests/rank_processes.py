"""Runs ranks as forked processes: a fork server imports torchtitan once, a rank then starts in
milliseconds."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["pretrain.titan.run", "finetune.run", "peft"])


def run_processes(
    target: Callable[..., int], world_size: int, folder: Path, *given: Any, timeout_s: float = 200.0
) -> list[int]:
    """Exit codes of `target(rank, *given)` on each rank, logs in folder/log.RANK; ranks left waiting for a
    dead one are killed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = [
        _FORKS.Process(target=_enter, args=(rank, world_size, port, folder, target, *given))
        for rank in range(world_size)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(timeout_s)
        if process.exitcode is None or process.exitcode < 0:
            for other in ranks:
                other.kill()
    for process in ranks:
        process.join()
    return [process.exitcode for process in ranks if process.exitcode is not None]


def _enter(
    rank: int, world_size: int, port: int, folder: Path, target: Callable[..., int], *given: Any
) -> None:
    log = os.open(folder / f"log.{rank}", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    place = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": world_size,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    os.environ.update({name: str(value) for name, value in place.items()} | {"OMP_NUM_THREADS": "1"})
    import torch

    torch.set_num_threads(1)
    os._exit(target(rank, *given))
