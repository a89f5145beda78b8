"""Runs ranks as forked processes: a fork server imports torchtitan once, a rank then starts in milliseconds."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
from pathlib import Path

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["pretrain.titan.run", "titan_ranks"])


def run_ranks(resolved: Path, world_size: int = 1, mishap: str = "", timeout_s: float = 100.0) -> list[int]:
    """Exit codes of the ranks of one stage. `mishap` (see below) happens on the way; ranks left waiting for a dead one are killed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = [_FORKS.Process(target=_rank, args=(rank, world_size, port, resolved, mishap)) for rank in range(world_size)]
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


def _rank(rank: int, world_size: int, port: int, resolved: Path, mishap: str) -> None:
    log = os.open(resolved.parent / f"log.{rank}", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()} | {"OMP_NUM_THREADS": "1"})
    import torch

    from pretrain.titan import run

    torch.set_num_threads(1)
    if mishap:
        _arrange(mishap, rank)
    os._exit(run.main(resolved))


def _arrange(mishap: str, rank: int) -> None:
    """kill@N: SIGKILL after step N's save. term@N: SIGTERM to the last rank before step N. full@N: no space at step N's save.
    nan@N: the loss of step N is NaN."""
    from pretrain.titan import trainer

    kind, _, number = mishap.partition("@")
    step = int(number)
    train_step, save = trainer.PretrainTrainer.train_step, trainer.PretrainTrainer._save

    def step_with(self, iterator):
        if kind == "term" and self.step == step and rank == int(os.environ["WORLD_SIZE"]) - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        if kind == "nan" and self.step == step:
            parameter = next(iter(self.model.parameters()))
            hook = parameter.register_post_accumulate_grad_hook(lambda p: p.grad.mul_(float("nan")))
            train_step(self, iterator)
            hook.remove()
        else:
            train_step(self, iterator)

    def save_with(self, last):
        if kind == "full" and self.step == step:
            _fill_the_disk()
        save(self, last)
        if kind == "kill" and self.step == step:
            os.kill(os.getpid(), signal.SIGKILL)

    trainer.PretrainTrainer.train_step, trainer.PretrainTrainer._save = step_with, save_with  # type: ignore[method-assign]


def _fill_the_disk() -> None:
    """The tenth write of tensors from now on finds no space."""
    import errno

    from torch.distributed.checkpoint import filesystem

    write, written = filesystem._write_item, []

    def failing(*args, **kwargs):
        written.append(1)
        if len(written) > 10:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(*args, **kwargs)

    filesystem._write_item = failing
