"""Stage `report`: the HTML page of the demo."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from experiments.job import StageJob
from experiments.layout import PRETRAIN_STAGES, STAGES
from experiments.report.gates import check_gates, read_reports
from experiments.report.headline import loss_table, reward_table
from experiments.report.metric_keys import reported_metrics
from experiments.report.report import report
from experiments.report.run_results import example_clips, results_of
from experiments.runs.invocation import current, publish
from experiments.runs.run import read_record
from experiments.runs.tracker import SpoolTracker
from experiments.scoring.rows import check_scored
from experiments.scoring.sets import ALIGN_SET, SCORES
from pretrain.files import replacing


def check_inputs(job: StageJob) -> None:
    """Raises FileNotFoundError or ValueError for an output folder or reports without an evaluation."""
    read_reports(job.layout.metrics, job.layout.alignment)
    check_scored(job.layout.scores / SCORES)


def run(job: StageJob, tracker: SpoolTracker) -> None:
    layout = job.layout
    records = [record for stage in STAGES if (record := read_record(layout, stage))]
    facts = {record.stage: f"{record.duration_s:.0f} s" for record in records}
    if records:
        facts["commit"] = records[-1].git_commit + (" with changes" if records[-1].git_dirty else "")
    stages = {name: layout.pretrain(name) for name in PRETRAIN_STAGES if layout.pretrain(name).is_dir()}
    page = report(
        layout.metrics,
        layout.scores,
        stages,
        layout.generated,
        layout.corpus,
        layout.codec,
        layout.reports,
        facts,
        gates=job.recipe.evaluate.gates,
        known=reported_metrics(job.recipe.score),
        alignment=layout.alignment,
        aligned=layout.aligned,
        align_log=layout.align / "metrics.jsonl",
    )
    for name, table in (
        ("losses.csv", loss_table(stages)),
        ("rewards.csv", reward_table(layout.align / "metrics.jsonl")),
    ):
        with replacing(layout.reports / name) as temporary:
            temporary.write_text(table, encoding="utf-8")
    pictures = sorted(page.parent.glob("*.png"))
    for path in (page, *pictures):
        tracker.log_artifact(str(path))
    if (above := current(layout, job.root)) is not None:
        _show(above, job, page, pictures)


def _show(above: SpoolTracker, job: StageJob, page: Path, pictures: Sequence[Path]) -> None:
    """Give the run of the whole pipeline its page, its pictures, some clips, and its numbers where the stage
    before this one was kept."""
    layout, recipe = job.layout, job.recipe
    for path in (page, *pictures):
        above.log_artifact(str(path))
    sides = {"before": layout.generated / ALIGN_SET, "after": layout.aligned / ALIGN_SET}
    for side, folder in sides.items():
        for clip in example_clips(folder):
            above.log_artifact(str(clip), f"clips/{side}")
    written = read_reports(layout.metrics, layout.alignment)
    gates = check_gates(recipe.evaluate.gates, written)
    publish(above, results_of(written, gates, reported_metrics(recipe.score)))
