"""Tracked runs of pipeline stages: record inputs and result, resume interrupted runs."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from experiments.layout import Layout
from experiments.runs.datasets import about_inputs
from experiments.runs.inputs import parents_of
from experiments.runs.invocation import bring_up_to_date, current, named
from experiments.runs.origin import is_temporary, spool_of
from experiments.runs.outputs import CHECKPOINT_TAG, OUTPUT_MD5, KnownOutputs, files_of, keep_output
from experiments.runs.provenance import (
    DVC_VARIABLE,
    fingerprint,
    git_state,
    lock_hash,
    md5_of,
    source_tags,
    stage_inputs,
    whole_fingerprint,
)
from experiments.runs.sender import is_sending, stuck, wait_for_end
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

END_PATIENCE_S = 3.0  # for the end of a run to be sent, where a person waits
LONG_S = 30.0  # after which a sender that began with the run is at work
CLOCK_S = 2.0  # resolution of file times


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
    files: dict[str, str] = field(default_factory=dict)  # path below the output -> md5
    checkpoint: str = ""  # id of the model that the run made


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
    reads: Mapping[str, str] | None = None,
    params: Mapping[str, Any] | None = None,
) -> Iterator[SpoolTracker]:
    """Run the body as a tracked run of `stage`, below the invocation that this process belongs to.

    With `resume`, a killed run is resumed under its key if inputs and settings that count are unchanged;
    otherwise its output is moved to the trash first. go_on: whether the output is kept, where the caller has
    decided that. Without `resume`, the body itself replaces the output. given: inputs (path -> digest) of a
    run that does not read the pipeline's. notes: tags on how the run goes on. reads: what the run is recorded
    with as read, by its own paths; default those inputs. params: of the config, what MLflow shows.
    """
    inputs = stage_inputs(stage, root) if given is None else dict(given)
    reads = inputs if reads is None else dict(reads)
    spool, above = spool_of(layout, root), current(layout, root)
    parents = parents_of(reads, KnownOutputs(layout, root))
    git, marker, mark = git_state(root), marker_of(stage, layout), fingerprint(inputs, config, stage)
    marks = (mark, whole_fingerprint(inputs, config))
    resumed = _resumed_key(stage, marks, layout, go_on) if resume else ""
    key = resumed or _announced_key(stage, mark, marker, spool) or new_run_key(stage)
    write_json(marker, {"key": key, "fingerprint": mark}, indent=1, default=str)
    output = layout.output_of(stage)
    tracker = SpoolTracker(spool / key, is_temporary(root), about_inputs(reads, root))
    tags = {"nava.stage": stage, "nava.recipe": recipe, "nava.output": str(output), **source_tags(git, root)}
    tags |= {JOB: job} if (job := os.environ.get(JOB_VARIABLE)) else {}
    name, below = (stage, above.key) if above else (named(f"{stage} {recipe}"), "")
    tracker.start(RunStart(name, tags, config, reads, parents, below, params))
    ensure_sender(spool, root)
    begun = RunRecord(
        stage=stage,
        key=key,
        recipe=recipe,
        git_commit=git.commit,
        git_dirty=git.dirty,
        lock_md5=lock_hash(root),
        inputs=inputs,
        parents=parents,
        config=dict(config),
        output=str(output),
        started_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        duration_s=0.0,
        fingerprint=mark,
        output_md5="",
    )
    tracker.set_tags(dict(notes or {}))
    start_s = time.monotonic()
    with stuck_shown(tracker, root), _invocation_described(above, layout), failure_marked(tracker):
        yield tracker
        _end(begun, time.monotonic() - start_s, tracker, layout)
        marker.unlink(missing_ok=True)


def _end(begun: RunRecord, seconds: float, tracker: SpoolTracker, layout: Layout) -> None:
    """End a run that went well, and keep its record."""
    output = layout.output_of(begun.stage)
    files = files_of(output)
    record = replace(
        begun,
        duration_s=seconds,
        output_md5=keep_output(tracker, str(output), files),
        files=files,
        checkpoint=tracker.tags.get(CHECKPOINT_TAG, ""),
    )
    tracker.log_metrics({"stage_seconds": seconds}, step=0)
    tracker.finish("FINISHED", {OUTPUT_MD5: record.output_md5})
    if not _is_same(read_record(layout, begun.stage), record):
        write_json(layout.runs / f"{begun.stage}.json", asdict(record), indent=1, default=str)


def _is_same(before: RunRecord | None, after: RunRecord) -> bool:
    """True if a run made again what was there, from the same. Its record stays, as DVC would take another one
    for a change of the stage."""
    if before is None or not before.files:
        return False
    return (before.fingerprint, before.output_md5) == (after.fingerprint, after.output_md5)


@contextmanager
def _invocation_described(above: SpoolTracker | None, layout: Layout) -> Iterator[None]:
    """Bring the description of the invocation up to date, however the body ends."""
    try:
        yield
    finally:
        if above is not None:
            bring_up_to_date(above, layout)


@contextmanager
def stuck_shown(tracker: SpoolTracker, root: Path) -> Iterator[None]:
    """At the end of a run, tell the person in front of it in one line if MLflow does not get it."""
    begun_s = time.monotonic()
    try:
        yield
    finally:
        with suppress(OSError):  # a spool that cannot be read, of which the tracker has warned
            _show_stuck(tracker, root, time.monotonic() - begun_s > LONG_S)


def _show_stuck(tracker: SpoolTracker, root: Path, is_long: bool) -> None:
    if is_long and not is_sending(tracker.folder.parent):
        ensure_sender(tracker.folder.parent, root)  # the one that began with the run was killed
    patience_s = 0.0 if DVC_VARIABLE in os.environ else END_PATIENCE_S
    wait_for_end(tracker.folder, root, patience_s)
    if problem := stuck(tracker.folder, root):
        print(
            f"tracking: run {tracker.key} is not in MLflow as a whole: {problem}; `nava tracking flush` "
            "sends the rest",
            file=sys.stderr,
        )


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
    made: Sequence[Path] = (),
    before_s: float = 0.0,
) -> Iterator[SpoolTracker]:
    """Run the body as a run `name` in MLflow with commit, settings and inputs (path -> digest).

    made: the folder or file that the run writes, or the files in it that tell what it is, where that is too
    large to hash; the tag nava.output names the place. before_s: seconds since which the work has been going
    on; what was in `made` before is not its.
    """
    spool, above, inputs = spool_of(layout, root), current(layout, root), inputs or {}
    tracker = SpoolTracker(spool / new_run_key(name), is_temporary(root), about_inputs(inputs, root))
    tags = {"nava.stage": name, **source_tags(git_state(root), root), **tags}
    parents = parents_of(inputs, KnownOutputs(layout, root))
    title, below = (name, above.key) if above else (named(name), "")
    tracker.start(RunStart(title, tags, config, inputs, parents, below))
    ensure_sender(spool, root)
    since_s = time.time() - before_s - CLOCK_S
    with stuck_shown(tracker, root), _invocation_described(above, layout), failure_marked(tracker):
        yield tracker
        place, md5 = tags.get("nava.output", ""), ""
        if place and (made or CHECKPOINT_TAG in tracker.tags):
            md5 = keep_output(tracker, place, _files_made(made, Path(place), since_s))
        tracker.finish("FINISHED", {OUTPUT_MD5: md5} if md5 else {})


def _files_made(made: Sequence[Path], place: Path, since_s: float) -> dict[str, str]:
    """md5 of the files at `made` by their paths below `place`, of those written since then."""
    files: dict[str, str] = {}
    for path in made:
        below = path.relative_to(place).as_posix() if path != place else ""
        found = files_of(path, since_s) if path.exists() else {}
        files |= {"/".join(filter(None, (below, file))): md5 for file, md5 in found.items()}
    return files


def record_run(
    name: str,
    config: Mapping[str, Any],
    tags: Mapping[str, str],
    layout: Layout,
    root: Path,
    inputs: Mapping[str, str],
    made: Sequence[Path],
    seconds: float,
    whole: bool = False,
    log: Callable[[SpoolTracker], None] | None = None,
) -> None:
    """Record work that is done as a run, for a command whose refused inputs should leave nothing behind.

    whole: `made` is all the run's, also what was in it before. log: logs what came out.
    """
    before_s = time.time() if whole else seconds
    with single_run(name, config, tags, layout, root, inputs, made, before_s=before_s) as tracker:
        tracker.log_metrics({"stage_seconds": seconds}, step=0)
        if log:
            log(tracker)
