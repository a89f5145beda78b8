"""`nava study objectives`: every objective at one rollout budget, with and without ties, with chosen and
random prompts."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.layout import Layout
from experiments.pipeline.align import BASE, PROMPTS
from experiments.runs.provenance import git_state, md5_of
from experiments.runs.tracker import (
    RUN_KEY,
    RunStart,
    SpoolTracker,
    ensure_sender,
    failure_marked,
    kept_run_key,
)
from experiments.studies.objectives.arms import budget, plan_arms
from experiments.studies.objectives.config import CHOSEN, RANDOM
from experiments.studies.objectives.material import Material, Sections
from experiments.studies.objectives.one_arm import Task, run_arm, task_of
from experiments.studies.objectives.page import page
from experiments.studies.objectives.plot import draw
from experiments.studies.objectives.runners import Runners
from experiments.studies.objectives.table import tabulate
from pretrain.data.corpus.texts import ALIGN_HELD_OUT
from pretrain.files import read_json, replacing, write_json
from pretrain.launch.stage_run import model_config
from pretrain.recipe import to_json

NAME = "objectives"
JUDGING_ROUNDS = 2.5  # generating and scoring the held-out prompts costs about as much as so many rounds


def study_objectives(
    sections: Sections, layout: Layout, ranks: int, root: Path = Path(), runners: Runners | None = None
) -> dict[str, Any]:
    """Align, generate, score and write OUT/study/objectives.{json,md,png}, one arm after another; returns
    what the JSON holds.

    Finished arms are kept and a killed one goes on, as long as settings and data are the same. Raises
    FileNotFoundError or ValueError in one line before anything is aligned; the line of the first arm that
    failed after the others; Interrupted.
    """
    folder = layout.out / "study" / NAME
    material = Material(sections, layout, _inputs(layout), folder, runners or Runners())
    arms = plan_arms(sections.objectives, sections.align, ranks)
    _check_thirds(material)
    tasks = [task_of(arm, material, ranks) for arm in arms]
    tracker = _tracker(folder, layout, material, root)
    with failure_marked(tracker):
        _run_all(tasks, material, ranks, tracker)
        study = _written(tasks, material, ranks, root)
    for path in sorted(folder.parent.glob(f"{NAME}.*")):
        tracker.log_artifact(str(path))
    tracker.finish("FINISHED")
    (folder / RUN_KEY).unlink(missing_ok=True)
    return study


def _inputs(layout: Layout) -> dict[str, str]:
    """What the study reads, by content. Raises FileNotFoundError with what to run first."""
    prompts = {name: layout.prompts / name for name in (PROMPTS, f"{ALIGN_HELD_OUT}.jsonl")}
    needed = {layout.model(BASE) / "config.json": "pretrain", layout.codec / "config.json": "codec"}
    needed |= {layout.syncnet / role / "config.json": "syncnet" for role in ("reward", "judge")}
    for path, verb in {**needed, **dict.fromkeys(prompts.values(), "corpus")}.items():
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file; run `nava demo` (or `nava {verb}`) first")
    return {
        "model": str(model_config(layout.model(BASE))["checkpoint_id"]),
        "codec": str(read_json(layout.codec / "config.json", "fit the codec again")["codec_id"]),
        **{name: md5_of(path) for name, path in prompts.items()},
        **{f"syncnet_{role}": md5_of(layout.syncnet / role) for role in ("reward", "judge")},
    }


def _check_thirds(material: Material) -> None:
    """Raises ValueError where a third of the prompts does not fill a round."""
    objectives, needed = material.sections.objectives, material.sections.align.phases["nft"].prompts_per_round
    count = objectives.curation.budget(len(material.rows))
    if count < needed and {CHOSEN, RANDOM} & set(objectives.arms):
        raise ValueError(
            f"objectives.curation: {count} of {len(material.rows)} prompts, but a round takes {needed}; "
            "raise curation.share"
        )


def _tracker(folder: Path, layout: Layout, material: Material, root: Path) -> SpoolTracker:
    """The study's run; the same one until the study is finished."""
    tracker, git = SpoolTracker(layout.tracking / kept_run_key(folder, f"study_{NAME}")), git_state(root)
    tags = {"nava.study": NAME, "mlflow.source.git.commit": git.commit, "git.dirty": str(git.dirty).lower()}
    tracker.start(
        RunStart(
            name=f"study {NAME}", tags=tags, config=to_json(material.sections), inputs=dict(material.inputs)
        )
    )
    ensure_sender(layout.tracking, root)
    return tracker


def _run_all(tasks: Sequence[Task], material: Material, ranks: int, tracker: SpoolTracker) -> None:
    """One after another; where some fail, the others end first."""
    failed: list[str] = []
    started = time.monotonic()
    for index, task in enumerate(tasks):
        if not task.finished:
            _tell(tasks, index, started)
            try:
                run_arm(task, material, ranks, tracker)
            except (ValueError, OSError) as error:
                failed.append(f"{task.arm.label}: {error}")
                print(f"{NAME}: {failed[-1]}; going on with the others", file=sys.stderr, flush=True)
    if failed:
        rest = f" ({len(failed) - 1} more failed)" if failed[1:] else ""
        raise ValueError(
            f"{failed[0]}{rest}; the other arms are kept: mend it or leave it out (objectives.arms) and "
            "start again"
        )


def _tell(tasks: Sequence[Task], index: int, started: float) -> None:
    """A line on stderr: what is next, and the time left at the rate of the arms that are finished."""
    spent = sum(seconds_of(task) for task in tasks if task.finished)
    done = sum(_work(task) for task in tasks if task.finished)
    left = sum(_work(task) for task in tasks if not task.finished)
    rate = f"about {left * spent / done / 60:.0f} min left" if done else "time left not known yet"
    finished = sum(task.finished for task in tasks)
    line = (
        f"{NAME}: {finished}/{len(tasks)} arms, {(time.monotonic() - started) / 60:.1f} min, {rate}; "
        f"next {tasks[index].arm.label}"
    )
    print(line, file=sys.stderr, flush=True)


def seconds_of(task: Task) -> float:
    """Wall-clock of a finished arm, with what was made for it before."""
    result = read_json(task.result, f"remove {task.folder}")
    return sum(result["seconds"].values()) + sum(result["cost"].get("before", {}).values())


def _work(task: Task) -> float:
    """In rounds; votes on a budget's clips cost about as much as the rounds that would roll it out."""
    rounds = task.arm.phase.rounds if task.arm.config else 0
    return JUDGING_ROUNDS + rounds * (2 if task.arm.voted else 1)


def _written(tasks: Sequence[Task], material: Material, ranks: int, root: Path) -> dict[str, Any]:
    folder, git, sections = material.folder.parent, git_state(root), material.sections
    results: dict[str, Mapping[str, Any]] = {
        task.arm.label: read_json(task.result, f"remove {task.folder}") for task in tasks
    }
    study = {
        "study": NAME,
        "commit": git.commit + (" with changes" if git.dirty else ""),
        "config": to_json(sections.objectives),
        "inputs": dict(material.inputs),
        "ranks": ranks,
        "budget_clips": budget(sections.objectives, sections.align),
        "stored": dict(zip(("prompts", "clips_per_prompt"), material.stored, strict=True)),
        "training_prompts": len(material.rows),
        "third": sections.objectives.curation.budget(len(material.rows)),
        **tabulate(sections, [task.arm for task in tasks], results),
        "runs": {
            task.arm.label: {"folder": task.folder.name, "seconds": round(seconds_of(task), 1)}
            for task in tasks
        },
    }
    write_json(folder / f"{NAME}.json", json.loads(json.dumps(study, allow_nan=False)))
    draw(study, folder / f"{NAME}.png")
    with replacing(folder / f"{NAME}.md") as temporary:
        temporary.write_text(page(study, f"{NAME}.png"))
    return study
