"""Runs are written to a spool on disk first and sent to MLflow by one process beside
(`experiments.runs.sender`).

A trainer therefore never imports MLflow, never waits for it, and does not notice when it is out: what could
not be sent stays in the spool until `nava tracking flush`. A run is a folder `out/tracking/<key>` with an
`events.jsonl`; the key is ours and stays the same when a run is resumed, the MLflow run carries it as the tag
`nava.run`.
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
ANNOUNCED_RUN = (
    "NAVA_RUN"  # STAGE=KEY: the run that a submission announced for a stage, in the environment of its job
)
JOB = "nava.job"  # tag: the submission id of the job that a run is part of
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunStart:
    """What is known when a run begins. Parents: stage or role -> run key, the first is the one MLflow shows
    it under."""

    name: str
    tags: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)  # path -> md5
    parents: Mapping[str, str] = field(default_factory=dict)


class SpoolTracker:
    """`pretrain.types.Tracker` that appends to a run's spool, from any process; failing to write is logged
    once and never raises."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self._broken = False

    @property
    def key(self) -> str:
        return self.folder.name

    def factory(self) -> dict[str, dict[str, str]]:
        """Dotted name and arguments by which another process makes this tracker."""
        return {"experiments.runs.tracker:SpoolTracker": {"folder": str(self.folder.resolve())}}

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self._append("metrics", step=step, values={name: float(value) for name, value in metrics.items()})

    def log_artifact(self, path: str, folder: str = "") -> None:
        """Have a file or folder copied to the run when it is sent; it must still be there then."""
        self._append("artifact", path=str(Path(path).resolve()), folder=folder)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        self._append("tags", values={name: str(value) for name, value in tags.items()})

    def log_model(self, path: Path, name: str, tags: Mapping[str, str]) -> None:
        """Log a folder of safetensors as a model of this run."""
        self._append("model", path=str(path.resolve()), name=name, tags=dict(tags))

    def announce(self, run: RunStart) -> None:
        """Announce the run: MLflow gives it an id and shows it as SCHEDULED until it starts."""
        self._append("announce", **vars(run))

    def start(self, run: RunStart) -> None:
        """Begin the run, or begin it again after an interruption."""
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
    """Name of a run's spool folder: sorts by time, reads as the stage, and is unique."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S-%f}-{name}-{uuid.uuid4().hex[:8]}"


def kept_run_key(folder: Path, name: str) -> str:
    """Key of the run that belongs to a folder, the same one until its RUN_KEY file is removed."""
    path = folder / RUN_KEY
    if not path.is_file():
        with replacing(path) as temporary:
            temporary.write_text(new_run_key(name))
    return path.read_text()


def ensure_sender(spool: Path, root: Path) -> subprocess.Popen[bytes] | None:
    """Start the process that sends the spool to MLflow, at the lowest priority; it leaves at once when
    another one runs."""
    spool.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "experiments.runs.sender", str(spool), "--root", str(root)]
    try:
        with (spool / "sender.log").open("ab") as output:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                cwd=root,
            )
    except OSError as error:
        log.warning(
            "tracking: the sender did not start (%s); `nava tracking flush` sends the runs later", error
        )
        return None
