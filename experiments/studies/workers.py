"""Run the parts of a study in parallel processes, each bound to its own cores.

`python -m experiments.studies.workers [CORES]` calls the function that it reads from its standard input, on
the cores CORES (such as 0,2). The function is pickled: it passes through a pipe between the two processes and
is never a file.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from experiments.runs.run import Interrupted
from experiments.studies.harness import Progress, Run
from pretrain.launch.torchrun import end_with_parent

LOG = "log.txt"
POLL_S = 1.0
GRACE_S = 60.0  # time for a stage to finish its step and write a checkpoint


Work = Callable[[], object]


def run_all(
    name: str, runs: Sequence[Run], work_of: Callable[[Run], Work], cores: Sequence[tuple[int, ...]]
) -> None:
    """Run all unfinished runs, one per entry of `cores` at a time.

    work_of: the function that a run's process calls, such as a partial of a module-level function. Raises
    ValueError with a run's own line when it fails (the others are stopped first), Interrupted on Ctrl-C or
    SIGTERM.
    """
    waiting = [run for run in runs if not run.finished]
    progress = Progress(name, runs)
    running: dict[int, tuple[Run, subprocess.Popen[bytes]]] = {}
    progress.report([], force=True)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # SIGTERM raises KeyboardInterrupt
    try:
        while waiting or running:
            for slot in range(len(cores)):
                if slot not in running and waiting:
                    run = waiting.pop(0)
                    running[slot] = (run, _start(run, work_of(run), cores[slot]))
            time.sleep(POLL_S)
            progress.report([run for run, _ in running.values()])
            for slot, (run, process) in list(running.items()):
                if process.poll() is not None:
                    del running[slot]
                    _check(run, process.returncode)
    except KeyboardInterrupt:
        raise Interrupted("study: stopped; the same command goes on from there") from None
    finally:
        _end([process for _, process in running.values()])
        signal.signal(signal.SIGTERM, before)
    progress.report([], force=True)


def core_shares(parallel: int) -> list[tuple[int, ...]]:
    """The cores of this process, split evenly; () = not bound, if the system cannot or has too few."""
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    return [tuple(allowed[slot::parallel]) if len(allowed) >= parallel else () for slot in range(parallel)]


def worker_command(run: Run) -> list[str]:
    """Command line of the process for this run; its cores are appended."""
    return [sys.executable, "-m", "experiments.studies.workers"]


def _start(run: Run, work: Work, cores: tuple[int, ...]) -> subprocess.Popen[bytes]:
    run.folder.mkdir(parents=True, exist_ok=True)
    command = [*worker_command(run), *([",".join(map(str, cores))] if cores else [])]
    repository = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join([repository, *filter(None, [os.environ.get("PYTHONPATH")])])
    with (run.folder / LOG).open("ab") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": path},
            preexec_fn=end_with_parent,
        )
    assert process.stdin is not None
    # a broken pipe means that the process failed at once, which its exit code reports
    with contextlib.suppress(BrokenPipeError), process.stdin:
        process.stdin.write(pickle.dumps(work))
    return process


def _check(run: Run, code: int) -> None:
    if code == 0 and run.finished:
        return
    text = (run.folder / LOG).read_text(errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()] or ["no line"]
    last = lines[-1].removeprefix("nava: ")
    raise ValueError(f"{run.label} ended with exit code {code}: {last}; see {run.folder / LOG}")


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)
        if process.poll() is None:
            process.kill()


def _work(cores: str = "") -> None:
    import torch

    if cores and hasattr(os, "sched_setaffinity"):
        bound = set(map(int, cores.split(",")))
        os.sched_setaffinity(0, bound)  # ranks and scorers started here stay there
        torch.set_num_threads(len(bound))  # more threads than cores wait for each other
    pickle.loads(sys.stdin.buffer.read())()


if __name__ == "__main__":
    from experiments.errors import one_line_errors

    with one_line_errors():
        _work(*sys.argv[1:])
