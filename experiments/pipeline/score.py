"""Stage `score`: real, codec and generated clips scored by the rewards and the judges."""

from __future__ import annotations

from experiments.job import StageJob
from experiments.runs.tracker import SpoolTracker
from experiments.scoring.clip_table import log_clip_table
from experiments.scoring.rows import read_scores
from experiments.scoring.sets import check_generated, score_sets


def check_inputs(job: StageJob) -> None:
    """Raises FileNotFoundError where there are no generated clips."""
    check_generated(job.layout.generated)


def run(job: StageJob, tracker: SpoolTracker) -> None:
    layout, recipe = job.layout, job.recipe
    scored = score_sets(
        recipe.score,
        layout.corpus,
        layout.codec,
        layout.syncnet,
        layout.generated,
        layout.scores,
        layout.aligned if layout.aligned.is_dir() else None,
        recipe.align.guardrails,
    )
    tracker.log_artifact(str(scored))
    log_clip_table(tracker, [row for rows in read_scores(scored).values() for row in rows])
