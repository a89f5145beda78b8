import json
import subprocess

import pytest

from experiments.layout import Layout
from experiments.runs import run as runs
from experiments.runs.lineage import CHECKPOINT_TAG, show, trace
from experiments.runs.provenance import git_state, md5_of, stage_inputs
from experiments.runs.run import tracked
from experiments.runs.tracker import RunStart, SpoolTracker

PIPELINE = """
stages:
  corpus: {cmd: c, deps: [code.py], outs: [out/corpus]}
  pretrain_stage1: {cmd: a, deps: [out/corpus], outs: [out/pretrain/stage1: {persist: true}]}
  pretrain_stage2: {cmd: b, deps: [out/corpus, out/pretrain/stage1/model], outs: [out/pretrain/stage2]}
  generate: {cmd: g, deps: [out/pretrain/stage2], outs: [out/generated]}
"""


@pytest.fixture
def world(tmp_path, monkeypatch):
    """Four stages that ran, with a model each and a clip whose metadata is faked."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_STAGE", raising=False)
    monkeypatch.setattr(runs, "ensure_sender", lambda spool, root: None)
    (tmp_path / "dvc.yaml").write_text(PIPELINE)
    (tmp_path / "code.py").write_text("x = 1\n")
    for command in (
        ["init", "-q"],
        ["add", "code.py"],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "one"],
    ):
        subprocess.run(["git", *command], check=True, cwd=tmp_path)
    layout = Layout()
    for stage in ("corpus", "pretrain_stage1", "pretrain_stage2", "generate"):
        with tracked(stage, "mini", {"steps": 1}, layout, tmp_path, resume=False) as tracker:
            output = layout.output_of(stage)
            (output / "model").mkdir(parents=True)
            (output / "model" / "data").write_text(stage)
            (output / "a.wav").write_text(f"sound of {stage}")
            if stage.startswith("pretrain"):
                (output / "model" / "config.json").write_text(json.dumps({"checkpoint_id": f"id-{stage}"}))
                tracker.set_tags({CHECKPOINT_TAG: f"id-{stage}"})
    return layout


def stages_of(found):
    return [run["stage"] for run in found["runs"]]


def test_a_model_leads_to_its_parents_inputs_and_commit(world, tmp_path):
    found = trace("out/pretrain/stage2/model", world, tmp_path)
    assert (found["kind"], found["checkpoint_id"]) == ("model", "id-pretrain_stage2")
    assert stages_of(found) == ["pretrain_stage2", "pretrain_stage1", "corpus"]
    second, first, corpus = found["runs"]
    assert list(second["parents"].items()) == [("pretrain_stage1", first["run"]), ("corpus", corpus["run"])]
    assert second["inputs"]["out/corpus"] == md5_of(world.corpus)
    assert corpus["inputs"] == {"code.py": md5_of(tmp_path / "code.py")}
    assert second["git_commit"] == git_state(tmp_path).commit != "" and not second["git_dirty"]
    assert second["status"] == "FINISHED" and second["config"] == {"steps": 1}


def test_a_clip_in_the_output_leads_through_generation(world, tmp_path):
    assert stages_of(trace("out/generated/a.wav", world, tmp_path)) == [
        "generate",
        "pretrain_stage2",
        "pretrain_stage1",
        "corpus",
    ]


def test_a_clip_carried_elsewhere_is_known_by_its_checkpoint(world, tmp_path, monkeypatch):
    from pretrain.media import read as media

    monkeypatch.setattr(media, "read_metadata", lambda path: {"checkpoint_id": "id-pretrain_stage1"})
    clip = tmp_path / "carried.mp4"
    clip.write_bytes(b"x")
    found = trace(str(clip), world, tmp_path)
    assert (found["kind"], stages_of(found)[0]) == ("clip", "pretrain_stage1")
    monkeypatch.setattr(media, "read_metadata", lambda path: {"checkpoint_id": "unheard-of"})
    with pytest.raises(ValueError, match="no run here made checkpoint unheard-of"):
        trace(str(clip), world, tmp_path)


def test_of_runs_with_equal_weights_the_folders_own_is_named(world, tmp_path):
    for name in ("first", "second"):
        tracker = SpoolTracker(world.tracking / f"2-{name}")
        tracker.start(
            RunStart(
                name="import",
                tags={"nava.stage": "import", "nava.output": f"models/{name}", CHECKPOINT_TAG: "equal"},
            )
        )
        tracker.finish("FINISHED")
    for name in ("first", "second", "carried"):
        (tmp_path / "models" / name).mkdir(parents=True)
        (tmp_path / "models" / name / "config.json").write_text(json.dumps({"checkpoint_id": "equal"}))
    assert trace("models/first", world, tmp_path)["run"] == "2-first"
    assert trace("models/first/config.json", world, tmp_path)["run"] == "2-first"
    assert (
        trace("models/second", world, tmp_path)["run"]
        == trace("models/carried", world, tmp_path)["run"]
        == "2-second"
    )


def test_a_run_is_found_by_key_stage_or_mlflow_id(world, tmp_path):
    key = trace("pretrain_stage1", world, tmp_path)["run"]
    assert trace(key, world, tmp_path)["run"] == key
    (world.tracking / key / "sent.json").write_text(json.dumps({"uri": "u", "run_id": "abc", "offset": 1}))
    assert trace("abc", world, tmp_path)["runs"][0]["mlflow_run_id"] == "abc"


def test_what_is_unknown_says_so_in_one_line(world, tmp_path):
    for target in ("nowhere", "code.py"):
        with pytest.raises((FileNotFoundError, ValueError)) as error:
            trace(target, world, tmp_path)
        assert target in str(error.value) and "\n" not in str(error.value)


def test_the_tree_names_every_run_once(world, tmp_path, capsys):
    found = trace("out/generated", world, tmp_path)
    show(found)
    printed = capsys.readouterr().out
    assert all(printed.count(f"run {run['run']}") == 1 for run in found["runs"])
    assert "corpus (shown above)" in printed


def test_changed_code_is_seen_as_dirty_and_changes_the_input(world, tmp_path):
    before = stage_inputs("corpus", tmp_path)
    (tmp_path / "code.py").write_text("x = 2\n")
    assert git_state(tmp_path).dirty and stage_inputs("corpus", tmp_path) != before


def test_folder_hashes_are_those_of_dvc(tmp_path):
    (tmp_path / "x").write_text("hi\n")  # DVC 3.67 wrote this hash for this folder into a dvc.lock
    assert md5_of(tmp_path) == "08e38f389cb309b8dc5fa02670968800.dir"


def test_under_dvc_the_lock_is_believed(world, tmp_path, monkeypatch):
    lock = {"stages": {"corpus": {"outs": [{"path": "out/corpus", "md5": "from-the-lock.dir"}]}}}
    (tmp_path / "dvc.lock").write_text(json.dumps(lock))
    assert stage_inputs("pretrain_stage1", tmp_path)["out/corpus"] == md5_of(world.corpus)
    monkeypatch.setenv("DVC_STAGE", "pretrain_stage1")
    assert stage_inputs("pretrain_stage1", tmp_path)["out/corpus"] == "from-the-lock.dir"
