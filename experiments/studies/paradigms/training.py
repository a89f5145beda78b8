"""One training of the study, from scratch to its scores, in a process of its own: `python -m
experiments.studies.paradigms.training FOLDER [CORES]`.

FOLDER/task.json says what to do, CORES (such as 0,2) where. Whatever is finished is kept, so starting it
again goes on.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from experiments.runs.run import Interrupted
from experiments.runs.tracker import RunStart, SpoolTracker, failure_marked, kept_run_key
from experiments.studies.scores import score_clips
from pretrain.config import from_json, to_json
from pretrain.files import read_json, replacing
from pretrain.generate import GenerateConfig, generate
from pretrain.recipe import PretrainConfig

TASK, LOG = "task.json", "log.txt"


def result_file(mark: str) -> str:
    """Name of a finished training's results; `mark` stands for what was generated from it and how that was
    scored."""
    return f"result-{mark}.json"


@dataclass(frozen=True, kw_only=True)
class TrainingTask:
    """What the process needs; folders as text, so that it goes through JSON."""

    label: str
    mark: str
    tags: dict[str, str] = field(default_factory=dict)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    generate: GenerateConfig = field(default_factory=GenerateConfig)
    latents: str
    codec: str
    codec_id: str
    prompts: str
    num_prompts: int
    bank: str
    judge: str  # "" = there is none
    score_after: tuple[str, ...]
    recognizer_processes: int
    tracking: str
    parent: str  # key of the study's run

    def save(self, folder: Path) -> None:
        write_json(folder / TASK, to_json(self))


def train(folder: Path) -> None:
    """Train, generate and score; FOLDER/result-MARK.json is written last. Raises Interrupted where a signal
    ended a stage early."""
    started = time.monotonic()
    task = from_json(TrainingTask, read_json(folder / TASK, "run the study again"))
    tracker = SpoolTracker(Path(task.tracking) / kept_run_key(folder, task.label))
    config = {"pretrain": to_json(task.pretrain), "generate": to_json(task.generate)}
    tracker.start(
        RunStart(name=f"study {task.label}", tags=task.tags, config=config, parents={"study": task.parent})
    )
    with failure_marked(tracker):
        result = _train_and_score(folder, task, tracker)
    out = folder / result_file(task.mark)
    write_json(out, {**result, "seconds": round(time.monotonic() - started, 1)})
    _drop_weights(folder, task)
    tracker.log_artifact(str(out))
    tracker.finish("FINISHED")


def _train_and_score(folder: Path, task: TrainingTask, tracker: SpoolTracker) -> dict[str, Any]:
    before, model = 0, None
    scores, validation = {}, {}
    for name, stage in task.pretrain.stages.items():
        model = _stage(folder, task, tracker, name, before, model)
        before += stage.steps
        validation[name] = last_validation(folder / name / "metrics.jsonl")
        if name in task.score_after:
            out = folder / f"scores_{name}-{task.mark}.json"
            if not out.is_file():
                clips = folder / "clips" / name
                generate(task.generate, model, Path(task.codec), Path(task.prompts), clips, task.num_prompts)
                score_clips(clips, Path(task.bank), task.judge, task.recognizer_processes, out)
                if name != task.score_after[-1]:
                    shutil.rmtree(clips)
            scores[name] = read_json(out, f"remove {folder}")
            tracker.log_metrics(_means(scores[name]), before)
    return {
        "label": task.label,
        "tags": task.tags,
        "scores": scores,
        "validation": validation,
        "steps": before,
    }


def _stage(
    folder: Path, task: TrainingTask, tracker: SpoolTracker, name: str, before: int, parent: Path | None
) -> Path:
    """The stage's model; its training states are dropped once it is there."""
    from pretrain.launch.launch import pretrain_stage

    spool = {"folder": str(tracker.folder.resolve()), "before": before}
    result = pretrain_stage(
        task.pretrain,
        name,
        Path(task.latents),
        folder / name,
        codec_id=task.codec_id,
        init_from=parent,
        trackers={"experiments.studies.paradigms.training:StepsSoFar": spool},
    )
    if result.model is None:
        raise Interrupted(
            f"{task.label}: {name} stopped at step {result.step} with a checkpoint; the same command goes "
            "on from there"
        )
    shutil.rmtree(folder / name / "checkpoint", ignore_errors=True)
    return result.model


def _drop_weights(folder: Path, task: TrainingTask) -> None:
    """Keep the averaged weights of the scored stages only: scoring them in another way needs no training."""
    for name in task.pretrain.stages:
        for weights in ("model", *(() if name in task.score_after else ("ema",))):
            (folder / name / "model" / f"{weights}.safetensors").unlink(missing_ok=True)


def last_validation(metrics: Path) -> dict[str, float]:
    """The stage's last validation losses, "validation/video" and "validation/audio"; empty where there were
    none."""
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    found = [row for row in rows if any(key.startswith("validation/") for key in row)]
    return (
        {key: value for key, value in found[-1].items() if key in ("validation/video", "validation/audio")}
        if found
        else {}
    )


def _means(scores: dict[str, Any]) -> dict[str, float]:
    pairs = {name: [pair for pair in values if pair] for name, values in scores["metrics"].items()}
    sums = {
        name: (sum(above for above, _ in some), sum(below for _, below in some))
        for name, some in pairs.items()
    }
    return {f"study/{name}": above / below for name, (above, below) in sums.items() if below}


def write_json(path: Path, values: Any) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(values, indent=1) + "\n")


if __name__ == "__main__":
    from experiments.errors import one_line_errors

    if len(sys.argv) > 2 and hasattr(os, "sched_setaffinity"):
        cores = set(map(int, sys.argv[2].split(",")))
        os.sched_setaffinity(0, cores)  # ranks and scorers started here stay there
        torch.set_num_threads(
            len(cores)
        )  # torch counted the cores when it was imported; more threads than cores wait for each other
    with one_line_errors():
        train(Path(sys.argv[1]))


class StepsSoFar(SpoolTracker):
    """Each stage's steps count on from the `before` steps of those ahead of it."""

    def __init__(self, folder: Path | str, before: int) -> None:
        super().__init__(folder)
        self.before = before

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        super().log_metrics(metrics, step + self.before)
