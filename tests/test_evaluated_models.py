"""What an evaluation tells of the models that made its clips: metrics, and the alias `best` by the gates."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from experiments.job import StageJob
from experiments.layout import Layout
from experiments.pipeline.evaluated_models import metrics_of, tell_models, why_not
from experiments.recipes.mini import mini
from experiments.report.gates import Gate, Reports, check_gates
from experiments.runs.tracker import SpoolTracker
from pretrain.media.write import write_mp4

WER = "wer_pocketsphinx"
AT_MOST = Gate(metric=WER, set="align_held_out", statistic="aligned", at_most=0.3, why="words")


def interval(mean: float, n: int = 20) -> dict:
    return {"mean": mean, "low": mean - 0.1, "high": mean + 0.1, "n": n}


REPORTS = Reports(
    {f"{WER}_align_held_out": {"real": interval(0.0), "generated": interval(0.4), "aligned": interval(0.2)}},
    {},
)


def clip_of(folder: Path, checkpoint: str) -> None:
    folder.mkdir(parents=True)
    frames = np.zeros((5, 32, 32, 3), np.uint8)
    write_mp4(folder / "a.mp4", frames, 24, None, 16_000, metadata={"checkpoint_id": checkpoint})


def told(tmp_path: Path, reports: Reports, *gates: Gate) -> list[dict]:
    """Events of an evaluation in a folder of clips."""
    layout = Layout(out=tmp_path / "out")
    recipe = mini()
    recipe = replace(recipe, evaluate=replace(recipe.evaluate, gates=gates))
    tracker = SpoolTracker(tmp_path / "spool" / "evaluate")
    results = check_gates(recipe.evaluate.gates, reports)
    tell_models(StageJob(recipe=recipe, layout=layout), tracker, reports, results)
    return [json.loads(line) for line in (tracker.folder / "events.jsonl").read_text().splitlines()]


@pytest.fixture
def clips(tmp_path):
    clip_of(tmp_path / "out/generated/align_held_out", "before")
    clip_of(tmp_path / "out/aligned/align_held_out", "after")


def test_each_model_has_the_metrics_of_its_clips(clips, tmp_path):
    before, after, alias = told(tmp_path, REPORTS, AT_MOST)
    key = f"evaluated/{WER}_align_held_out"
    assert (before["checkpoint"], before["step"], before["values"][key]) == ("before", 0, 0.4)
    assert (after["checkpoint"], after["step"], after["values"][key]) == ("after", 1, 0.2)
    assert set(before["values"]) == {key, f"{key}/low", f"{key}/high", f"{key}/n"}
    named = {name: alias[name] for name in ("kind", "registered", "alias", "checkpoint")}
    assert named == {"kind": "model_alias", "registered": "nava-mini", "alias": "best", "checkpoint": "after"}


def test_without_an_alignment_the_pretrained_model_is_best(clips, tmp_path):
    only = {key: {"generated": sources["generated"]} for key, sources in REPORTS.metrics.items()}
    gate = replace(AT_MOST, statistic="generated", at_most=0.5)
    *metrics, alias = told(tmp_path, Reports(only, {}), gate)
    assert [event["checkpoint"] for event in metrics] == ["before"] and alias["checkpoint"] == "before"


@pytest.mark.parametrize(
    ("gates", "says"),
    [
        ((), "the recipe has no gates"),
        ((replace(AT_MOST, at_most=0.1),), f"1 of 1 gates: {WER} of align_held_out"),
        ((AT_MOST, replace(AT_MOST, min_n=100)), "1 of 2 gates"),
    ],
)
def test_best_stays_where_a_gate_is_not_passed_and_a_tag_says_so(clips, tmp_path, gates, says):
    *_, last = told(tmp_path, REPORTS, *gates)
    assert last["kind"] == "tags" and says in last["values"]["nava.alias.best"]
    assert last["values"]["nava.alias.best"].startswith("not moved")


def test_without_clips_nothing_is_told_of_a_model(tmp_path):
    (event,) = told(tmp_path, REPORTS, AT_MOST)
    assert event["values"] == {"nava.alias.best": "not moved: no generated clips"}


def test_values_that_were_not_measured_are_left_out():
    missing = {"mean": None, "low": None, "high": None, "n": 0}
    assert metrics_of({"a": {"generated": missing}, "b": {"real": interval(1)}}, "generated") == {
        "evaluated/a/n": 0.0
    }
    assert why_not([]) == "the recipe has no gates"
