"""What the stages write of their models into the spool: names, aliases and ids."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from mlflow_world import model_folder_of

from experiments.alignment.inputs import AlignInputs
from experiments.job import StageJob
from experiments.layout import Layout
from experiments.pipeline import align, codec, pretrain
from experiments.recipes.mini import mini
from experiments.runs.tracker import SpoolTracker


@pytest.fixture
def job(tmp_path, monkeypatch) -> StageJob:
    monkeypatch.chdir(tmp_path)
    return StageJob(recipe=mini(), layout=Layout())


def models(tracker: SpoolTracker) -> list[dict]:
    events = [json.loads(line) for line in (tracker.folder / "events.jsonl").read_text().splitlines()]
    return [event for event in events if event["kind"] == "model"]


@pytest.mark.parametrize(
    ("stage", "names"),
    [("stage1", ("", "")), ("stage2", ("", "")), ("stage3", ("nava-mini", "pretrained"))],
)
def test_the_last_stage_of_a_recipe_is_its_pretrained_model(job, monkeypatch, stage, names):
    checkpoint = model_folder_of(job.layout.model(stage), b"w", parent="earlier", stage=stage, step=3)
    monkeypatch.setattr(pretrain, "stage_run_of", lambda *_: None)
    monkeypatch.setattr(pretrain, "train_run", lambda *_, **__: SimpleNamespace(status="finished"))
    monkeypatch.setattr(pretrain, "make_samples", lambda *_: [])
    tracker = SpoolTracker(Path("spool/run"))
    pretrain.run(job, tracker, stage)
    (model,) = models(tracker)
    assert (model["registered"], model["alias"]) == names and model["name"] == f"mini-{stage}"
    wanted = {"nava.checkpoint_id": checkpoint, "nava.parent_checkpoint": "earlier", "nava.step": "3"}
    assert model["tags"].items() >= wanted.items()


@pytest.mark.parametrize(("own", "registered"), [(False, "nava-mini"), (True, "")])
def test_the_pipelines_alignment_has_the_recipes_name_another_models_has_not(
    job, monkeypatch, own, registered
):
    base, out = Path("base"), Path("to")
    parent, checkpoint = model_folder_of(base, b"b"), model_folder_of(out / "model", b"a")
    run = SimpleNamespace(base=base, out=out)
    monkeypatch.setattr(align, "alignment_of", lambda *_: run)
    monkeypatch.setattr(align, "origin_tags", lambda *_: {})
    tracker = SpoolTracker(Path("spool/run"))
    result = SimpleNamespace(status="finished", model=out / "model", step=1)
    align.align_tracked(job, tracker, AlignInputs(model=base if own else None), lambda _: result)  # type: ignore[arg-type]
    model, adapter = models(tracker)
    assert (model["registered"], model["alias"], model["version_of"]) == (registered, "aligned", parent)
    assert model["tags"]["nava.checkpoint_id"] == checkpoint and adapter["registered"] == ""


def test_the_codec_is_registered_by_its_id(job, monkeypatch):
    def fit(config, corpus, folder):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"kind": "linear", "codec_id": "c0dec"}))

    monkeypatch.setattr(codec, "fit_codecs", fit)
    tracker = SpoolTracker(Path("spool/run"))
    codec.run(job, tracker)
    (model,) = models(tracker)
    assert model["registered"] == "nava-mini-codec" and model["tags"] == {"nava.codec_id": "c0dec"}
