"""`nava import` and `nava export` from the command line to lineage, and a stage on two ranks that starts from
an import."""

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest
import torch
from convert_cases import nava_tensors, read_all, write_checkpoint
from safetensors.torch import load_file
from titan_ranks import run_ranks
from titan_world import config, stage_run, write_latents

from experiments.cli import main
from experiments.layout import Layout
from experiments.runs.lineage import trace
from experiments.runs.tracker import RunStart, SpoolTracker
from pretrain.launch.stage_run import check_parent
from pretrain.model.flavors import flavor
from pretrain.recipe import CheckpointConfig

DEBUG = flavor("debug_published")


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("nava"), nava_tensors(DEBUG), stem="NAVA")


@pytest.fixture(scope="module")
def made(source, tmp_path_factory) -> Path:
    """An import by the verb: model/ and out/."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("experiments.runs.run.ensure_sender", lambda *_: None)
        verb = [
            "import",
            "nava",
            str(source),
            "--to",
            str(folder / "model"),
            "--flavor",
            "debug_published",
            "--dcp",
        ]
        assert main([*verb, "--out", str(folder / "out"), "--json"]) == 0
    return folder


def test_lineage_leads_to_the_published_files(made, source) -> None:
    found = trace(str(made / "model"), Layout(out=made / "out"), Path())
    assert found["runs"][0]["stage"] == "import" and found["runs"][0]["status"] == "FINISHED"
    assert found["runs"][0]["inputs"] == {
        str(source): f"sha256:{hashlib.sha256(source.read_bytes()).hexdigest()}"
    }
    later = SpoolTracker(made / "out" / "tracking" / "later")
    later.start(RunStart(name="pretrain_stage1", tags={"nava.stage": "pretrain_stage1"}))
    later.set_tags({"parent_model_id": found["checkpoint_id"]})
    later.finish("FINISHED")
    assert [run["stage"] for run in trace("later", Layout(out=made / "out"), Path())["runs"]] == [
        "pretrain_stage1",
        "import",
    ]


def test_export_gives_the_file_back(made, source, tmp_path, capsys) -> None:
    assert main(["export", "nava", str(made / "model"), "--to", str(tmp_path / "back.safetensors")]) == 0
    assert f"{len(load_file(source))} tensors in back.safetensors" in capsys.readouterr().out
    theirs, back = load_file(source), load_file(tmp_path / "back.safetensors")
    assert back.keys() == theirs.keys() and all(torch.equal(back[key], theirs[key]) for key in theirs)
    assert (made / "model" / "dcp" / ".metadata").is_file()


@pytest.mark.parametrize("as_json", [True, False])
def test_a_dry_run_writes_nothing(as_json, source, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["--json"] if as_json else []
    assert main(["import", "nava", str(source), "--flavor", "debug_published", "--dry-run", *flags]) == 0
    said = capsys.readouterr().out
    if as_json:
        found = json.loads(said)
        assert (
            found["used"] == len(found["keys"])
            and found["fresh"] == 0
            and found["parameters"] == found["parameters_given"]
        )
    else:
        assert (
            "time.tables.alignment_audio" in said
            and "backbone.double_blocks.0.modulation_audio.modulation" in said
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["import", "nva", "x"], "did you mean 'nava'"),
        (["import", "nava", "x"], "--to: give the folder"),
        (["import", "nava", "nowhere", "--to", "m"], "nowhere: no .safetensors file or index here"),
        (["import", "nava", "x", "--to", "m", "--flavor", "nava_6c"], "did you mean 'nava_6b'"),
        (["export", "wan", "nowhere", "--to", "m"], "nowhere: no config.json"),
        (["export", "wam", "x", "--to", "m"], "did you mean 'wan"),
        (["import", "nava", "x", "--to", "m", "--audio-from", "copy"], "--audio-from copy is for wan2.2"),
        (["import", "nava", "s4://bucket/x", "--to", "m"], "unknown protocol 's4'"),
    ],
)
def test_wrong_input_is_one_line(arguments, said, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        main(arguments)
    error = capsys.readouterr().err
    assert left.value.code == 2 and said in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.distributed
def test_a_stage_starts_from_an_import_on_two_ranks(made, tmp_path) -> None:
    """At a rate that moves nothing, what is exported by the ranks is what was imported, and goes back into
    the published layout."""
    latents = write_latents(tmp_path / "latents")
    recipe = config(
        2, flavor="debug_published", checkpoint=CheckpointConfig(interval=100, asynchronous=False)
    )
    still = dataclasses.replace(recipe.stages["stage1"], lr=1e-30)
    run = stage_run(
        tmp_path / "run",
        latents,
        dataclasses.replace(recipe, stages={"stage1": still}),
        init_from=made / "model",
        codec_id="test-codec",
    )
    check_parent(run)
    assert run_ranks(run.save(), 2) == [0, 0], (run.out / "log.0").read_text()[-2000:]
    before, after = read_all(made / "model"), load_file(run.out / "model" / "ema.safetensors")
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    assert (
        main(
            [
                "export",
                "nava",
                str(run.out / "model"),
                "--to",
                str(tmp_path / "trained"),
                "--weights",
                "model",
            ]
        )
        == 0
    )
    assert all(
        torch.equal(value, load_file(tmp_path / "trained" / "NAVA.safetensors")[key])
        for key, value in nava_tensors(DEBUG).items()
    )


def test_dcp_into_a_store_is_refused_before_anything_is_read(tmp_path, capsys) -> None:
    with pytest.raises(SystemExit):
        main(
            [
                "import",
                "nava",
                str(tmp_path / "missing"),
                "--to",
                "memory://dcp/model",
                "--flavor",
                "debug_published",
                "--dcp",
            ]
        )
    assert "needs a local folder" in capsys.readouterr().err
