"""Runs are spooled to disk and sent to MLflow by a separate process (`experiments.runs.sender`).

A trainer therefore never imports or waits for MLflow and survives its outages: unsent events stay in the
spool until `nava tracking flush`. A run is a folder `out/tracking/<key>` with an `events.jsonl`; the key is
stable when a run is resumed, and is stored in MLflow as the tag `nava.run`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pretrain.files import replacing

EVENTS = "events.jsonl"
OWNER = "owner.json"
RUN_KEY = "run_key.txt"
# STAGE=KEY: the run that a submission announced for a stage, in the environment of its job
ANNOUNCED_RUN = "NAVA_RUN"
JOB = "nava.job"  # tag: submission id of the job of a run
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunStart:
    """Metadata known when a run begins.

    Parents: stage or role -> run key; MLflow nests the run under the first.
    """

    name: str
    tags: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)  # path -> md5
    parents: Mapping[str, str] = field(default_factory=dict)


class SpoolTracker:
    """`pretrain.types.Tracker` that appends to a run's spool, from any process.

    Write errors are logged once and never raised, so that tracking cannot fail a training.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self._broken = False

    @property
    def key(self) -> str:
        return self.folder.name

    def factory(self) -> dict[str, dict[str, str]]:
        """Dotted name and arguments with which another process creates this tracker."""
        return {"experiments.runs.tracker:SpoolTracker": {"folder": str(self.folder.resolve())}}

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self._append("metrics", step=step, values={name: float(value) for name, value in metrics.items()})

    def log_artifact(self, path: str, folder: str = "") -> None:
        """Record a file or folder to be copied when the run is sent; it must still exist then."""
        self._append("artifact", path=str(Path(path).resolve()), folder=folder)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        self._append("tags", values={name: str(value) for name, value in tags.items()})

    def log_model(self, path: Path, name: str, tags: Mapping[str, str]) -> None:
        """Log a folder of safetensors as a model of the run."""
        self._append("model", path=str(path.resolve()), name=name, tags=dict(tags))

    def announce(self, run: RunStart) -> None:
        """Announce the run: MLflow assigns an id and shows it as SCHEDULED."""
        self._append("announce", **vars(run))

    def start(self, run: RunStart) -> None:
        """Begin the run, or resume it after an interruption."""
        self._append("start", **vars(run))
        with contextlib.suppress(OSError):
            (self.folder / OWNER).write_text(json.dumps({"pid": os.getpid(), "time_s": time.time()}))

    def finish(self, status: str) -> None:
        """End the run; status is one of MLflow's FINISHED, FAILED, KILLED."""
        self._append("finish", status=status)
        with contextlib.suppress(OSError):
            (self.folder / OWNER).unlink()

    def _append(self, kind: str, **values: Any) -> None:
        line = json.dumps({"kind": kind, "time_ms": int(time.time() * 1000), **values}, default=str)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with (self.folder / EVENTS).open("a") as file:
                # one short append per event, so that lines of several processes do not interleave
                file.write(line + "\n")
        except OSError as error:
            if not self._broken:
                log.warning(
                    "tracking: %s cannot be written (%s); this run goes on without it",
                    self.folder / EVENTS,
                    error,
                )
            self._broken = True


@contextlib.contextmanager
def failure_marked(tracker: SpoolTracker) -> Iterator[None]:
    """End the run as KILLED or FAILED where the body raises; FINISHED is logged by the caller."""
    try:
        yield
    except KeyboardInterrupt:
        tracker.finish("KILLED")
        raise
    except BaseException:
        tracker.finish("FAILED")
        raise


def new_run_key(name: str) -> str:
    """Name of a run's spool folder: sortable by time, prefixed by stage, unique."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S-%f}-{name}-{uuid.uuid4().hex[:8]}"


def kept_run_key(folder: Path, name: str) -> str:
    """Run key stored in a folder; stable until its RUN_KEY file is removed."""
    path = folder / RUN_KEY
    if not path.is_file():
        with replacing(path) as temporary:
            temporary.write_text(new_run_key(name))
    return path.read_text()


def ensure_sender(spool: Path, root: Path) -> subprocess.Popen[bytes] | None:
    """Start the process that sends the spool to MLflow, at lowest priority.

    It exits immediately if another one is running.
    """
    spool.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "experiments.runs.sender", str(spool), "--root", str(root)]
    try:
        with (spool / "sender.log").open("ab") as output:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                # outside the terminal's process group: Ctrl-C ends the training, not the sending of its end
                start_new_session=True,
                cwd=root,
            )
    except OSError as error:
        log.warning(
            "tracking: the sender did not start (%s); `nava tracking flush` sends the runs later", error
        )
        return None
