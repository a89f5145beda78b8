"""Stage `evaluate`: the scores summarised, before and after alignment, with simulated votes."""

from __future__ import annotations

from experiments.job import StageJob
from experiments.pipeline.evaluated_models import tell_models
from experiments.report.evaluate import evaluate, metrics_to_log
from experiments.report.gates import check_gates, read_reports
from experiments.report.headline import headline
from experiments.report.metric_keys import reported_metrics
from experiments.report.run_results import results_of
from experiments.runs.invocation import current, publish
from experiments.runs.tracker import SpoolTracker
from experiments.scoring.rows import check_scored
from experiments.scoring.sets import SCORES
from pretrain.files import write_json


def check_inputs(job: StageJob) -> None:
    """Raises FileNotFoundError where nothing was scored."""
    check_scored(job.layout.scores / SCORES)


def run(job: StageJob, tracker: SpoolTracker) -> None:
    layout, recipe = job.layout, job.recipe
    votes = layout.gsb / "votes.jsonl"
    evaluate(
        recipe.evaluate,
        layout.scores / SCORES,
        layout.metrics,
        layout.alignment,
        votes,
        rewarded=recipe.align.rubric.weights(),
        limits=recipe.align.guardrails,
        known=reported_metrics(recipe.score),
    )
    written = read_reports(layout.metrics, layout.alignment)
    results = check_gates(recipe.evaluate.gates, written)
    write_json(layout.headline, headline(results))
    tracker.log_metrics(metrics_to_log(written.metrics, written.alignment, results), step=0)
    tell_models(job, tracker, written, results)
    for path in (layout.headline, layout.metrics, layout.alignment, votes):
        if path.is_file():
            tracker.log_artifact(str(path))
    if (above := current(layout, job.root)) is not None:
        publish(above, results_of(written, results, reported_metrics(recipe.score)))
