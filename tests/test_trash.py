"""What must make room is moved, named, listed and deleted on request; sets are not encoded into a stage's."""

from __future__ import annotations

import json
import shlex
import shutil
import time
from pathlib import Path

import pytest

from experiments.cli import main
from experiments.commands.encode import _destination
from experiments.commands.trash import age_s, in_trash
from experiments.layout import Layout
from experiments.runs.tracker import SpoolTracker
from pretrain import storage
from pretrain.launch.launch import set_aside
from pretrain.launch.stage_run import StageRun
from pretrain.owned import owned_folder
from pretrain.recipe import CheckpointConfig, PretrainConfig
from pretrain.storage import move_aside, trash_of


def write(path: Path, text: str = "hours of work") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_folder_is_moved_whole_and_named_in_one_line(tmp_path, capsys):
    write(tmp_path / "out" / "tracking" / "run" / "events.jsonl")
    work = write(tmp_path / "out" / "pretrain" / "stage1" / "model" / "weights")
    moved = [move_aside(work.parent.parent, name="pretrain_stage1")]
    write(work, "the second")
    moved.append(move_aside(work.parent.parent, name="pretrain_stage1"))  # within the same second
    assert [path and path.parent for path in moved] == [tmp_path / "out" / ".trash"] * 2
    texts = [(path / "model" / "weights").read_text() for path in moved if path]
    assert texts == ["hours of work", "the second"] and not work.exists()
    said = capsys.readouterr().out.splitlines()
    assert [str(path) in line for path, line in zip(moved, said, strict=True)] == [True, True]


def test_nothing_and_empty_folders_are_not_kept(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert move_aside(tmp_path / "none") is None and move_aside(tmp_path / "empty") is None
    assert list(tmp_path.iterdir()) == [] and capsys.readouterr().out == ""


def test_a_link_is_moved_and_not_what_it_leads_to(tmp_path):
    write(tmp_path / "disk" / "weights")
    (tmp_path / "stage1").symlink_to(tmp_path / "disk")
    moved = move_aside(tmp_path / "stage1")
    assert moved and moved.is_symlink() and (tmp_path / "disk" / "weights").is_file()


def test_what_is_replaced_lies_in_the_trash_of_its_output_folder(tmp_path):
    old = tmp_path / "out" / "generated" / "seen"
    with owned_folder(old, "generate") as fresh:
        write(fresh / "a.mp4", "old")
    assert trash_of(old) == tmp_path / "out" / "generated" / ".trash"
    (tmp_path / "out" / "tracking").mkdir()
    with owned_folder(old, "generate") as fresh:
        write(fresh / "a.mp4", "new")
    (kept,) = (tmp_path / "out" / ".trash").iterdir()
    assert ((old / "a.mp4").read_text(), (kept / "a.mp4").read_text()) == ("new", "old")


def test_states_elsewhere_go_with_their_training(tmp_path):
    recipe = PretrainConfig(checkpoint=CheckpointConfig(folder=str(tmp_path / "states")))
    run = StageRun(
        config=recipe, stage="stage1", latents=tmp_path, out=tmp_path / "run", trash=tmp_path / ".trash"
    )
    write(run.checkpoints / "step-2" / ".metadata")
    write(run.out / "metrics.jsonl")
    set_aside(run)
    assert not run.out.exists() and not run.checkpoints.exists()
    places = (tmp_path / ".trash", tmp_path / "states" / ".trash")
    names = [path.name.rsplit("-", 2)[0] for place in places for path in place.iterdir()]
    assert names == ["pretrain_stage1", "pretrain_stage1-checkpoint"]


def test_a_folder_without_a_training_makes_no_room(tmp_path):
    run = StageRun(config=PretrainConfig(), stage="stage1", latents=tmp_path, out=tmp_path / "holidays")
    path = write(run.out / "beach.jpg")
    with pytest.raises(ValueError, match="holds no training"):
        set_aside(run)
    assert path.exists()


def test_the_trash_is_listed_and_emptied_by_age(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "out" / ".trash" / "align-20200102-030405" / "model" / "weights", "x" * 1500)
    recent = write(tmp_path / "out" / ".trash" / f"votes-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}")
    assert main(["trash", "list"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].split() == ["1.5", "KB", "2020-01-02", "03:04", "out/.trash/align-20200102-030405"]
    assert said[-1].split()[-2:] == ["in", "all"]
    assert main(["trash", "empty", "--older-than", "30d"]) == 0
    assert "deleted out/.trash/align-20200102-030405" in capsys.readouterr().out and recent.exists()
    assert main(["trash", "empty"]) == 0 and in_trash(tmp_path / "out" / ".trash") == []
    with pytest.raises(SystemExit):
        main(["trash", "empty", "--older-than", "soon"])
    assert capsys.readouterr().err.count("\n") == 1
    assert [age_s(text) for text in ("90s", "1.5h", "2w")] == [90, 5400, 1_209_600]


@pytest.mark.parametrize(
    "place", ["out/votes", "sets/one.set", "a b/one.set", "one.set", "mine/pretrain/stage1"]
)
def test_the_command_that_is_named_deletes_what_was_moved(tmp_path, monkeypatch, capsys, place):
    monkeypatch.chdir(tmp_path)
    if place.startswith(("out", "mine")):
        (tmp_path / place.partition("/")[0] / "tracking").mkdir(parents=True)
    for path in (Path(place), tmp_path / place):
        for text in ("old", "new"):
            with owned_folder(path, "prepare") as fresh:
                write(fresh / "a.mp4", text)
        (said,) = [line for line in capsys.readouterr().out.splitlines() if "moved to" in line]
        command = shlex.split(said.rpartition("(`")[2].partition("` deletes")[0])
        assert command[:3] == ["nava", "trash", "empty"] and (place != "out/votes" or len(command) == 3)
        assert main(command[1:]) == 0
        kept = list(tmp_path.rglob(".trash/*"))
        assert kept == [] and "deleted" in capsys.readouterr().out
        assert (path / "a.mp4").read_text() == "new"
        shutil.rmtree(path)


def test_the_only_copy_of_a_registered_version_is_not_deleted_without_a_word(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("experiments.runs.logged_files.MAX_COPIED_BYTES", 1000)
    folder = Path("out/pretrain/stage1/model")

    def trained(checkpoint: str, size: int) -> None:
        write(folder / "config.json", json.dumps({"checkpoint_id": checkpoint}))
        write(folder / "model.safetensors", "x" * size)
        tracker = SpoolTracker(Path("out/tracking") / f"run-{checkpoint}")
        tags = {"nava.checkpoint_id": checkpoint}
        tracker.log_model(folder, "mini", tags, "nava-mini", "pretrained")
        if checkpoint == "large":
            tracker.move_alias("nava-mini", "best", checkpoint)

    trained("small", 10)  # MLflow has its files
    assert move_aside(folder) and main(["trash", "empty"]) == 0
    trained("large", 2000)
    moved = move_aside(folder)
    trained("next", 2000)  # has the alias `pretrained` now
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(["trash", "empty"])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.count("\n") == 1 and moved and moved.is_dir()
    where = moved.relative_to(tmp_path)
    assert f"{where}: the only copy of a registered version of nava-mini (alias best); move it" in said
    assert main(["trash", "empty", "--with-registered"]) == 0 and not moved.exists()
    shutil.copytree(folder, Path("out/.trash/model-20200101-000000"))  # where it was it still is
    assert main(["trash", "empty"]) == 0


def test_what_was_moved_in_a_store_is_listed_and_deleted(capsys):
    work = storage.place("memory://bucket/sets/one.set")
    with storage.writing(work / "a.bin") as file:
        file.write_bytes(b"x" * 1500)
    assert move_aside(work) and not storage.list_folder(work)
    said = capsys.readouterr().out
    command = shlex.split(said.rpartition("(`")[2].partition("` deletes")[0])
    assert command == ["nava", "trash", "empty", "--out", "memory://bucket/sets"]
    assert main(["trash", "list", *command[3:]]) == 0 and "1.5 KB" in capsys.readouterr().out
    assert main(command[1:]) == 0 and not storage.list_folder(work.parent / ".trash")


def test_a_place_that_is_no_trash_names_no_command(tmp_path, capsys):
    write(tmp_path / "one" / "a")
    moved = move_aside(tmp_path / "one", tmp_path / "attic")
    assert moved and moved.is_dir() and "nava trash" not in capsys.readouterr().out


def test_sets_of_ones_own_are_not_encoded_into_what_dvc_empties(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    layout = Layout()
    assert _destination("", layout) == "out/latents"  # no pipeline here
    (tmp_path / "dvc.yaml").write_text("stages:\n  encode: {cmd: x, outs: [out/latents]}\n")
    assert _destination("", layout) == "out/encoded"
    assert _destination("", Layout(out=Path("mine"))) == "mine/latents"
    for place in ("out/latents", "out/latents/more", str(Path("out/latents").resolve())):
        with pytest.raises(ValueError, match=r"made by the pipeline's stage encode.*such as out/encoded"):
            _destination(place, layout)
    assert [_destination(place, layout) for place in ("try/latents", "s3://b/latents")] == [
        "try/latents",
        "s3://b/latents",
    ]
