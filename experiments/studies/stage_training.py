"""One stage of a study's training: its model, its steps among those of the stages ahead, its last losses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from experiments.runs.tracker import SpoolTracker
from experiments.studies.harness import Study, model_of
from pretrain.recipe import PretrainConfig


class StepsSoFar(SpoolTracker):
    """Tracker that offsets a stage's steps by the `before` steps of the stages ahead of it."""

    def __init__(self, folder: Path | str, before: int) -> None:
        super().__init__(folder)
        self.before = before

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        super().log_metrics(metrics, step + self.before)

    def logged(self, step: int) -> dict[str, float]:
        return super().logged(step + self.before)


@dataclass(frozen=True)
class StageTraining:
    """Stage `name` of `config`, in the folder `out`."""

    study: Study
    config: PretrainConfig
    name: str
    out: Path

    def model(self, tracker: SpoolTracker, before: int, parent: Path | None, label: str) -> Path:
        """Train from `parent`, or scratch, after `before` steps of other stages; training checkpoints are
        removed once the model exists.

        Raises Interrupted, with a message that starts with `label`, if a signal ended the training.
        """
        from pretrain.launch.launch import pretrain_stage

        spool = {"folder": str(tracker.folder.resolve()), "before": before}
        result = pretrain_stage(
            self.config,
            self.name,
            self.study.layout.latents,
            self.out,
            codec_id=self.study.inputs["codec"],
            init_from=parent,
            trackers={f"{__name__}:{StepsSoFar.__name__}": spool},
        )
        model = model_of(result, f"{label}: {self.name} stopped at step")
        shutil.rmtree(self.out / "checkpoint", ignore_errors=True)
        return model


def last_validation(stage: Path) -> dict[str, float]:
    """The last validation losses of a stage's folder, "validation/..."; empty without any."""
    lines = (stage / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    found = [
        {name: value for name, value in json.loads(line).items() if name.startswith("validation/")}
        for line in lines
    ]
    return next((row for row in reversed(found) if row), {})
