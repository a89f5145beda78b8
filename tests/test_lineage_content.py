"""Lineage goes by what lies there: after a checkout, a pull, a change by hand, and off the demo's path."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from experiments.job import StageJob
from experiments.layout import Layout
from experiments.recipes.load import load_recipe
from experiments.runs import run as runs
from experiments.runs import sender
from experiments.runs.inputs import CHECKPOINT, inputs_read
from experiments.runs.lineage import CHECKPOINT_TAG, trace
from experiments.runs.outputs import digest_of, files_of
from experiments.runs.provenance import git_state, md5_of
from experiments.runs.run import read_record, record_run, tracked
from experiments.runs.sender import flush

ROOT = Path(__file__).parent.parent
PIPELINE = """
stages:
  corpus: {cmd: c, deps: [pretrain/code.py], outs: [out/corpus]}
  votes: {cmd: v, deps: [out/corpus], outs: [out/votes]}
  align: {cmd: a, deps: [out/votes, out/corpus], outs: [out/align: {persist: true}]}
  generate_aligned: {cmd: g, deps: [out/align], outs: [out/aligned]}
"""
PLACES = {"corpus": "corpus", "votes": "votes", "align": "align", "generate_aligned": "aligned"}


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("DVC_STAGE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(runs, "ensure_sender", lambda spool, root: None)
    monkeypatch.setattr(sender, "_store", None)
    (tmp_path / "dvc.yaml").write_text(PIPELINE)
    for stage in PLACES:
        make(stage, 3)
    return tmp_path


def make(stage: str, number: int) -> str:
    """Run a stage whose output depends on a number; returns the run's key."""
    layout = Layout()
    output = layout.output_of(stage)
    with tracked(stage, "mini", {"number": number}, layout, Path(), resume=False) as tracker:
        shutil.rmtree(output, ignore_errors=True)
        (output / "model").mkdir(parents=True)
        (output / f"{stage}.jsonl").write_text(f"{stage} {number}")
        if stage == "align":
            (output / "model" / "config.json").write_text(json.dumps({"checkpoint_id": f"id-{number}"}))
            (output / "model" / "ema.safetensors").write_text(f"weights {number}")
            tracker.set_tags({CHECKPOINT_TAG: f"id-{number}"})
    return tracker.key


def tree(target: str | Path, layout: Layout | None = None) -> list[tuple[str, str]]:
    found = trace(str(target), layout or Layout(), Path())
    return [(run["stage"], run["run"]) for run in found["runs"]]


@pytest.mark.parametrize("target", ["out/votes", "out/votes/votes.jsonl"])
@pytest.mark.parametrize("record_too", [False, True])
def test_after_a_checkout_the_older_run_is_named_for_the_older_data(world, tmp_path, target, record_too):
    shutil.copytree("out/votes", tmp_path / "cache")
    shutil.copy("out/runs/votes.json", tmp_path / "record.json")
    older = read_record(Layout(), "votes")
    newer = make("votes", 2)
    assert tree(target)[0] == ("votes", newer)
    shutil.rmtree("out/votes")
    shutil.copytree(tmp_path / "cache", "out/votes")
    if record_too:  # as `dvc checkout` of everything does
        shutil.copy(tmp_path / "record.json", "out/runs/votes.json")
    found = trace(target, Layout(), Path())["runs"][0]
    assert older is not None
    assert (found["run"], found["config"], found["output_md5"]) == (
        older.key,
        {"number": 3},
        md5_of(Path("out/votes")),
    )


def test_a_run_on_older_data_has_the_older_parent(world, tmp_path):
    record = read_record(Layout(), "votes")
    assert record is not None
    older = record.key
    shutil.copytree("out/votes", tmp_path / "cache")
    newer = make("votes", 2)
    assert dict(tree(make("align", 4)))["votes"] == newer
    shutil.rmtree("out/votes")
    shutil.copytree(tmp_path / "cache", "out/votes")
    assert dict(tree(make("align", 5)))["votes"] == older


def test_content_that_no_run_made_is_not_given_to_the_last_one(world):
    Path("out/votes/votes.jsonl").write_text("edited by hand")
    for target in ("out/votes", "out/votes/votes.jsonl"):
        with pytest.raises(ValueError, match=r"no run here made what lies here .*votes\.jsonl") as error:
            tree(target)
        assert "\n" not in str(error.value)
    Path("out/corpus/more.txt").write_text("beside the others")
    assert tree("out/corpus/corpus.jsonl")[0][0] == "corpus"  # which is as it was made
    for target in ("out/corpus/more.txt", "out/corpus"):
        with pytest.raises(ValueError, match=r"no run here made what lies here .*more\.txt"):
            tree(target)


def test_weights_that_were_changed_are_not_those_of_their_checkpoint(world):
    assert tree("out/align/model")[0][0] == "align"
    shutil.copytree("out/align/model", "elsewhere")
    assert tree("elsewhere")[0][0] == "align"
    for folder in ("elsewhere", "out/align/model"):
        (Path(folder) / "ema.safetensors").write_text("other weights")
        with pytest.raises(ValueError, match="names checkpoint id-3, but is not what run"):
            tree(folder)


def pulled(source: Path, target: Path, records: bool) -> None:
    """A clone after `dvc pull`: outputs without spool, with or without the records of the stages."""
    target.mkdir()
    shutil.copy(source / "dvc.yaml", target)
    for name in (*PLACES.values(), *(["runs"] if records else [])):
        shutil.copytree(source / "out" / name, target / "out" / name)


def test_in_a_pulled_clone_the_tree_is_the_same(world, tmp_path, monkeypatch):
    targets = (
        "out/aligned/generate_aligned.jsonl",
        "out/align/model",
        "out/votes",
        "out/corpus/corpus.jsonl",
    )
    here = {target: trace(target, Layout(), Path()) for target in targets}
    pulled(world, tmp_path / "other", records=True)
    monkeypatch.chdir(tmp_path / "other")
    for target, expected in here.items():
        assert trace(target, Layout(), Path()) == expected
    assert not Path("mlflow.db").exists()


def test_without_records_the_tree_comes_from_the_first_machines_mlflow(world, tmp_path, monkeypatch):
    target = "out/aligned/generate_aligned.jsonl"
    here, model = tree(target), tree("out/align/model")
    assert flush(Path("out/tracking"), Path()) == 0
    pulled(world, tmp_path / "other", records=False)
    monkeypatch.chdir(tmp_path / "other")
    with pytest.raises(ValueError, match="no run here made"):
        tree(target)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{world / 'mlflow.db'}")
    assert (tree(target), tree("out/align/model")) == (here, model)
    Path(target).write_text("edited")
    with pytest.raises(ValueError, match="nor is it in sqlite"):
        tree(target)


def test_a_run_that_makes_the_same_again_leaves_its_record(world):
    before = Path("out/runs/votes.json").read_bytes()
    make("votes", 3)
    assert Path("out/runs/votes.json").read_bytes() == before


def test_a_run_on_inputs_of_ones_own_names_them_and_their_makers(world, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "prompts.jsonl").write_text("a prompt")
    with runs.single_run(
        "import", {}, {"nava.output": "warm"}, Layout(), Path(), made=[Path("warm")]
    ) as tracker:
        Path("warm").mkdir()
        Path("warm/config.json").write_text(json.dumps({"checkpoint_id": "warm-id"}))
        tracker.set_tags({CHECKPOINT_TAG: "warm-id"})
    Path("clips").mkdir()
    Path("clips/kept.wav").write_text("not of this run")
    old = Path("clips/kept.wav").stat().st_mtime - 100
    os.utime("clips/kept.wav", (old, old))
    Path("clips/a.wav").write_text("a clip")
    inputs = {"warm": f"{CHECKPOINT}warm-id", str(mine / "prompts.jsonl"): md5_of(mine / "prompts.jsonl")}
    record_run("generate", {}, {"nava.output": "clips"}, Layout(), Path(), inputs, [Path("clips")], 1.0)
    found = trace("clips/a.wav", Layout(), Path())["runs"]
    assert [run["stage"] for run in found] == ["generate", "import"] and found[0]["inputs"] == inputs
    with pytest.raises(ValueError, match=r"kept\.wav"):
        tree("clips/kept.wav")


@pytest.fixture
def job(world):
    shutil.copy(ROOT / "dvc.yaml", world / "dvc.yaml")
    for folder in (
        "my/latents/mine",
        "out/latents",
        "out/pretrain/stage2",
        "out/rollouts",
        "out/chosen",
        "warm",
    ):
        Path(folder).mkdir(parents=True)
        (Path(folder) / "manifest.json").write_text(folder)
    Path("warm/config.json").write_text(json.dumps({"checkpoint_id": "warm-id"}))
    return StageJob(recipe=load_recipe("mini", ROOT / "params.yaml"))


def test_a_fine_tuning_reads_its_own_sets_and_model_alone(job):
    sets = "pretrain.stages.stage3.sets={mine: 1.0}"
    recipe = load_recipe("mini", ROOT / "params.yaml", ["pretrain.latents=my/latents", sets])
    own = dataclasses.replace(job, recipe=recipe, init_from=Path("warm"))
    read = {path: md5 for path, md5 in inputs_read("pretrain_stage3", own).items() if path != "params.yaml"}
    manifest = Path("my/latents/mine/manifest.json")
    assert read == {"my/latents/mine": md5_of(manifest), "warm": f"{CHECKPOINT}warm-id"}
    assert {"out/latents", "out/pretrain/stage2"} <= inputs_read("pretrain_stage3", job).keys()


def test_an_alignment_by_rewards_reads_no_votes(job):
    assert {"out/votes", "out/rollouts", "out/chosen"} <= inputs_read("align", job).keys()
    recipe = load_recipe(
        "mini", ROOT / "params.yaml", ["align.sequence=[nft]", "align.curated_prompts=false"]
    )
    read = inputs_read("align", dataclasses.replace(job, recipe=recipe)).keys()
    assert not {"out/votes", "out/rollouts", "out/chosen"} & read and "out/corpus" in read


def test_another_out_folder_is_what_a_stage_reads(job):
    shutil.copytree("out/corpus", "other/corpus")
    read = inputs_read("codec", dataclasses.replace(job, layout=Layout(out=Path("other"))))
    assert "other/corpus" in read and not any(path.startswith("out/") for path in read)


def test_digests_are_those_of_dvc(world):
    assert digest_of(files_of(Path("out/align"))) == md5_of(Path("out/align"))
    assert digest_of(files_of(Path("out/votes/votes.jsonl"))) == md5_of(Path("out/votes/votes.jsonl"))


def test_a_repository_around_an_untracked_copy_gives_no_commit(tmp_path):
    def git(*arguments: str) -> None:
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
        subprocess.run(command, check=True, cwd=tmp_path, capture_output=True)

    git("init", "-q")
    (tmp_path / "theirs.txt").write_text("x")
    git("add", "theirs.txt")
    git("commit", "-qm", "theirs")
    copy = tmp_path / "nava"
    copy.mkdir()
    (copy / "dvc.yaml").write_text("stages: {}")
    assert git_state(copy).commit == "" and not git_state(copy).dirty
    git("add", "nava")
    git("commit", "-qm", "with it")
    assert len(git_state(copy).commit) == 40 and not git_state(copy).dirty
    (tmp_path / "theirs.txt").write_text("changed, but not a file of the copy")
    assert not git_state(copy).dirty


def test_in_a_pulled_clone_the_runs_have_the_ids_of_the_mlflow_at_hand(world, tmp_path, monkeypatch):
    target = "out/aligned/generate_aligned.jsonl"
    assert flush(Path("out/tracking"), Path()) == 0
    here = trace(target, Layout(), Path())
    assert all(run["mlflow_run_id"] for run in here["runs"])
    pulled(world, tmp_path / "other", records=True)
    monkeypatch.chdir(tmp_path / "other")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{world / 'mlflow.db'}")
    assert trace(target, Layout(), Path()) == here
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'nowhere' / 'mlflow.db'}")
    assert [run["run"] for run in trace(target, Layout(), Path())["runs"]] == [
        run["run"] for run in here["runs"]
    ]
