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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from experiments.runs import owner
from experiments.runs.logged_files import MAX_COPIED_BYTES, keep, release
from experiments.runs.origin import origin_of
from pretrain.files import replacing

EVENTS = "events.jsonl"
RUN_KEY = "run_key.txt"
# STAGE=KEY: the run that a submission announced for a stage, in the environment of its job
ANNOUNCED_RUN = "NAVA_RUN"
JOB = "nava.job"  # tag: submission id of the job of a run
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunStart:
    """Metadata known when a run begins.

    parents: stage or role -> key of the run that made an input. invocation: key of the run that MLflow nests
    this one under. params: of the config, those that MLflow shows; default all.
    """

    name: str
    tags: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)  # path -> md5
    parents: Mapping[str, str] = field(default_factory=dict)
    invocation: str = ""
    params: Mapping[str, Any] | None = None


class SpoolTracker:
    """`pretrain.types.Tracker` that appends to a run's spool, from any process.

    Write errors are logged once and never raised, so that tracking cannot fail a training.
    """

    def __init__(
        self, folder: Path | str, temporary: bool = False, about: Mapping[str, Any] | None = None
    ) -> None:
        """temporary: files are in a place that is removed when the run ends, so the spool keeps its own.
        about: the run's inputs, as `experiments.runs.datasets.about_inputs` describes them."""
        self.folder, self.temporary = Path(folder), temporary
        self.tags: dict[str, str] = {}  # set by this process
        self.about = about or {}
        self._broken = False
        self._points: dict[str, dict[int, float]] | None = None

    @property
    def key(self) -> str:
        return self.folder.name

    def factory(self) -> dict[str, dict[str, Any]]:
        """Dotted name and arguments with which another process creates this tracker."""
        options: dict[str, Any] = {"folder": str(self.folder.resolve())}
        options |= {"temporary": True} if self.temporary else {}
        return {"experiments.runs.tracker:SpoolTracker": options}

    def logged(self, step: int) -> dict[str, float]:
        """The metrics that the run has at this step, of an attempt that was killed."""
        return {name: values[step] for name, values in self._known_points().items() if step in values}

    def log_metrics(self, metrics: Mapping[str, float], step: int, time_ms: int = 0) -> None:
        """Append the metrics that the run lacks at this step: a point stays as it was first logged.

        time_ms: since 1970, default now.
        """
        known = self._known_points()
        values = {name: float(value) for name, value in metrics.items() if step not in known.get(name, {})}
        at = {"time_ms": time_ms} if time_ms else {}
        if values and self._append("metrics", step=step, values=values, **at):
            for name, value in values.items():
                known.setdefault(name, {})[step] = value

    def _known_points(self) -> dict[str, dict[int, float]]:
        """Metric -> step -> value: those in the spool when this process began, and its own since."""
        if self._points is None:
            self._points = {}
            for event in self._events():
                if event.get("kind") == "metrics":
                    for name, value in event["values"].items():
                        self._points.setdefault(name, {}).setdefault(event["step"], value)
        return self._points

    def _events(self) -> Iterator[dict[str, Any]]:
        with contextlib.suppress(OSError), (self.folder / EVENTS).open("rb") as file:
            for line in file:
                if (event := read_event(line)) is not None:
                    yield event

    def log_artifact(self, path: str, folder: str = "") -> None:
        """Record a file or folder to be copied when the run is sent, as it is now where it can be kept."""
        place = keep(Path(path), self.folder, self.temporary)
        if not self._append("artifact", **place, folder=folder):
            release(place, self.folder)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        values = {name: str(value) for name, value in tags.items()}
        self.tags |= values
        if values:
            self._append("tags", values=values)

    def log_model(
        self,
        path: Path,
        name: str,
        tags: Mapping[str, str],
        registered: str = "",
        alias: str = "",
        version_of: str = "",
    ) -> None:
        """Log a folder of safetensors as a model of the run.

        registered: name under which it becomes a version, "" = none; alias: moved to that version.
        version_of: id of a checkpoint; a registered model that has it takes the version, before `registered`.
        """
        names = {"registered": registered, "alias": alias, "version_of": version_of}
        place = keep(path, self.folder, self.temporary, MAX_COPIED_BYTES)
        if not self._append("model", **place, name=name, tags=dict(tags), **names):
            release(place, self.folder)

    def log_model_metrics(self, checkpoint: str, metrics: Mapping[str, float], step: int = 0) -> None:
        """Metrics of the model with this checkpoint id, which another run may have logged.

        They are metrics of this run as well, so that its models have different steps.
        """
        values = {name: float(value) for name, value in metrics.items()}
        self._append("model_metrics", checkpoint=checkpoint, values=values, step=step)

    def move_alias(self, registered: str, alias: str, checkpoint: str) -> None:
        """Move an alias of a registered model to its version with this checkpoint id."""
        self._append("model_alias", registered=registered, alias=alias, checkpoint=checkpoint)

    def announce(self, run: RunStart) -> None:
        """Announce the run: MLflow assigns an id and shows it as SCHEDULED."""
        self._append("announce", **vars(run))

    def describe(self, text: str, columns: Sequence[str] = ()) -> None:
        """Set the description that MLflow shows, in Markdown.

        `[text](run:KEY)` links to a run. columns: metrics that a list of runs should show.
        """
        self._append("note", text=text, columns=list(columns))

    def start(self, run: RunStart, pid: int = 0) -> None:
        """Begin the run, or resume it after an interruption.

        pid: of a process that this run lasts as long as, in place of this one; its end is that of its
        children.
        """
        self.tags |= run.tags
        self._append("start", **vars(run), **self.about)
        with contextlib.suppress(OSError):
            owner.hold(self.folder, pid, run.invocation)

    def finish(self, status: str, tags: Mapping[str, str] | None = None, abandoned: bool = False) -> None:
        """End the run; status is one of MLflow's FINISHED, FAILED, KILLED.

        abandoned: its process ended without doing so itself.
        """
        more = {**({"tags": dict(tags)} if tags else {}), **({"abandoned": True} if abandoned else {})}
        if self._append("finish", status=status, **more):
            with contextlib.suppress(OSError):  # without the end, it stays for `SpooledRun.end_if_abandoned`
                owner.let_go(self.folder)

    def _append(self, kind: str, **values: Any) -> bool:
        """Write an event; False where it could not be written."""
        line = json.dumps({"kind": kind, "time_ms": int(time.time() * 1000), **values}, default=str)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # one write per event, so that lines of several processes do not interleave
            with (self.folder / EVENTS).open("ab", buffering=0) as file:
                # a line that a full disk or a kill cut short stays alone
                start = b"\n" if self._ends_torn() else b""
                data = start + line.encode("utf-8", "backslashreplace") + b"\n"
                if file.write(data) != len(data):
                    raise OSError("the disk is full")
        except OSError as error:
            if not self._broken:
                log.warning(
                    "tracking: %s cannot be written (%s); this run goes on without it",
                    self.folder / EVENTS,
                    error,
                )
            self._broken = True
            return False
        return True

    def _ends_torn(self) -> bool:
        path = self.folder / EVENTS
        if not path.stat().st_size:
            return False
        with path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) != b"\n"


def read_event(line: bytes) -> dict[str, Any] | None:
    """The event of a line of a spool; None for a line that was cut short."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and "kind" in event else None


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


def _log_of(spool: Path) -> IO[bytes]:
    """The sender's log, for all who can write the spool; nothing is kept where it is another user's alone."""
    path = spool / "sender.log"
    try:
        output = path.open("ab")
    except PermissionError:
        return Path(os.devnull).open("ab")
    with contextlib.suppress(OSError):
        path.chmod(0o666 & spool.stat().st_mode)
    return output


def ensure_sender(spool: Path, root: Path) -> subprocess.Popen[bytes] | None:
    """Start the process that sends the spool to MLflow, at low priority.

    It exits immediately if another one is running.
    """
    root = origin_of(root)
    command = [sys.executable, "-m", "experiments.runs.sender", str(spool), "--root", str(root)]
    try:
        spool.mkdir(parents=True, exist_ok=True)
        with _log_of(spool) as output:
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
