"""One unit of the study: train if it has a training, make its clips, score them; resumable, with its cost."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from experiments.runs.tracker import SpoolTracker
from experiments.studies.claims.registry import VALIDATION
from experiments.studies.claims.units import ClaimUnit, Sampled
from experiments.studies.harness import Run, Study
from experiments.studies.scores import Scoring, score_clips
from experiments.studies.stage_training import StageTraining, last_validation
from experiments.studies.tables import metric_means
from pretrain.config import to_json
from pretrain.files import read_json, write_json
from pretrain.generate import generate

COST = "cost.jsonl"  # of a unit's folder: a row for each piece of work that ended or was stopped


@dataclass(frozen=True)
class UnitRunner:
    """State shared by all units; `model` is what units without a training sample from."""

    study: Study
    scoring: Scoring
    num_prompts: int
    model: Path

    def __call__(self, run: Run, unit: ClaimUnit) -> None:
        """Everything of the unit that is not there yet; the run's result is written last.

        Raises Interrupted if a signal ended a training early.
        """
        tags = {"nava.arm": unit.arm, "nava.seed": str(unit.seed)}
        config = {"pretrain": to_json(unit.training)} if unit.training else {"model": str(self.model)}
        with self.study.tracked_run(run, tags, config) as tracker:
            model, steps = self._trained(unit, tracker) if unit.training else (self.model, 0)
            for sampled in unit.samples.values():
                self._scored(unit, sampled, model)
                means = metric_means(read_json(sampled.scores, f"remove {unit.folder}"))
                tracker.log_metrics(
                    {f"{_slug(sampled.scores)}/{name}": value for name, value in means.items()}, steps
                )
            write_json(run.result, {"label": run.label, "tags": tags})

    def _trained(self, unit: ClaimUnit, tracker: SpoolTracker) -> tuple[Path, int]:
        assert unit.training
        before, model = 0, None
        if (unit.folder / VALIDATION).is_file():  # written last
            steps = sum(stage.steps for stage in unit.training.stages.values())
            return unit.folder / list(unit.training.stages)[-1] / "model", steps
        for name, stage in unit.training.stages.items():
            trained = StageTraining(self.study, unit.training, name, unit.folder / name)
            with spent(unit.folder, name):
                model = trained.model(tracker, before, model, unit.label)
            before += stage.steps
        assert model is not None
        losses = {name: last_validation(unit.folder / name) for name in unit.training.stages}
        write_json(unit.folder / VALIDATION, losses)
        return model, before

    def _scored(self, unit: ClaimUnit, sampled: Sampled, model: Path) -> None:
        if sampled.scores.is_file():
            return
        layout, clips = self.study.layout, unit.folder / "clips" / sampled.scores.stem
        prompts = layout.prompts / f"{sampled.prompts}.jsonl"
        with spent(unit.folder, sampled.scores.stem):
            generate(sampled.config, model, layout.codec, prompts, clips, self.num_prompts, aside=True)
            score_clips(clips, self.scoring, sampled.scores)
        shutil.rmtree(clips)


@contextmanager
def spent(folder: Path, what: str) -> Iterator[None]:
    """Add wall-clock and CPU seconds of the body and its child processes to the unit's costs, however it
    ends."""
    wall, before = time.monotonic(), os.times()
    try:
        yield
    finally:
        after = os.times()
        cpu = sum(after[:4]) - sum(before[:4])
        row = {
            "what": what,
            "seconds": round(time.monotonic() - wall, 2),
            "core_seconds": round(cpu, 2),
        }
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / COST).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def core_seconds(folder: Path) -> float:
    """CPU seconds that the unit has cost so far; 0 where nothing was run."""
    if not (folder / COST).is_file():
        return 0.0
    lines = (folder / COST).read_text(encoding="utf-8").splitlines()
    return sum(json.loads(line)["core_seconds"] for line in lines)


def _slug(scores: Path) -> str:
    """The sampling's part of the file's name."""
    return re.sub(r"^scores-|-[0-9a-f]{8}$", "", scores.stem)
