"""Runs the ranks of a pretraining stage, with a mishap on the way."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from object_store import connect
from rank_processes import run_processes


def run_ranks(
    resolved: Path, world_size: int = 1, mishap: str = "", timeout_s: float = 100.0, endpoint: str = ""
) -> list[int]:
    """Exit codes of the ranks of one stage. `mishap` (see below) happens on the way; `endpoint` is that of an
    object store."""
    return run_processes(_rank, world_size, resolved.parent, resolved, mishap, endpoint, timeout_s=timeout_s)


def _rank(rank: int, resolved: Path, mishap: str, endpoint: str) -> int:
    from pretrain.titan import run

    if endpoint:
        connect(endpoint)
    if mishap:
        _arrange(mishap, rank)
    return run.main(resolved)


def _arrange(mishap: str, rank: int) -> None:
    """kill@N: SIGKILL after step N's save. term@N: SIGTERM to the last rank before step N. full@N: no space
    at step N's save. nan@N: the loss of step N is NaN. dead-in-step@N, dead-in-save@N: the last rank is
    killed in the middle of it. outage@N: in the middle of step N's save the last rank asks for the store to
    be stopped (a file `outage`) and waits until it is."""
    from pretrain.titan import trainer

    kind, _, number = mishap.partition("@")
    step, last_rank = int(number), rank == int(os.environ["WORLD_SIZE"]) - 1
    train_step, save = trainer.PretrainTrainer.train_step, trainer.PretrainTrainer._save

    def step_with(self, iterator):
        if kind == "term" and self.step == step and last_rank:
            os.kill(os.getpid(), signal.SIGTERM)
        if kind == "dead-in-step" and self.step == step and last_rank:
            self.model.register_forward_hook(lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        if kind == "nan" and self.step == step:
            parameter = next(iter(self.model.parameters()))
            hook = parameter.register_post_accumulate_grad_hook(lambda p: p.grad.mul_(float("nan")))
            train_step(self, iterator)
            hook.remove()
        else:
            train_step(self, iterator)

    def save_with(self, last):
        if self.step == step and kind == "full":
            _at_the_tenth_write(_no_space)
        if self.step == step and last_rank and kind == "dead-in-save":
            _at_the_tenth_write(lambda: os.kill(os.getpid(), signal.SIGKILL))
        if self.step == step and last_rank and kind == "outage":
            _at_the_tenth_write(lambda: _outage(self.run.out))
        save(self, last)
        if kind == "kill" and self.step == step:
            os.kill(os.getpid(), signal.SIGKILL)

    trainer.PretrainTrainer.train_step, trainer.PretrainTrainer._save = step_with, save_with  # type: ignore[method-assign]


def _no_space() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def _outage(out: Path) -> None:
    (out / "outage").touch()
    while (out / "outage").exists():
        time.sleep(0.02)


def _at_the_tenth_write(act: Callable[[], None]) -> None:
    """In the tenth write of tensors from this moment on."""
    from torch.distributed.checkpoint import filesystem

    write, written = filesystem._write_item, []

    def failing(*args, **kwargs):
        written.append(1)
        if len(written) == 10:
            act()
        return write(*args, **kwargs)

    filesystem._write_item = failing
