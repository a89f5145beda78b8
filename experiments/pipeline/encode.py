"""Stage `encode`: latents of every training set."""

from __future__ import annotations

from experiments.job import StageJob
from experiments.runs.tracker import SpoolTracker
from pretrain.data.encoding.encode import encode_sets

CORPUS_SETS = ("audio_only", "paired", "hq_audio", "validation")


def run(job: StageJob, tracker: SpoolTracker) -> None:
    manifests = {name: job.layout.corpus / f"{name}.jsonl" for name in CORPUS_SETS}
    manifests["curated"] = job.layout.curated / "curated.jsonl"
    encode_sets(job.recipe.encode, manifests, job.layout.codec, job.layout.latents)
