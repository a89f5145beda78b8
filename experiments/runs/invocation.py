"""One parent run in MLflow for all that a command runs, or `dvc repro` and `dvc exp run`.

Its stages find it by the environment, or by the DVC process above them, and are its direct children. It has
the headline numbers, the curves of all its trainings, and a description that every stage brings up to date.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import psutil

from experiments.layout import STAGES, Layout
from experiments.runs.description import StageLine, description
from experiments.runs.origin import is_temporary, spool_of
from experiments.runs.outputs import records_by_key
from experiments.runs.owner import OWNER, runs_here
from experiments.runs.provenance import DVC_VARIABLE, git_state, source_tags
from experiments.runs.spool import SpooledRun, children
from experiments.runs.tracker import RunStart, SpoolTracker, failure_marked, new_run_key
from pretrain.files import read_json, write_json

INVOCATION = "NAVA_INVOCATION"  # environment: spool folder of the run that the processes below belong to
INVOCATION_TAG = "nava.invocation"  # what the command did
RESULTS = "results.json"  # in the run's spool folder: what came out, for its description
# of a training's metrics, those that its invocation shows as well
_CURVES = re.compile(
    r"(loss|loss_video|loss_audio|clips_seen|audio_seconds(/clips)?|validation/(\w+/)?(video|audio)"
    r"|held_out_total)$"
)
log = logging.getLogger(__name__)
_HELD_OUT = re.compile(r"held_out/(reward|judge)/")


def named(what: str) -> str:
    """Name of a run that stands alone: what it did, and when."""
    return f"{what} {time.strftime('%Y-%m-%d %H:%M')}"


@contextmanager
def invocation(
    what: str, layout: Layout, root: Path, config: Mapping[str, Any] | None = None
) -> Iterator[SpoolTracker]:
    """Run the body as one command: the runs that it starts, in any process, are children of the yielded one.

    Within another invocation the body belongs to that.
    """
    spool = spool_of(layout, root)
    if (outer := current(layout, root)) is not None:
        yield outer
        return
    tracker = _begin(what, spool, root, config or {})
    before = os.environ.get(INVOCATION)
    os.environ[INVOCATION] = str(tracker.folder.resolve())
    try:
        with failure_marked(tracker):
            yield tracker
            bring_up_to_date(tracker, layout)
            tracker.finish("FINISHED")
    finally:
        os.environ.pop(INVOCATION)
        if before is not None:
            os.environ[INVOCATION] = before


def current(layout: Layout, root: Path) -> SpoolTracker | None:
    """The run that this process belongs to; None for a command that stands alone."""
    spool = spool_of(layout, root)
    folder = Path(os.environ.get(INVOCATION) or spool.resolve() / "none")
    if folder.parent == spool.resolve() and SpooledRun(folder).exists():
        return SpoolTracker(folder, is_temporary(root))
    return _of_dvc(spool, root)


def _begin(what: str, spool: Path, root: Path, config: Mapping[str, Any], pid: int = 0) -> SpoolTracker:
    key = new_run_key(what.split()[0])
    tracker = SpoolTracker(spool / key, is_temporary(root))
    tags = {INVOCATION_TAG: what, **source_tags(git_state(root), root)}
    tracker.start(RunStart(name=named(what), tags=tags, config=config), pid)
    return tracker  # the first run below it starts the process that sends both


def _of_dvc(spool: Path, root: Path) -> SpoolTracker | None:
    """The run of the DVC process above this one, which lasts as long as that; None without one."""
    process = _dvc_process()
    if process is None:
        return None
    for path in sorted(spool.glob(f"*/{OWNER}")):
        run = SpooledRun(path.parent)
        owner = run.owner()
        if owner.get("waits") and owner.get("pid") == process.pid and runs_here(owner):
            return SpoolTracker(run.folder, is_temporary(root))
    named_experiment = os.environ.get("DVC_EXP_NAME", "")
    what = f"dvc-exp {named_experiment}" if named_experiment else "dvc-repro"
    return _begin(what, spool, root, {}, process.pid)


def _dvc_process() -> psutil.Process | None:
    """The nearest DVC above a command that DVC runs."""
    if DVC_VARIABLE not in os.environ:
        return None
    try:
        above = psutil.Process().parents()
        return next((process for process in above if _is_dvc(process.cmdline())), None)
    except psutil.Error:
        return None


def _is_dvc(command: Sequence[str]) -> bool:
    return any(Path(word).name == "dvc" for word in command[:2]) or list(command[1:3]) == ["-m", "dvc"]


class Results(Protocol):
    """numbers: by name; text: Markdown; columns: the numbers that MLflow's list of runs should show."""

    @property
    def numbers(self) -> Mapping[str, float]: ...
    @property
    def text(self) -> str: ...
    @property
    def columns(self) -> Sequence[str]: ...


def publish(tracker: SpoolTracker, results: Results) -> None:
    """Give an invocation what came out: its numbers, and the part of its description on them."""
    tracker.log_metrics(results.numbers, step=0)
    kept = {"text": results.text, "columns": list(results.columns)}
    try:
        write_json(tracker.folder / RESULTS, kept, indent=None)
    except OSError as error:
        log.warning("tracking: %s", error)


def bring_up_to_date(tracker: SpoolTracker, layout: Layout) -> None:
    """Describe an invocation by what has come of it so far. Like all of tracking, it fails no work."""
    path = tracker.folder / RESULTS
    try:
        kept = read_json(path, "remove it") if path.is_file() else {}
        start = SpooledRun(tracker.folder).start_event()
        text = description(start.get("tags", {}), _stages(tracker, layout), kept.get("text", ""))
    except (OSError, ValueError) as error:
        log.warning("tracking: %s is not described (%s)", tracker.key, error)
        return
    tracker.describe(text, kept.get("columns", ()))


def _stages(tracker: SpoolTracker, layout: Layout) -> list[StageLine]:
    """The runs of an invocation, and of a pipeline the stages that were kept as they are."""
    found = [_line(run) for run in children(tracker.folder.parent, tracker.key)]
    made = {line.stage for line in found}
    records = {record["stage"]: record for record in records_by_key(layout).values()}
    kept = [
        StageLine(stage, record["key"], "kept", record["duration_s"])
        for stage, record in records.items()
        if stage not in made
    ]
    pipeline = made & set(STAGES)
    lines = [*found, *kept] if len(pipeline) > 1 else found
    order = {stage: place for place, stage in enumerate(STAGES)}
    return sorted(lines, key=lambda line: order.get(line.stage, len(order))) if pipeline else lines


def _line(run: SpooledRun) -> StageLine:
    start, (status, ended_ms) = run.start_event(), run.last_end()
    seconds = (ended_ms - start["time_ms"]) / 1000 if status else None
    stage = start.get("tags", {}).get("nava.stage", start["name"])
    return StageLine(stage, run.key, status.lower() or "running", seconds)


def add_curves(child: SpoolTracker, parent: SpoolTracker, below: str, steps_before: int) -> None:
    """Add a training's curves to its invocation's, behind `steps_before` steps of other trainings.

    below: first part of their names there, as in `pretrain/loss_video`.
    """
    run = SpooledRun(child.folder)
    for _, event in run.events() if run.exists() else ():
        if event["kind"] == "metrics":
            names = {
                name: value
                for name, value in event["values"].items()
                if _CURVES.match(name) or _HELD_OUT.match(name)
            }
            values = {f"{below}/{name}": value for name, value in names.items()}
            parent.log_metrics(values, event["step"] + steps_before, event["time_ms"])
