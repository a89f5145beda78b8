"""One arm with one seed, from the pretrained model to its scores: aligned, asked the held-out prompts,
measured."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.pipeline.align import BASE
from experiments.runs.lineage import CHECKPOINT_TAG, checkpoint_of
from experiments.runs.run import Interrupted
from experiments.runs.tracker import RunStart, SpoolTracker, failure_marked, kept_run_key
from experiments.scoring.latents import scorer_options
from experiments.studies.objectives.arms import Arm, fitted, optimizer_steps
from experiments.studies.objectives.config import CHOSEN, TIES, ObjectivesConfig
from experiments.studies.objectives.material import Material
from experiments.studies.objectives.scores import metric_names
from experiments.studies.paradigms.plan import mark_of
from finetune.align_run import AlignRun
from pretrain.config import to_json
from pretrain.data.corpus.texts import ALIGN_HELD_OUT
from pretrain.files import read_json, write_json
from pretrain.launch.torchrun import METRICS

SPENT = "spent.json"
PARTS = ("rollout", "score", "update")  # of a round, by what metrics.jsonl calls them


@dataclass(frozen=True)
class Task:
    """An arm, where it lives, and the mark of the results wanted."""

    arm: Arm
    folder: Path
    mark: str

    @property
    def result(self) -> Path:
        return self.folder / f"result-{self.mark}.json"

    @property
    def judging(self) -> str:
        """What spent.json calls generating and scoring in this way."""
        return f"judge-{self.mark}"

    @property
    def finished(self) -> bool:
        return self.result.is_file()


def task_of(arm: Arm, material: Material, ranks: int) -> Task:
    """Folder and mark change with what the arm learns from and how; the mark also with how it is judged."""
    sections, trained = material.sections, [*material.trained_on]
    if arm.config:
        mark = AlignRun(
            config=arm.config, base=Path(), codec=Path(), prompts=Path(), scorer=("", {}), out=Path()
        ).recipe_hash()
        trained += [mark, ranks, arm.prompts]
        trained += [material.votes_mark] if arm.voted else []
        trained += [to_json(sections.objectives.curation)] if arm.prompts != "all" else []
        trained += [material.pilot_mark] if arm.name == CHOSEN else []
    folder = material.folder / "runs" / f"{arm.label}-{mark_of(trained)}"
    asked = [material.inputs[f"{ALIGN_HELD_OUT}.jsonl"], material.inputs["syncnet_judge"]]
    judged = [*asked, names_of(material), sections.objectives.num_prompts]
    return Task(arm, folder, mark_of(to_json(sections.generate), judged))


def names_of(material: Material) -> list[str]:
    """The metrics of every arm."""
    panel = [feature.name for feature in material.sections.votes.panel.features]
    return metric_names(list(material.sections.align.rubric.routes()), panel)


def run_arm(task: Task, material: Material, ranks: int, parent: SpoolTracker) -> None:
    """Align, generate and score as one tracked run below `parent`; result-MARK.json is written last.

    Raises Interrupted where a signal ended the alignment, ValueError or OSError in one line where a part
    failed.
    """
    task.folder.mkdir(parents=True, exist_ok=True)
    tracker = SpoolTracker(parent.folder.with_name(kept_run_key(task.folder, f"objectives-{task.arm.label}")))
    tags = {"nava.study": "objectives", "nava.arm": task.arm.name, "nava.seed": str(task.arm.seed)}
    config = {
        "align": to_json(task.arm.config) if task.arm.config else {},
        "generate": to_json(material.sections.generate),
    }
    name = f"study objectives {task.arm.label}"
    tracker.start(
        RunStart(
            name=name, tags=tags, config=config, inputs=dict(material.inputs), parents={"study": parent.key}
        )
    )
    with failure_marked(tracker):
        model, cost = material.layout.model(BASE), {}
        if task.arm.config:
            model, cost = _aligned(task, material, ranks, tracker)
        scores = _scored(task, material, model)
    tracker.log_metrics(
        {f"study/{name}": value for name, value in means(scores).items()},
        task.arm.phase.rounds if task.arm.config else 0,
    )
    spent = read_json(task.folder / SPENT, f"remove {task.folder}")
    seconds = {"align": spent.get("align", 0.0), "judge": spent[task.judging]}
    write_json(
        task.result,
        {"arm": task.arm.name, "seed": task.arm.seed, "scores": scores, "cost": cost, "seconds": seconds},
    )
    shutil.rmtree(task.folder / "align" / "checkpoint", ignore_errors=True)
    tracker.log_artifact(str(task.result))
    tracker.finish("FINISHED")


def _aligned(
    task: Task, material: Material, ranks: int, tracker: SpoolTracker
) -> tuple[Path, dict[str, Any]]:
    """The aligned model, and what it took."""
    arm, layout, pairs, clips = task.arm, material.layout, None, None
    cost: dict[str, Any] = {"before": {}}
    if arm.voted:
        pairs, clips, count = material.pairs(arm.name == TIES)
        arm, made = fitted(arm, material.sections.align, ranks, count), material.votes()
        cost = {
            "before": {"rollout": made["rollout"], "score": made["vote"]},
            "pairs": count,
            "summary": made["summary"],
        }
    prompts = material.prompts(arm)
    if arm.name == CHOSEN:
        cost = {"before": {"pilot": material.pilot()["seconds"]}}
    assert arm.config is not None
    spool = {"experiments.runs.tracker:SpoolTracker": {"folder": str(tracker.folder.resolve())}}
    run = AlignRun(
        config=arm.config,
        base=layout.model(BASE),
        codec=layout.codec,
        prompts=prompts,
        out=task.folder / "align",
        trackers=spool,
        scorer=(
            "experiments.scoring.latents:AlignScorer",
            scorer_options(arm.config, layout.corpus, layout.codec, layout.syncnet),
        ),
        pairs=pairs,
        clips=clips,
    )
    with _clock(task.folder, "align"):
        result = material.runners.align(run, ranks)
    if result.status != "finished" or result.model is None:
        raise Interrupted(
            f"{arm.label} stopped after round {result.step} with a checkpoint; the same command goes on "
            "from there"
        )
    tracker.set_tags(
        {CHECKPOINT_TAG: checkpoint_of(result.model), "nava.parent_checkpoint": checkpoint_of(run.base)}
    )
    steps, clips_per_step = optimizer_steps(arm.phase)
    rolled = arm.phase.rounds * arm.phase.prompts_per_round * arm.phase.clips_per_prompt
    cost |= {
        "rounds": rounds_cost(run.out / METRICS, arm.phase.rounds),
        "optimizer_steps": steps,
        "clips_per_step": clips_per_step,
    }
    return result.model, {**cost, "clips": material.stored[0] * material.stored[1] if arm.voted else rolled}


def _scored(task: Task, material: Material, model: Path) -> dict[str, Any]:
    config: ObjectivesConfig = material.sections.objectives
    out, clips = task.folder / f"scores-{task.mark}.json", task.folder / "clips"
    if not out.is_file():
        layout, limits = material.layout, material.sections.align.guardrails
        prompts = layout.prompts / f"{ALIGN_HELD_OUT}.jsonl"
        with _clock(task.folder, task.judging):
            material.runners.generate(
                material.sections.generate, model, layout.codec, prompts, clips, config.num_prompts or None
            )
            material.runners.score(
                clips, names_of(material), layout, limits, config.recognizer_processes, out
            )
    return read_json(out, f"remove {task.folder}")


def rounds_cost(metrics: Path, rounds: int) -> dict[str, float]:
    """Seconds of rolling out, scoring, updating and all else in `rounds` rounds; those of rounds that are not
    in the log are taken from the mean of those that are."""
    rows = [
        row for line in metrics.read_text().splitlines() if "seconds_per_step" in (row := json.loads(line))
    ]
    if not rows:
        raise ValueError(f"{metrics}: no round in it; remove {metrics.parent}")
    found = {name: rounds * sum(row[f"seconds/{name}"] for row in rows) / len(rows) for name in PARTS}
    whole = rounds * sum(row["seconds_per_step"] for row in rows) / len(rows)
    return {name: round(value, 2) for name, value in {**found, "other": whole - sum(found.values())}.items()}


def means(scores: Mapping[str, Any]) -> dict[str, float]:
    """Metric -> sum of numerators over sum of denominators, where there are any."""
    known = {name: [pair for pair in pairs if pair] for name, pairs in scores["metrics"].items()}
    sums = {
        name: (sum(above for above, _ in some), sum(below for _, below in some))
        for name, some in known.items()
    }
    return {name: above / below for name, (above, below) in sums.items() if below}


@contextmanager
def _clock(folder: Path, name: str) -> Iterator[None]:
    """Adds the body's seconds to FOLDER/spent.json, however it ends."""
    started = time.monotonic()
    try:
        yield
    finally:
        path = folder / SPENT
        spent = read_json(path, f"remove {folder}") if path.is_file() else {}
        write_json(path, {**spent, name: round(spent.get(name, 0.0) + time.monotonic() - started, 1)})
