"""Tracked runs of pipeline stages: record inputs and result, resume interrupted runs."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from experiments.layout import Layout
from experiments.runs.provenance import (
    fingerprint,
    git_state,
    lock_hash,
    md5_of,
    producers,
    source_tags,
    stage_inputs,
    whole_fingerprint,
)
from experiments.runs.spool import SpooledRun
from experiments.runs.tracker import (
    ANNOUNCED_RUN,
    JOB,
    RunStart,
    SpoolTracker,
    ensure_sender,
    failure_marked,
    new_run_key,
)
from orchestration.launch import JOB_VARIABLE
from pretrain.files import read_json, write_json
from pretrain.storage import move_aside


class Interrupted(KeyboardInterrupt):
    """A stage stopped early on request, leaving a checkpoint; handled like Ctrl-C, with its own message."""


def end_on_sigterm() -> None:
    """Make SIGTERM end this process like Ctrl-C, so that its run is marked as stopped.

    A second SIGTERM is ignored.
    """

    def stop(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Interrupted("stopped on request; the same command goes on")

    signal.signal(signal.SIGTERM, stop)


@dataclass(frozen=True)
class RunRecord:
    """The last successful run of a stage: `out/runs/<stage>.json`."""

    stage: str
    key: str
    recipe: str
    git_commit: str
    git_dirty: bool
    lock_md5: str
    inputs: dict[str, str]  # path -> md5
    parents: dict[str, str]  # stage -> run key
    config: dict[str, Any]
    output: str
    started_at: str  # ISO 8601, UTC
    duration_s: float
    fingerprint: str
    output_md5: str


def read_record(layout: Layout, stage: str) -> RunRecord | None:
    """The stage's last successful run; None if there is none."""
    path = layout.runs / f"{stage}.json"
    return RunRecord(**json.loads(path.read_text())) if path.is_file() else None


def unchanged(
    stage: str,
    config: Mapping[str, Any],
    layout: Layout,
    root: Path,
    inputs: Mapping[str, str] | None = None,
) -> bool:
    """True if the last successful run had the same inputs and config, and its outputs are unchanged.

    inputs: path -> digest, None = those that the pipeline names.
    """
    record, output = read_record(layout, stage), layout.output_of(stage)
    if record is None or not output.exists() or marker_of(stage, layout).exists():
        return False
    current = fingerprint(stage_inputs(stage, root) if inputs is None else inputs, config, stage)
    before = fingerprint(record.inputs, record.config, stage)
    return before == current and record.output_md5 == md5_of(output)


def can_resume(
    stage: str,
    config: Mapping[str, Any],
    layout: Layout,
    root: Path,
    inputs: Mapping[str, str] | None = None,
) -> bool:
    """True if an unfinished run of the stage has the same inputs (as for `unchanged`) and settings."""
    marker = marker_of(stage, layout)
    given = stage_inputs(stage, root) if inputs is None else inputs
    marks = (fingerprint(given, config, stage), whole_fingerprint(given, config))
    return marker.is_file() and _read_marker(marker)["fingerprint"] in marks


def running_key(stage: str, layout: Layout) -> str:
    """Key of the stage's unfinished run."""
    return _read_marker(marker_of(stage, layout))["key"]


def marker_of(stage: str, layout: Layout) -> Path:
    """Marker file of an unfinished run."""
    return layout.runs / f"{stage}.running.json"


def _read_marker(marker: Path) -> dict[str, Any]:
    return {"fingerprint": "", "key": "", **read_json(marker, "remove it")}


@contextmanager
def tracked(
    stage: str,
    recipe: str,
    config: Mapping[str, Any],
    layout: Layout,
    root: Path,
    resume: bool,
    given: Mapping[str, str] | None = None,
    go_on: bool | None = None,
    notes: Mapping[str, str] | None = None,
) -> Iterator[SpoolTracker]:
    """Run the body as a tracked run of `stage`.

    With `resume`, a killed run is resumed under its key if inputs and settings that count are unchanged;
    otherwise its output is moved to the trash first. go_on: whether the output is kept, where the caller has
    decided that. Without `resume`, the body itself replaces the output. given: inputs (path -> digest) of a
    run that does not read the pipeline's. notes: tags on how the run goes on.
    """
    inputs = stage_inputs(stage, root) if given is None else dict(given)
    makers = producers(stage, root) if given is None else []
    parents = {name: record.key for name in makers if (record := read_record(layout, name))}
    git = git_state(root)
    marker = marker_of(stage, layout)
    mark = fingerprint(inputs, config, stage)
    key = _announced_key(stage, mark, marker, layout.tracking) or new_run_key(stage)
    if resume:
        key = _resumed_key(stage, (mark, whole_fingerprint(inputs, config)), layout, go_on) or key
    write_json(marker, {"key": key, "fingerprint": mark}, indent=1, default=str)
    tracker = SpoolTracker(layout.tracking / key)
    tags = {"nava.stage": stage, "nava.recipe": recipe, "nava.output": str(layout.output_of(stage))}
    tags |= source_tags(git, root)
    tags |= {JOB: job} if (job := os.environ.get(JOB_VARIABLE)) else {}
    tracker.start(RunStart(name=stage, tags=tags, config=config, inputs=inputs, parents=parents))
    tracker.set_tags(dict(notes)) if notes else None
    ensure_sender(layout.tracking, root)
    started, start_s = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), time.monotonic()
    with failure_marked(tracker):
        yield tracker
    seconds = time.monotonic() - start_s
    record = RunRecord(
        stage=stage,
        key=key,
        recipe=recipe,
        git_commit=git.commit,
        git_dirty=git.dirty,
        lock_md5=lock_hash(root),
        inputs=inputs,
        parents=parents,
        config=dict(config),
        output=str(layout.output_of(stage)),
        started_at=started,
        duration_s=seconds,
        fingerprint=mark,
        output_md5=md5_of(layout.output_of(stage)),
    )
    tracker.log_metrics({"stage_seconds": seconds}, step=0)
    tracker.finish("FINISHED")
    write_json(layout.runs / f"{stage}.json", asdict(record), indent=1, default=str)
    marker.unlink(missing_ok=True)


def _announced_key(stage: str, current: str, marker: Path, spool: Path) -> str:
    """Key of the run that a submission announced for this stage.

    "" if there is none, or if it began with other inputs.
    """
    name, _, key = os.environ.get(ANNOUNCED_RUN, "").partition("=")
    if name != stage:
        return ""
    run = SpooledRun(spool / key)
    if not run.exists() or not run.started():
        return key
    left = _read_marker(marker) if marker.is_file() else {}
    return key if (left.get("key"), left.get("fingerprint")) == (key, current) else ""


def _resumed_key(stage: str, marks: tuple[str, ...], layout: Layout, go_on: bool | None) -> str:
    """Key of the interrupted run to resume; else "", after moving its output aside unless it is kept."""
    marker, output = marker_of(stage, layout), layout.output_of(stage)
    left = _read_marker(marker) if marker.is_file() else {}
    if (left.get("fingerprint") in marks) if go_on is None else go_on:
        return left.get("key", "") if output.is_dir() else ""
    move_aside(output, layout.trash, stage)
    return ""


@contextmanager
def single_run(
    name: str,
    config: Mapping[str, Any],
    tags: Mapping[str, str],
    layout: Layout,
    root: Path,
    inputs: Mapping[str, str] | None = None,
) -> Iterator[SpoolTracker]:
    """Run the body as a run `name` in MLflow with commit, settings and inputs (path -> digest)."""
    tracker = SpoolTracker(layout.tracking / new_run_key(name))
    tags = {"nava.stage": name, **source_tags(git_state(root), root), **tags}
    tracker.start(RunStart(name=name, tags=tags, config=config, inputs=inputs or {}))
    ensure_sender(layout.tracking, root)
    with failure_marked(tracker):
        yield tracker
    tracker.finish("FINISHED")
