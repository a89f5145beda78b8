"""One class and one line of the recipe: the reward is in scores, summary, metrics, report, MLflow and
studies."""

import json
import shutil

import numpy as np
import pytest
from clips_to_score import decode_nothing, write_clips_to_score

from experiments.commands.score import score
from experiments.layout import Layout
from experiments.recipes.load import load_recipe
from experiments.report.evaluate import evaluate, metrics_to_log
from experiments.report.metric_keys import reported_metrics
from experiments.report.report import report
from experiments.scoring.config import settings_from
from experiments.scoring.sets import score_sets
from experiments.studies.scores import Scoring, added_metrics, score_clips
from rewards.base import Unscorable, score_prepared
from rewards.catalog import metric, metrics_of
from rewards.types import Score


@pytest.fixture(autouse=True)
def unrecorded(monkeypatch):
    """Scores are no runs here: the current folder may be the repository."""
    monkeypatch.setattr("experiments.runs.run.record_run", lambda *_: None)


class ZeroCrossings:
    """The reward that is added: sign changes over samples."""

    name = "zero_crossings"
    title = "Zero crossings per sample"
    numerator, denominator = "crossings", "samples"
    lower_is_better = True

    def score(self, clips):
        return score_prepared(clips, _audible, lambda sounds: [_crossings(sound) for sound in sounds])


def _audible(clip):
    if not np.abs(clip.waveform).max() > 0.01:
        raise Unscorable("silent")
    return clip.waveform


def _crossings(sound) -> Score:
    crossings = float((np.diff(np.sign(sound)) != 0).sum())
    return Score(crossings / len(sound), parts={"crossings": crossings, "samples": float(len(sound))})


PLUGIN = f"{__name__}:ZeroCrossings"
SHOWN = ("wer_pocketsphinx", "voice_accuracy_resemblyzer", "lip_loudness_correlation")  # on the page's cards
LINE = f"score.rewards=[{', '.join((*SHOWN, PLUGIN))}]"


@pytest.fixture
def recipe():
    return load_recipe("mini", None, [LINE, "score.num_processes=1", "score.align_judges=[]"])


def test_a_reward_is_one_class_and_one_line_of_the_recipe(recipe, tmp_path, monkeypatch, capsys):
    decode_nothing(monkeypatch)
    for picture in ("cards.clip_png", "report.contact_sheet"):  # tests/test_report.py draws them
        monkeypatch.setattr(f"experiments.report.{picture}", lambda *clips: b"png")
    corpus, codec, syncnet, generated = write_clips_to_score(tmp_path)
    for root in (generated, tmp_path / "aligned"):
        shutil.copytree(generated / "pretrain_seen", root / "align_held_out")
    aligned, known = tmp_path / "aligned", reported_metrics(recipe.score)

    scores = score_sets(recipe.score, corpus, codec, syncnet, generated, tmp_path / "scores", aligned)
    rows = [json.loads(line) for line in scores.read_text().splitlines()]
    silent = next(row for row in rows if row["data_id"] == "g0")
    assert all("zero_crossings" in row["scores"] for row in rows)
    assert silent["reasons"]["zero_crossings"] == "silent"

    out, alignment = tmp_path / "demo.json", tmp_path / "alignment.json"
    metrics = evaluate(recipe.evaluate, scores, out, alignment, known=known)
    terms = [row["parts"]["zero_crossings"] for row in rows if row["source"] == "real"]
    expected = sum(term["crossings"] for term in terms) / sum(term["samples"] for term in terms)
    assert metrics["zero_crossings"]["real"]["mean"] == pytest.approx(expected, abs=1e-6)
    compared = json.loads(alignment.read_text())
    assert compared["metrics"]["zero_crossings"]["better"] == "lower"

    logged = metrics_to_log(metrics, compared)
    assert logged["real/zero_crossings"] == pytest.approx(expected, abs=1e-6)
    assert "alignment/zero_crossings/after" in logged

    page = report(
        out, scores.parent, {}, generated, corpus, codec, tmp_path, {}, alignment, aligned, known=known
    )
    assert "Zero crossings per sample" in page.read_text()

    score(generated / "pretrain_seen", rewards=(PLUGIN,), out=tmp_path / "s.jsonl", as_json=True)
    assert json.loads(capsys.readouterr().out)["rewards"]["zero_crossings"]["n"] == 3

    measured = added_metrics(recipe.score)
    assert [found.name for found in measured.values()] == ["zero_crossings"]
    scoring = Scoring(measured, Layout(out=tmp_path), num_processes=1)
    score_clips(generated / "pretrain_seen", scoring, tmp_path / "study.json")
    (pairs,) = json.loads((tmp_path / "study.json").read_text())["metrics"].values()
    assert pairs[0] is None and all(below > 0 for _, below in pairs[1:])


def test_a_plugin_without_a_name_is_refused_before_anything_is_scored():
    with pytest.raises(ValueError, match="has no `name`, which reports need"):
        metrics_of(["test_score:MeanLevel"])


def test_a_metric_is_found_by_its_name_or_as_a_part():
    assert metric("sync_d_mini").lower_is_better and metric("sync_d_mini").scorer == "sync_judge"
    assert metric("sync_judge.sync_d_mini").lower_is_better
    assert metric("sync_judge.rho_zero").part == "rho_zero"
    with pytest.raises(ValueError, match="did you mean 'sync_mini'"):
        metric("sync_minni")


def test_a_rubric_names_it_by_its_class(tmp_path):
    """Its options and its total go by the name that scores have."""
    rubric = tmp_path / "rubric.yaml"
    rubric.write_text(f"items: {{'{PLUGIN}': {{weight: -1.0}}, snr_estimate_db: {{weight: 0.5}}}}")
    found = settings_from((), rubric, (), [])
    assert found.rewards == (PLUGIN, "snr_estimate_db")
    assert found.rubric and [item.reward for item in found.rubric.items] == [
        "zero_crossings",
        "snr_estimate_db",
    ]
