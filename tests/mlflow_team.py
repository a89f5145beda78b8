"""Runs as a team's MLflow has them: two commands with stages, curves, results and files."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from mlflow_world import model_folder_of
from PIL import Image

from experiments.layout import Layout
from experiments.report.gates import Reports
from experiments.report.metric_keys import reported_metrics
from experiments.report.run_results import results_of
from experiments.runs.invocation import add_curves, invocation, publish
from experiments.runs.outputs import CHECKPOINT_TAG
from experiments.runs.run import tracked
from experiments.runs.sender import flush
from experiments.runs.tracker import SpoolTracker

STEPS = 40


@dataclass(frozen=True)
class Team:
    """Numbers of one command's model after alignment."""

    word_error: float
    sync: float
    similarity: float
    gsb: float


BETTER, WORSE = Team(0.08, 1.1, 0.62, 0.3), Team(0.21, 0.9, 0.58, 0.05)


def write_team(folder: Path, commands: dict[str, Team]) -> None:
    """Record one command for each, and send them to the MLflow in `folder`."""
    layout = Layout(out=folder / "out", reports=folder / "reports")
    for what, team in commands.items():
        with invocation(what, layout, folder) as above:
            for place, stage in enumerate(("pretrain_stage1", "pretrain_stage2")):
                with tracked(stage, "mini", {"seed": place}, layout, folder, resume=False) as tracker:
                    layout.output_of(stage).mkdir(parents=True, exist_ok=True)
                    (layout.output_of(stage) / "made.txt").write_text(what)
                    for step in range(1, STEPS + 1):
                        loss = team.word_error + math.exp(-(step + place * STEPS) / 20)
                        tracker.log_metrics({"loss_video": loss, "loss_audio": 1.5 * loss}, step)
                    add_curves(tracker, above, "pretrain", place * STEPS)
            write_model(folder, what, team, tracker)
            publish(above, results_of(Reports({}, alignment(team)), (), reported_metrics()))
            picture = folder / "contact_sheet.png"
            Image.new("RGB", (320, 180), "teal").save(picture)
            above.log_artifact(str(picture))
    if left := flush(layout.tracking, folder):
        raise AssertionError(f"{left} events were not sent")


def write_model(folder: Path, what: str, team: Team, tracker: SpoolTracker) -> None:
    """The command's model, a version of nava-mini with an alias and metrics; the better one is the best."""
    model = folder / "models" / what.replace(" ", "-")
    checkpoint = model_folder_of(model, what.encode())
    alias = "aligned" if what.startswith("align") else "pretrained"
    tags = {CHECKPOINT_TAG: checkpoint}
    tracker.log_model(model, f"mini-{alias}", tags, "nava-mini", alias)
    tracker.log_model_metrics(checkpoint, {"evaluated/wer_pocketsphinx_judge": team.word_error})
    if team is BETTER:
        tracker.move_alias("nava-mini", "best", checkpoint)


def alignment(team: Team) -> dict:
    """alignment.json of `evaluate`, with what a run's results are made from."""

    def row(role: str, after: float) -> dict:
        interval = {"mean": after, "low": after - 0.05, "high": after + 0.05, "n": 208}
        before = {**interval, "mean": after - 0.01}
        return {"role": role, "before": before, "after": interval, "difference": interval, "codec": interval}

    gsb = {"good": 300, "same": 200, "bad": 124, "gsb": team.gsb, "gsb_low": 0.0, "gsb_high": 0.4}
    return {
        "metrics": {
            "wer_pocketsphinx_judge": row("judge", team.word_error),
            "sync_judge": row("judge", team.sync),
            "sim_resemblyzer": row("reward", team.similarity),
        },
        "raters": {"simulated": True, "raters": 12, "gsb": {"overall": gsb}},
    }
