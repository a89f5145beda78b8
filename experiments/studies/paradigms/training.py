"""One training of the study, from scratch to its scores, resumable."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.runs.tracker import SpoolTracker
from experiments.studies.harness import Run, Study
from experiments.studies.paradigms.config import StudyConfig
from experiments.studies.paradigms.plan import Training
from experiments.studies.scores import Scoring, score_clips
from experiments.studies.stage_training import StageTraining, last_validation
from experiments.studies.tables import metric_means
from pretrain.config import to_json
from pretrain.files import read_json, write_json
from pretrain.generate import generate
from pretrain.generation.config import GenerateConfig


@dataclass(frozen=True)
class StudyTrainer:
    """State shared by all trainings of the study."""

    study: Study
    config: StudyConfig
    generate: GenerateConfig
    scoring: Scoring

    def train(self, run: Run, training: Training) -> None:
        """Train, generate and score; the run's result is written last.

        Raises Interrupted if a signal ended a stage early.
        """
        started = time.monotonic()
        tags = {
            "nava.paradigm": training.paradigm,
            "nava.budget": training.budget,
            "nava.seed": str(training.seed),
        }
        config = {"pretrain": to_json(training.config), "generate": to_json(self.generate)}
        with self.study.tracked_run(run, tags, config) as tracker:
            result = self._train_and_score(run, training, tracker)
            result |= {"label": run.label, "tags": tags, "seconds": round(time.monotonic() - started, 1)}
            write_json(run.result, result)
        for name in training.config.stages:  # other measurements later need only the averaged weights
            for weights in ("model", *(() if name in self.config.score_after else ("ema",))):
                (run.folder / name / "model" / f"{weights}.safetensors").unlink(missing_ok=True)

    def _train_and_score(self, run: Run, training: Training, tracker: SpoolTracker) -> dict[str, Any]:
        before, model = 0, None
        scores, validation = {}, {}
        for name, stage in training.config.stages.items():
            trained = StageTraining(self.study, training.config, name, run.folder / name)
            model = trained.model(tracker, before, model, run.label)
            before += stage.steps
            validation[name] = _t2av_losses(run.folder / name)
            if name in self.config.score_after:
                scores[name] = self._scored(run, name, model)
                tracker.log_metrics(metric_means(scores[name]), before)
        return {"scores": scores, "validation": validation, "steps": before}

    def _scored(self, run: Run, name: str, model: Path) -> dict[str, Any]:
        out, clips = run.folder / f"scores_{name}-{run.mark}.json", run.folder / "clips" / name
        if not out.is_file():
            layout = self.study.layout
            prompts = layout.prompts / f"{self.config.prompts}.jsonl"
            generate(self.generate, model, layout.codec, prompts, clips, self.config.num_prompts, aside=True)
            score_clips(clips, self.scoring, out)
            if name != self.config.score_after[-1]:
                shutil.rmtree(clips)
        return read_json(out, f"remove {run.folder}")


def _t2av_losses(stage: Path) -> dict[str, float]:
    names = ("validation/video", "validation/audio")
    return {name: loss for name, loss in last_validation(stage).items() if name in names}
