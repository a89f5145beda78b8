"""Command of a submitted job, `python -m experiments.jobs.attend STAGE`: run a stage, requeue itself.

SIGTERM may reach this process, DVC, the stage, torchrun or a rank, one of them or all: the ranks write their
checkpoint, the stage ends as interrupted, and this process waits for both.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import psutil

from experiments.errors import INTERRUPTED, one_line_errors
from experiments.layout import STAGES, Layout
from experiments.pipeline.demo import dvc_command, environment
from experiments.runs.sender import wait_until_sent
from experiments.runs.spool import SpooledRun, spooled_runs
from experiments.runs.tracker import ANNOUNCED_RUN, JOB, SpoolTracker
from pretrain.config import nearest

if TYPE_CHECKING:
    from orchestration.launch import Jobs

POLL_S = 0.2
IDLE_S = 3.0  # time for a stopping command to exit by itself once its children have exited
MLFLOW_PATIENCE_S = 20.0


def reproduce(stage: str, root: Path, job: str) -> tuple[int, bool]:
    """Run `dvc repro STAGE` until it and its stage have exited: (exit code, True if one got SIGTERM).

    job: the submission id that its runs are tagged with.
    """
    since_ms = int(time.time() * 1000)
    command = _Command([*dvc_command(), "repro", stage], root)
    before = {
        number: signal.signal(number, lambda *_: command.stop()) for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        code = command.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code, bool(code) and (
        command.stopping or stopped_since(since_ms, Layout(out=root / "out").tracking, job)
    )


class _Command:
    """A command that starts children one after another; SIGTERM to it alone would not reach the children."""

    def __init__(self, command: list[str], root: Path) -> None:
        self.process = subprocess.Popen(command, cwd=root, env=environment(), stdin=subprocess.DEVNULL)
        self.started: set[psutil.Process] = set()
        self.signalled: set[psutil.Process] = set()
        self.stopping = False
        self.idle_polls = 0  # consecutive polls without a running child

    def stop(self) -> None:
        self.stopping = True

    def wait(self) -> int:
        """Wait for the command and its children; the exit code, negative for a signal."""
        while True:
            code = self.process.poll()
            if code is None:
                self.started |= self._children()
            self.stopping |= code == -signal.SIGTERM
            going = [process for process in self.started if _is_running(process)]
            if code is not None and (code >= 0 or not going):
                return code
            if self.stopping:
                self._terminate(going)
            time.sleep(POLL_S)

    def _children(self) -> set[psutil.Process]:
        try:
            return set(psutil.Process(self.process.pid).children())
        except psutil.NoSuchProcess:
            return set()

    def _terminate(self, going: list[psutil.Process]) -> None:
        for process in going:
            if process not in self.signalled:
                self.signalled.add(process)
                with contextlib.suppress(psutil.NoSuchProcess):  # it exited in between
                    process.send_signal(signal.SIGTERM)
        self.idle_polls = 0 if going else self.idle_polls + 1
        if self.idle_polls * POLL_S > IDLE_S and self.process.poll() is None:
            self.process.terminate()


def _is_running(process: psutil.Process) -> bool:
    try:
        # a zombie has exited and only waits to be reaped by its parent
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def stopped_since(since_ms: int, spool: Path, job: str) -> bool:
    """True if a run of this job was stopped after that time, that is, a stage was interrupted.

    Runs of others in the spool end as they like, and one whose process died without a word has failed.
    """
    return any(
        event["status"] == "KILLED"
        and event["time_ms"] >= since_ms
        and not event.get("abandoned")
        and run.start_event().get("tags", {}).get(JOB) == job
        for run in spooled_runs(spool)
        if (event := run.end_event())
    )


def end_unstarted(spool: Path, status: str) -> None:
    """End the announced run if its stage never started: nothing to do, or an earlier failure."""
    _, _, key = os.environ.get(ANNOUNCED_RUN, "").partition("=")
    run = SpooledRun(spool / key)
    if key and run.exists() and not run.started() and not run.last_end()[0]:
        SpoolTracker(run.folder).finish(status)


def attend(stage: str, root: Path = Path()) -> None:
    """Run the job.

    Raises KeyboardInterrupt if it was interrupted (and resubmitted, if allowed), ValueError if a stage
    failed.
    """
    from orchestration.launch import JOB_VARIABLE, connect

    spool, job = Layout().tracking, os.environ.get(JOB_VARIABLE, "")
    if stage not in STAGES:
        raise ValueError(f"unknown stage {stage!r}; {nearest(stage, STAGES)}")
    if not job:
        raise ValueError(
            f"{JOB_VARIABLE} is not set: this is what `nava submit` has Ray run; `dvc repro {stage}` does "
            "the same here"
        )
    jobs = connect(insecure=True).jobs  # of the job itself: whoever submitted it has decided
    if _stopped_by_request(jobs, job, spool):
        end_unstarted(spool, "KILLED")
        print("the attempt before this one was stopped by request: nothing to do", flush=True)
        jobs.stop_job(job)
        raise KeyboardInterrupt("stopped")
    code, interrupted = reproduce(stage, root, job)
    if not interrupted:
        end_unstarted(spool, "FAILED" if code else "FINISHED")
        wait_until_sent(spool, root, MLFLOW_PATIENCE_S)
        if code:
            raise ValueError(
                "a stage failed (its own line is above); mend that and submit again, it goes on where it "
                "stopped"
            )
        return
    _submit_again(jobs, job, spool)


def _stopped_by_request(jobs: Jobs, job: str, spool: Path) -> bool:
    """Wait for the previous attempt; True if a person stopped it.

    SIGTERM meanwhile counts as any other interruption.
    """
    from orchestration.launch import cancelled

    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return cancelled(jobs, job)
    except KeyboardInterrupt:
        _submit_again(jobs, job, spool)
    finally:
        signal.signal(signal.SIGTERM, before)


def _submit_again(jobs: Jobs, job: str, spool: Path) -> NoReturn:
    from orchestration.launch import requeue

    following = requeue(jobs, job)
    if not following:
        end_unstarted(spool, "KILLED")
        raise KeyboardInterrupt(
            "interrupted once more than --max-requeues allows; submit again, it goes on where it stopped"
        )
    raise KeyboardInterrupt(f"interrupted; submitted again as {following}")


def main(arguments: list[str]) -> int:
    with one_line_errors():
        if len(arguments) != 1:
            raise ValueError(f"expected one stage name, got {arguments}; {nearest('align', STAGES)}")
        attend(arguments[0])
        return 0
    return INTERRUPTED  # pragma: no cover (one_line_errors leaves by SystemExit)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
