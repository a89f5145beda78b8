"""Stage `report`: the HTML page of the demo."""

from __future__ import annotations

from experiments.job import StageJob
from experiments.layout import PRETRAIN_STAGES, STAGES
from experiments.report.headline import loss_table, reward_table
from experiments.report.metric_keys import reported_metrics
from experiments.report.report import report
from experiments.runs.run import read_record
from experiments.runs.tracker import SpoolTracker
from pretrain.files import replacing


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
    for path in (page, *sorted(page.parent.glob("*.png"))):
        tracker.log_artifact(str(path))
