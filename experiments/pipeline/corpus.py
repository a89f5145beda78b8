"""Stage `corpus`: the talking-face corpus, with manifests and prompt sets."""

from __future__ import annotations

from experiments.job import StageJob
from experiments.runs.tracker import SpoolTracker
from pretrain.data.corpus.build import build_corpus


def run(job: StageJob, tracker: SpoolTracker) -> None:
    build_corpus(job.recipe.corpus, job.layout.corpus)
    tracker.log_artifact(str(job.layout.corpus / "summary.json"))
