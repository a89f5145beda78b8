"""Trace a clip, checkpoint, pipeline file or run back to data, code and parent runs.

Content decides: what lies at a path is compared with what runs made, file by file. Runs are known from the
records of the stages (out/runs, which DVC moves), from the spool (out/tracking) and from MLflow.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from experiments.layout import STAGES, Layout
from experiments.runs.elsewhere import Elsewhere
from experiments.runs.inputs import CHECKPOINT, SHA256, is_code, maker_of_input, stage_of_key
from experiments.runs.origin import spool_of
from experiments.runs.outputs import (
    CHECKPOINT_TAG,
    OUTPUT_MD5,
    KnownOutputs,
    digest_of,
    files_of,
    part,
    records_by_key,
)
from experiments.runs.resumed import COMMITS, SOURCE, others_before, values_of
from experiments.runs.run import read_record
from experiments.runs.spool import SpooledRun, spooled_runs
from pretrain.terminal import plain, shown, shown_all

__all__ = ["CHECKPOINT_TAG", "SHA256", "RunFacts", "checkpoint_of", "show", "trace"]

START_TAG = "parent_model_id"  # trainer tag: checkpoint id of the initial model
UNKNOWN = "UNKNOWN"  # status of a run that is named as a parent, and of which nothing else is known
COMMIT = f"{SOURCE}git.commit"  # tag
MLFLOW_ID = 32  # hexadecimal digits


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
    output_md5: str  # of what the run made; empty if it was not measured
    inputs: dict[str, str]
    parents: dict[str, str]
    config: dict[str, Any] = field(default_factory=dict)
    commits_before: list[str] = field(default_factory=list)  # of a run that went on with other code


def trace(target: str, layout: Layout, root: Path) -> dict[str, Any]:
    """{target, kind, checkpoint_id, run, runs: [the run, then its ancestors, nearest first]}.

    Raises ValueError or FileNotFoundError when the target is neither a path nor a run, or no known run made
    what lies there.
    """
    known = _Known(layout, root)
    path = Path(target)
    if path.exists():
        kind, checkpoint, key = _of_path(path, known)
    else:
        kind, checkpoint, key = "run", "", _of_run(target, known)
    runs: dict[str, RunFacts] = {}
    waiting = [key]
    while waiting:
        if (key_now := waiting.pop(0)) not in runs:
            runs[key_now] = facts = _with_start(_facts(key_now, known, asked=key_now == key), known)
            waiting += facts.parents.values()
    return {
        "target": target,
        "kind": kind,
        "checkpoint_id": checkpoint,
        "run": key,
        "runs": [asdict(facts) for facts in runs.values()],
    }


class _Known:
    """What is known of runs: here, and in MLflow where this is not enough."""

    def __init__(self, layout: Layout, root: Path) -> None:
        self.layout, self.root = layout, root
        self.spool = spool_of(layout, root)
        self.outputs = KnownOutputs(layout, root)
        self.records = records_by_key(layout)
        self.elsewhere = Elsewhere(root)


def _with_start(facts: RunFacts, known: _Known) -> RunFacts:
    """Add the runs that made inputs of which no parent is recorded: the initial model, where that is no
    stage's (such as an import), and what came from another machine."""
    run, found = SpooledRun(known.spool / facts.run), dict(facts.parents)

    def add(name: str, key: str) -> None:
        if key and key not in (*found.values(), facts.run):
            found[name if name not in found else f"{name} (input)"] = key

    if run.exists() and (started_from := _tags(run).get(START_TAG, "")):
        add("model", _run_with_checkpoint(started_from, known))
    for path, digest in facts.inputs.items():
        stage = _stage_of(known.root / path, known.layout)
        if is_code(path) or stage in found:
            continue
        key, is_model = maker_of_input(path, digest, known.outputs), digest.startswith(CHECKPOINT)
        if not key and (stage or is_model):
            tag = CHECKPOINT_TAG if is_model else OUTPUT_MD5
            key = known.elsewhere.with_tag(tag, digest.removeprefix(CHECKPOINT))
        add(stage or ("model" if is_model else stage_of_key(key)), key)
    return replace(facts, parents=found)


def _of_path(path: Path, known: _Known) -> tuple[str, str, str]:
    """(kind, checkpoint id, run key) of a path."""
    checkpoint = checkpoint_of(path)
    kind = (
        "clip" if path.suffix == ".mp4" else "model" if checkpoint else "file" if path.is_file() else "folder"
    )
    made = known.outputs.with_checkpoint(checkpoint, path)
    if (
        made and not made.read_files()
    ):  # such as an import, whose files are too large to hash at every question
        return kind, checkpoint, made.key
    if key := known.outputs.maker_of(path):
        return kind, checkpoint, key
    if checkpoint and (key := _run_with_checkpoint(checkpoint, known, path)):
        if kind == "clip" or _may_hold(key, path, known):
            return kind, checkpoint, key
        raise ValueError(f"{path}: names checkpoint {checkpoint}, but is not what run {key} made; {_RESTORE}")
    last = known.outputs.last_at(path)
    for md5 in _digests(path, known, last.path if last else ""):
        if key := known.elsewhere.with_tag(OUTPUT_MD5, md5):
            return kind, checkpoint, key
    raise ValueError(_unknown(path, checkpoint, known))


_RESTORE = "restore it (`dvc checkout`) or make it again"


def _digests(path: Path, known: _Known, output: str) -> list[str]:
    """What MLflow may know that lies at a path: its own md5, and that of the whole output it is part of."""
    places = [path]
    stage = _stage_of(path, known.layout)
    whole = known.root / output if output else known.layout.output_of(stage) if stage else path
    places += [whole] if whole.exists() and whole.resolve() != path.resolve() else []
    return [md5 for place in places if (md5 := digest_of(files_of(place)))]


def _unknown(path: Path, checkpoint: str, known: _Known) -> str:
    """Why nothing is known of a path, in one line."""
    last = known.outputs.last_at(path)
    asked = known.elsewhere.asked()
    if last is not None:
        place = (last.below(path.resolve(), known.root)) or ""
        expected, found = part(last.read_files(), place), files_of(path)
        names = sorted({*expected, *found} - {name for name in found if expected.get(name) == found[name]})
        differs = f", differs in {', '.join(name or path.name for name in names[:3])}" if names else ""
        more = f" and {len(names) - 3} more" if names[3:] else ""
        return (
            f"{path}: no run here made what lies here (the last run that wrote here is {last.key}"
            f"{differs}{more}){asked}; {_RESTORE}"
        )
    made = f"no run here made checkpoint {checkpoint}" if checkpoint else "no run here made it"
    return f"{path}: {made}{asked}; give --out of the run that did, or MLFLOW_TRACKING_URI of its MLflow"


def _may_hold(key: str, path: Path, known: _Known) -> bool:
    """False for a model folder (or a file of one) that is not as the run of its checkpoint left it."""
    made = next((made for made in known.outputs.made if made.key == key), None)
    files = made.read_files() if made else {}
    if not files:
        return True
    here = files_of(path)
    if "" in here:
        return here[""] in files.values()
    folders = {"/".join(name.split("/")[:end]) for name in files for end in range(name.count("/") + 1)}
    # a folder may lack files (of checkpoints, say), but has no others
    return any(here.items() <= part(files, folder).items() for folder in folders)


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
    return ""


def _run_with_checkpoint(checkpoint: str, known: _Known, path: Path | None = None) -> str:
    """The last run that made a model of this id, preferring one that wrote to `path`, "" if none is known.

    Equal weights may have several sources.
    """
    if made := known.outputs.with_checkpoint(checkpoint, path):
        return made.key
    found = {run.key: _tags(run) for run in reversed(spooled_runs(known.spool))}
    keys = [key for key, tags in found.items() if tags.get(CHECKPOINT_TAG) == checkpoint]
    here = {path.resolve(), *path.resolve().parents} if path else set()
    wrote = (
        key for key in keys if (output := found[key].get("nava.output")) and Path(output).resolve() in here
    )
    here_or_last = next(wrote, keys[0] if keys else "")
    return here_or_last or known.elsewhere.with_tag(CHECKPOINT_TAG, checkpoint)


def _of_run(target: str, known: _Known) -> str:
    """Run key of a key, an MLflow id or a stage name (its last run)."""
    for run in spooled_runs(known.spool):
        if target in (run.key, run.sent().run_id):
            return run.key
    if target in known.records:
        return target
    if target in STAGES and (record := read_record(known.layout, target)) and record.key:
        return record.key
    if len(target) == MLFLOW_ID and all(letter in "0123456789abcdef" for letter in target):
        return target  # the format of an MLflow id: look it up there
    if key := known.elsewhere.with_tag("nava.run", target):
        return key
    raise FileNotFoundError(
        f"{target}: no such path, run in {known.spool} or stage that ran{known.elsewhere.asked()}; "
        f"`ls {known.spool}` shows the runs"
    )


def _tags(run: SpooledRun) -> dict[str, str]:
    tags: dict[str, str] = {}
    for _, event in run.events():
        if event["kind"] in ("announce", "start", "finish"):
            tags |= event.get("tags", {})
        elif event["kind"] == "tags":
            tags |= event["values"]
    return tags


def _facts(key: str, known: _Known, asked: bool) -> RunFacts:
    """What is known of a run. Raises ValueError for the one that was asked for if that is nothing."""
    run = SpooledRun(known.spool / key)
    if run.exists() and (facts := _from_spool(run)):
        return facts
    if record := known.records.get(key):
        return replace(_from_record(record), mlflow_run_id=known.elsewhere.id_of(key))
    found = known.elsewhere.read(key, required=asked)
    if found is None:
        return _from_tags(key, "", UNKNOWN, {"nava.stage": stage_of_key(key)}, {})
    tags = found["tags"]
    inputs = {name.removeprefix("input."): value for name, value in tags.items() if name.startswith("input.")}
    parents = {
        name.removeprefix("parent_key."): value
        for name, value in tags.items()
        if name.startswith("parent_key.")
    }
    start = {"inputs": inputs, "parents": parents, "config": found["params"]}
    return _from_tags(tags.get("nava.run", key), found["run_id"], found["status"], tags, start)


def _from_spool(run: SpooledRun) -> RunFacts | None:
    events = [event for _, event in run.events()]
    if not events:
        return None
    starts = [event for event in events if event["kind"] in ("announce", "start")]
    # commit, inputs and parents are those that the run went on with the last time, as in its record
    start = run.start_event() or (starts[0] if starts else events[0])
    last = next(
        (event for event in reversed(events) if event["kind"] in ("announce", "start", "finish")), start
    )
    going = "SCHEDULED" if last["kind"] == "announce" else "RUNNING" if run.alive() else "INTERRUPTED"
    status = last["status"] if last["kind"] == "finish" else going
    commits = [event.get("tags", {}).get(COMMIT, "") for event in starts if event["kind"] == "start"]
    facts = _from_tags(run.key, run.sent().run_id, status, _tags(run), start)
    return replace(facts, commits_before=others_before(commits))


def _from_record(record: Mapping[str, Any]) -> RunFacts:
    """Of a run that another machine made, from the record that came with its output."""
    tags = {
        "nava.stage": record["stage"],
        "nava.recipe": record["recipe"],
        "nava.output": record["output"],
        OUTPUT_MD5: record.get("output_md5", ""),
        COMMIT: record["git_commit"],
        "git.dirty": str(record["git_dirty"]).lower(),
        "dvc.lock.md5": record["lock_md5"],
    }
    return _from_tags(record["key"], "", "FINISHED", tags, record)


def _from_tags(
    key: str, run_id: str, status: str, tags: Mapping[str, str], start: Mapping[str, Any]
) -> RunFacts:
    return RunFacts(
        run=key,
        stage=tags.get("nava.stage", ""),
        recipe=tags.get("nava.recipe", ""),
        status=status,
        mlflow_run_id=run_id,
        git_commit=tags.get(COMMIT, ""),
        git_dirty=tags.get("git.dirty") == "true",
        lock_md5=tags.get("dvc.lock.md5", ""),
        output=tags.get("nava.output", ""),
        output_md5=tags.get(OUTPUT_MD5, ""),
        inputs=dict(start.get("inputs", {})),
        parents=dict(start.get("parents", {})),
        config=dict(start.get("config", {})),
        commits_before=others_before(values_of(tags.get(COMMITS, ""))),
    )


def _survey_of(config: Mapping[str, Any]) -> str:
    """Name of the survey whose votes a run exported, and what it compared; "" for other runs."""
    survey = config.get("survey")
    if not isinstance(survey, Mapping) or not survey.get("name") or survey.get("place") == "":
        return ""
    models = config.get("models") or ()
    return " ".join((str(survey["name"]), *(["of", ", ".join(models)] if models else [])))


def show(found: Mapping[str, Any]) -> None:
    """Print a lineage as a tree; a repeated run is printed by name only."""
    from rich.console import Console
    from rich.markup import escape
    from rich.tree import Tree

    found = shown_all(found, lambda text: escape(shown(text)))
    by_key = {run["run"]: run for run in found["runs"]} | {
        run["mlflow_run_id"]: run for run in found["runs"] if run["mlflow_run_id"]
    }
    checkpoint = f", checkpoint {found['checkpoint_id']}" if found["checkpoint_id"] else ""
    tree, told = Tree(f"{found['kind']} {found['target']}{checkpoint}"), set()

    def add(parent: Tree, key: str) -> None:
        run = by_key[key]
        if key in told:
            parent.add(f"{run['stage']} (shown above)")
            return
        told.add(key)
        commit = (run["git_commit"][:10] or "no git") + (" + changes" if run["git_dirty"] else "")
        before = ", ".join(commit[:10] for commit in run["commits_before"])
        commit += f" (begun with {before})" if before else ""
        node = parent.add(
            f"[bold]{run['stage']}[/bold]  {run['status'].lower()}  run {run['run']}  commit {commit}"
        )
        if run["status"] == UNKNOWN:
            node.add("nothing more is known of it here; MLFLOW_TRACKING_URI names the MLflow that has it")
        else:
            sent = run["mlflow_run_id"] or "(no id of MLflow here)"
            node.add(f"MLflow {sent}; made {run['output']} {run['output_md5']}".rstrip())
        if survey := _survey_of(run["config"]):
            node.add(f"votes of survey {survey}")
        data = {path: md5 for path, md5 in run["inputs"].items() if not is_code(path)}
        for path, md5 in data.items():
            node.add(f"[dim]{md5 if ':' in md5 else md5[:12]}  {path}[/dim]")
        if code := len(run["inputs"]) - len(data):
            node.add(f"[dim]and {code} files and folders of code (--json lists them)[/dim]")
        for ancestor in run["parents"].values():
            add(node, ancestor)

    add(tree, found["run"])
    Console(file=plain(sys.stdout), width=None if sys.stdout.isatty() else 250, highlight=False).print(tree)
