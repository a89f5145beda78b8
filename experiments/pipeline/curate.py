"""Stage `curate`: the curated high-quality pairs of the corpus."""

from __future__ import annotations

from experiments.job import StageJob
from experiments.runs.tracker import SpoolTracker
from pretrain.data.curate import curate


def run(job: StageJob, tracker: SpoolTracker) -> None:
    curate(job.recipe.curate, job.layout.corpus, job.layout.curated)
    tracker.log_artifact(str(job.layout.curated / "report.json"))
