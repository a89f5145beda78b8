"""Trace a clip, checkpoint, pipeline file or run back to data, code and parent runs.

Runs made here are in the spool out/tracking; others are read from tags in MLflow.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from experiments.layout import PRETRAIN_STAGES, STAGES, Layout
from experiments.runs.provenance import read_lock
from experiments.runs.run import read_record
from experiments.runs.spool import SpooledRun, spooled_runs

CHECKPOINT_TAG = "nava.checkpoint_id"
START_TAG = "parent_model_id"  # trainer tag: checkpoint id of the initial model
SHA256 = "sha256:"  # prefix of digests of external inputs


@dataclass(frozen=True)
class RunFacts:
    """One run of a lineage; `parents` maps stage -> run key."""

    run: str
    stage: str
    recipe: str
    status: str
    mlflow_run_id: str
    git_commit: str
    git_dirty: bool
    lock_md5: str
    output: str
    output_md5: str  # from dvc.lock; empty if not made by DVC
    inputs: dict[str, str]
    parents: dict[str, str]
    config: dict[str, Any] = field(default_factory=dict)


def trace(target: str, layout: Layout, root: Path) -> dict[str, Any]:
    """{target, kind, checkpoint_id, run, runs: [the run, then its ancestors, nearest first]}.

    Raises ValueError or FileNotFoundError when the target is neither a path nor a run, or nothing is known of
    it.
    """
    path = Path(target)
    if path.exists():
        kind, checkpoint, key = _of_path(path, layout)
    else:
        kind, checkpoint, key = "run", "", _of_run(target, layout)
    runs: dict[str, RunFacts] = {}
    waiting = [key]
    while waiting:
        if (key_now := waiting.pop(0)) not in runs:
            runs[key_now] = facts = _with_start(_facts(key_now, layout, root), layout)
            waiting += facts.parents.values()
    return {
        "target": target,
        "kind": kind,
        "checkpoint_id": checkpoint,
        "run": key,
        "runs": [asdict(facts) for facts in runs.values()],
    }


def _with_start(facts: RunFacts, layout: Layout) -> RunFacts:
    """Add the run that made the initial model, if that is no pipeline stage (such as an import)."""
    run = SpooledRun(layout.tracking / facts.run)
    started_from = _tags(run).get(START_TAG, "") if run.exists() else ""
    key = _run_with_checkpoint(started_from, layout) if started_from else ""
    return (
        facts
        if not key or key in facts.parents.values()
        else replace(facts, parents={**facts.parents, "model": key})
    )


def _of_path(path: Path, layout: Layout) -> tuple[str, str, str]:
    """(kind, checkpoint id, run key) of a path."""
    checkpoint = checkpoint_of(path)
    kind = (
        "clip" if path.suffix == ".mp4" else "model" if checkpoint else "file" if path.is_file() else "folder"
    )
    stage = _stage_of(path, layout)
    if stage and (record := read_record(layout, stage)):
        return kind, checkpoint, record.key
    if checkpoint and (key := _run_with_checkpoint(checkpoint, layout, path)):
        return kind, checkpoint, key
    known = (
        "its metadata names no checkpoint" if not checkpoint else f"no run here made checkpoint {checkpoint}"
    )
    raise ValueError(
        f"{path}: not an output of a stage that ran here, and {known}; give --out of the run that made it"
    )


def checkpoint_of(path: Path) -> str:
    """Checkpoint id in a clip's metadata or a model folder's config; "" if there is none."""
    if path.suffix == ".mp4":
        from pretrain.media.read import read_metadata

        metadata = read_metadata(path)
        return metadata.get("checkpoint_id", "")
    config = next(
        (
            folder / "config.json"
            for folder in (path, path / "model", path.parent)
            if (folder / "config.json").is_file()
        ),
        None,
    )
    if config is None:
        return ""
    content = json.loads(config.read_text())
    return content.get("checkpoint_id", "")


def _stage_of(path: Path, layout: Layout) -> str:
    path = path.resolve()
    for stage in STAGES:
        output = layout.output_of(stage).resolve()
        if path == output or output in path.parents:
            return stage
    return "pretrain_" + PRETRAIN_STAGES[-1] if path == (layout.out / "pretrain").resolve() else ""


def _run_with_checkpoint(checkpoint: str, layout: Layout, path: Path | None = None) -> str:
    """The last run with this checkpoint id, preferring one that wrote to `path`.

    Equal weights may have several sources.
    """
    found = {run.key: _tags(run) for run in reversed(spooled_runs(layout.tracking))}
    keys = [key for key, tags in found.items() if tags.get(CHECKPOINT_TAG) == checkpoint]
    here = {path.resolve(), *path.resolve().parents} if path else set()
    wrote = (
        key for key in keys if (output := found[key].get("nava.output")) and Path(output).resolve() in here
    )
    return next(wrote, keys[0] if keys else "")


def _of_run(target: str, layout: Layout) -> str:
    """Run key of a key, an MLflow id or a stage name (its last run)."""
    for run in spooled_runs(layout.tracking):
        if target in (run.key, run.sent().run_id):
            return run.key
    if target in STAGES and (record := read_record(layout, target)):
        return record.key
    if len(target) == 32 and all(letter in "0123456789abcdef" for letter in target):
        return target  # the format of an MLflow id: look it up there
    raise FileNotFoundError(
        f"{target}: no such path, run in {layout.tracking} or stage that ran; `ls {layout.tracking}` shows "
        "the runs"
    )


def _tags(run: SpooledRun) -> dict[str, str]:
    tags: dict[str, str] = {}
    for _, event in run.events():
        if event["kind"] in ("announce", "start"):
            tags |= event["tags"]
        elif event["kind"] == "tags":
            tags |= event["values"]
    return tags


def _facts(key: str, layout: Layout, root: Path) -> RunFacts:
    run = SpooledRun(layout.tracking / key)
    if run.exists():
        events = [event for _, event in run.events()]
        first = next((event for event in events if event["kind"] == "start"), events[0])
        last = next(event for event in reversed(events) if event["kind"] in ("announce", "start", "finish"))
        going = "SCHEDULED" if last["kind"] == "announce" else "RUNNING" if run.alive() else "INTERRUPTED"
        status = last["status"] if last["kind"] == "finish" else going
        return _from_tags(key, run.sent().run_id, status, _tags(run), first, root)
    return _from_mlflow(key, root)


def _from_mlflow(run_id: str, root: Path) -> RunFacts:
    from experiments.runs.sender import EXPERIMENT, quiet_mlflow, store_uri

    quiet_mlflow()
    from experiments.runs.mlflow_store import MlflowStore

    try:
        found = MlflowStore(store_uri(root), EXPERIMENT, root).read(run_id)
    except Exception as error:  # a store raises whatever its database or HTTP client does
        raise ValueError(
            f"{run_id}: neither in the spool nor in {store_uri(root)} ({str(error).splitlines()[0]})"
        ) from None
    tags = found["tags"]
    inputs = {name.removeprefix("input."): value for name, value in tags.items() if name.startswith("input.")}
    parents = {
        name.removeprefix("parent."): value for name, value in tags.items() if name.startswith("parent.")
    }
    start = {"inputs": inputs, "parents": parents, "config": found["params"]}
    return _from_tags(tags.get("nava.run", run_id), run_id, found["status"], tags, start, root)


def _from_tags(
    key: str, run_id: str, status: str, tags: Mapping[str, str], start: Mapping[str, Any], root: Path
) -> RunFacts:
    output = tags.get("nava.output", "")
    locked = {
        out["path"]: out.get("md5", "") for entry in read_lock(root).values() for out in entry.get("outs", ())
    }
    return RunFacts(
        run=key,
        stage=tags.get("nava.stage", ""),
        recipe=tags.get("nava.recipe", ""),
        status=status,
        mlflow_run_id=run_id,
        git_commit=tags.get("mlflow.source.git.commit", ""),
        git_dirty=tags.get("git.dirty") == "true",
        lock_md5=tags.get("dvc.lock.md5", ""),
        output=output,
        output_md5=locked.get(output, ""),
        inputs=start["inputs"],
        parents=start["parents"],
        config=start["config"],
    )


def show(found: Mapping[str, Any]) -> None:
    """Print a lineage as a tree; a repeated run is printed by name only."""
    from rich.console import Console
    from rich.tree import Tree

    by_key = {run["run"]: run for run in found["runs"]} | {
        run["mlflow_run_id"]: run for run in found["runs"] if run["mlflow_run_id"]
    }
    checkpoint = f", checkpoint {found['checkpoint_id']}" if found["checkpoint_id"] else ""
    tree, shown = Tree(f"{found['kind']} {found['target']}{checkpoint}"), set()

    def add(parent: Tree, key: str) -> None:
        run = by_key[key]
        if key in shown:
            parent.add(f"{run['stage']} (shown above)")
            return
        shown.add(key)
        commit = (run["git_commit"][:10] or "no git") + (" + changes" if run["git_dirty"] else "")
        node = parent.add(
            f"[bold]{run['stage']}[/bold]  {run['status'].lower()}  run {run['run']}  commit {commit}"
        )
        sent = run["mlflow_run_id"] or "(not sent yet: nava tracking flush)"
        node.add(f"MLflow {sent}; made {run['output']} {run['output_md5']}".rstrip())
        data = {
            path: md5
            for path, md5 in run["inputs"].items()
            if path.startswith(("out/", "reports/")) or md5.startswith(SHA256)
        }
        for path, md5 in data.items():
            node.add(f"[dim]{md5 if md5.startswith(SHA256) else md5[:12]}  {path}[/dim]")
        if code := len(run["inputs"]) - len(data):
            node.add(f"[dim]and {code} files and folders of code (--json lists them)[/dim]")
        for ancestor in run["parents"].values():
            add(node, ancestor)

    add(tree, found["run"])
    Console(width=None if sys.stdout.isatty() else 250, highlight=False).print(tree)
