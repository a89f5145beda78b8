"""Runs the study's trainings side by side, each in a process on its own cores, and says how far the whole
is."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.runs.run import Interrupted
from experiments.studies.paradigms.plan import Training
from experiments.studies.paradigms.training import LOG, result_file
from pretrain.launch.torchrun import end_with_parent
from pretrain.progress import MetricsTail

POLL_S, REPORT_S = 1.0, 20.0
TRAINED_SHARE = 0.85  # of a training's work; the rest is generating and scoring
GRACE_S = 60.0  # for a stage to finish its step and write a checkpoint


@dataclass
class Job:
    """A training, its folder, and the mark of the results wanted."""

    training: Training
    folder: Path
    mark: str

    @property
    def result(self) -> Path:
        return self.folder / result_file(self.mark)

    @property
    def finished(self) -> bool:
        return self.result.is_file()


class Progress:
    """Share of the study's work that is done, by training FLOPs, and the time left at the rate since it was
    started."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.jobs = jobs
        self.total = sum(sum(job.training.flops.values()) for job in jobs)
        self.tails = {
            (id(job), stage): MetricsTail(job.folder / stage / "metrics.jsonl")
            for job in jobs
            for stage in job.training.flops
        }
        self.steps: dict[tuple[int, str], int] = {}
        self.at_start, self.started, self.told = self.done(), time.monotonic(), 0.0

    def done(self) -> float:
        """FLOPs of all steps that were logged; a training that is not scored yet counts for less than its
        whole."""
        return sum(self._done(job) for job in self.jobs)

    def _done(self, job: Job) -> float:
        if job.finished:
            return sum(job.training.flops.values())
        flops = 0.0
        for stage, cost in job.training.flops.items():
            key = (id(job), stage)
            for row in self.tails[key].rows():
                self.steps[key] = int(row["step"])
            flops += cost * min(1.0, self.steps.get(key, 0) / job.training.config.stage(stage).steps)
        return TRAINED_SHARE * flops

    def tell(self, running: Sequence[Job], force: bool = False) -> None:
        """A line on stderr, not more often than every 20 s."""
        now = time.monotonic()
        if not force and now - self.told < REPORT_S:
            return
        self.told = now
        done, spent = self.done(), now - self.started
        fresh = done - self.at_start
        left = (
            f"about {(self.total - done) / fresh * spent / 60:.0f} min left"
            if fresh > 0
            else "time left not known yet"
        )
        names = ", ".join(self._where(job) for job in running)
        finished = sum(job.finished for job in self.jobs)
        head = (
            f"study: {finished}/{len(self.jobs)} trainings, {100 * done / self.total:.0f} %, "
            f"{spent / 60:.1f} min, {left}"
        )
        print(f"{head}; {names}" if names else head, file=sys.stderr, flush=True)

    def _where(self, job: Job) -> str:
        reached = [
            (stage, self.steps[id(job), stage])
            for stage in job.training.flops
            if (id(job), stage) in self.steps
        ]
        if not reached:
            return f"{job.training.label} starting"
        stage, step = reached[-1]
        return f"{job.training.label} {stage} {step}/{job.training.config.stage(stage).steps}"


def run_all(jobs: Sequence[Job], cores: Sequence[tuple[int, ...]]) -> None:
    """Run what is not finished, one training per entry of `cores` at a time.

    Raises ValueError with a training's own line when it fails (the others end first), Interrupted on Ctrl-C
    or SIGTERM.
    """
    waiting = [job for job in jobs if not job.finished]
    progress = Progress(jobs)
    running: dict[int, tuple[Job, subprocess.Popen[bytes]]] = {}
    progress.tell([], force=True)
    with _terminate_is_interrupt():
        try:
            while waiting or running:
                for slot in range(len(cores)):
                    if slot not in running and waiting:
                        running[slot] = (job := waiting.pop(0), _start(job, cores[slot]))
                time.sleep(POLL_S)
                progress.tell([job for job, _ in running.values()])
                for slot, (job, process) in list(running.items()):
                    if process.poll() is not None:
                        del running[slot]
                        _check(job, process.returncode)
        except BaseException as error:
            _end([process for _, process in running.values()])
            if isinstance(error, KeyboardInterrupt):
                raise Interrupted("study: stopped; the same command goes on from there") from None
            raise
    progress.tell([], force=True)


def core_shares(parallel: int) -> list[tuple[int, ...]]:
    """The cores this process may use, dealt out; () = not bound, where the system cannot or there are too
    few."""
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    return [tuple(allowed[slot::parallel]) if len(allowed) >= parallel else () for slot in range(parallel)]


def worker_command(folder: Path) -> list[str]:
    """What runs one training; the cores follow."""
    return [sys.executable, "-m", "experiments.studies.paradigms.training", str(folder)]


def _start(job: Job, cores: tuple[int, ...]) -> subprocess.Popen[bytes]:
    command = [*worker_command(job.folder), *([",".join(map(str, cores))] if cores else [])]
    repository = str(Path(__file__).resolve().parents[3])
    path = os.pathsep.join([repository, *filter(None, [os.environ.get("PYTHONPATH")])])
    with (job.folder / LOG).open("ab") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": path},
            preexec_fn=end_with_parent,
        )


def _check(job: Job, code: int) -> None:
    if code == 0 and job.finished:
        return
    lines = [
        line.strip() for line in (job.folder / LOG).read_text(errors="replace").splitlines() if line.strip()
    ]
    said = lines[-1].removeprefix("nava: ") if lines else "no line"
    raise ValueError(f"{job.training.label} ended with exit code {code}: {said}; see {job.folder / LOG}")


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)
        if process.poll() is None:
            process.kill()


@contextlib.contextmanager
def _terminate_is_interrupt() -> Iterator[None]:
    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
