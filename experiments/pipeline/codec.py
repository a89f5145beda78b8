"""Stage `codec`: the linear codecs, fitted on the corpus."""

from __future__ import annotations

from experiments.job import StageJob
from experiments.runs.model_names import codec_name, codec_tags
from experiments.runs.tracker import SpoolTracker
from pretrain.codecs.fit import fit_codecs


def run(job: StageJob, tracker: SpoolTracker) -> None:
    fit_codecs(job.recipe.codec, job.layout.corpus, job.layout.codec)
    tracker.log_artifact(str(job.layout.codec / "errors.json"))
    tracker.log_model(job.layout.codec, "codec", codec_tags(job.layout.codec), codec_name(job.recipe.name))
