"""`nava pretrain --from MODEL`: the first stage starts from an imported model, and from nothing else by
accident."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from model_cases import debug_model
from titan_ranks import run_ranks
from titan_world import config, pretend_state, rows, stage_run, write_latents

from experiments.cli import main
from experiments.layout import Layout
from experiments.pipeline.pretrain import codec_id_of, latents_of
from experiments.recipes.load import load_recipe
from pretrain.files import write_json
from pretrain.launch.continuing import verdict_of
from pretrain.launch.identity import Difference
from pretrain.launch.launch import pretrain_stage
from pretrain.launch.stage_run import check_parent, check_run_folder, parent_id
from pretrain.model.checkpoint import load_model, write_model
from pretrain.model.flavors import flavor
from pretrain.recipe import recipe_hash
from pretrain.schedule import StageConfig

IMPORTED = {"stage": "import", "step": 0, "ema_updates": 0, "ema_is_model": True}


def imported(folder: Path, seed: int = 5, **facts: object) -> Path:
    """A model folder as `nava import` writes it: no codec, the average is the model."""
    write_model(
        folder,
        "debug",
        flavor("debug"),
        {"model": debug_model(seed=seed).state_dict()},
        {**IMPORTED, **facts},
    )
    return folder


@pytest.mark.distributed
def test_training_starts_at_the_imported_weights(tmp_path: Path) -> None:
    model, latents = imported(tmp_path / "model"), write_latents(tmp_path / "latents")
    still = StageConfig(name="stage1", steps=1, tasks={"T2AV": 1.0}, lr=1e-30, warmup_steps=0)
    run = stage_run(tmp_path / "run", latents, replace(config(), stages={"stage1": still}), init_from=model)
    check_parent(run)
    assert run_ranks(run.save()) == [0], (run.out / "log.0").read_text()[-2000:]
    trained, started = (
        load_model(run.out / "model", "model")[0].state_dict(),
        debug_model(seed=5).state_dict(),
    )
    assert len(rows(run)) == 1
    for name, value in started.items():
        torch.testing.assert_close(trained[name], value, atol=1e-20, rtol=0)


def test_a_trained_parent_must_have_the_codec_of_the_latents(tmp_path: Path) -> None:
    trained = imported(tmp_path / "model", stage="stage1", codec_id="another")
    with pytest.raises(ValueError, match="codec_id is 'another' instead of 'test-codec'"):
        pretrain_stage(
            config(), "stage1", tmp_path, tmp_path / "run", codec_id="test-codec", init_from=trained
        )


def test_another_parent_is_no_reason_to_keep_or_replace_a_training(tmp_path: Path) -> None:
    first, second = imported(tmp_path / "first"), imported(tmp_path / "second", seed=6)
    run = stage_run(tmp_path / "run", tmp_path, config(), init_from=first)
    assert verdict_of(replace(run, init_from=second)).action == "train"  # nothing is there yet
    pretend_state(run.out, 2)
    assert verdict_of(run).action == "resume"
    verdict = verdict_of(replace(run, init_from=second))
    change = Difference("parents.model", parent_id(first), parent_id(second))
    assert verdict.action == "refuse" and verdict.counting == (change,)


def test_several_nodes_say_where_they_meet_and_do_not_start_over(capsys: pytest.CaptureFixture[str]) -> None:
    for asked, answer in (
        (["--nnodes", "2", "--node-rank", "0"], "--rdzv: expected HOST:PORT"),
        (["--nnodes", "2", "--node-rank", "1", "--rdzv", "a:1", "--no-resume"], "--no-resume"),
        (["--nnodes", "2", "--node-rank", "2", "--rdzv", "a:1"], "nodes count from 0"),
    ):
        with pytest.raises(SystemExit):
            main(["pretrain", "mini", *asked])
        assert answer in capsys.readouterr().err


def test_the_papers_run() -> None:
    """nava.md, section 3: what the recipe must say in so many words."""
    run = load_recipe("nava_6b").pretrain
    assert sum(stage.steps for stage in run.stages.values()) == 70_000 and len(run.stages) == 3
    assert run.global_batch_size == 512 and {stage.lr for stage in run.stages.values()} == {1e-4}
    assert (run.optimizer.weight_decay, run.optimizer.grad_clip, run.mixed_precision) == (0.0, 1.0, "bf16")
    objective = run.objective
    assert (objective.levels.draw, objective.levels.weight, objective.levels.shift) == (
        "release",
        "release",
        5.0,
    )
    dropout = objective.dropout
    assert objective.audio_weight == 0.2
    assert (dropout.text, dropout.modality_mask, dropout.timbre_kept, dropout.first_frame) == (
        0.1,
        0.2,
        0.9,
        0.5,
    )
    audio_share = [stage.tasks.get("T2A", 0.0) / sum(stage.tasks.values()) for stage in run.stages.values()]
    assert audio_share == [0.75, 0.25, 0.0]
    assert flavor(run.flavor).attend_text_padding and run.local_batch(128) == 1


def sets_of(folder: Path, **codecs: str) -> Path:
    """Manifests of encoded sets, each by a codec."""
    for name, codec in codecs.items():
        write_json(folder / name / "manifest.json", {"codec_id": codec, "index_sha256": f"{name} by {codec}"})
    return folder


def test_latents_may_be_anywhere_and_say_their_codec(tmp_path: Path) -> None:
    layout, place = Layout(out=tmp_path / "out"), sets_of(tmp_path / "place", audio_only="a", paired="a")
    there = replace(config(), latents=str(place))
    assert latents_of(config(), layout) == layout.latents and latents_of(there, layout) == place
    assert codec_id_of(there, "stage1", layout) == "a"
    with pytest.raises(FileNotFoundError, match="fit the codec first"):
        codec_id_of(config(), "stage1", layout)
    sets_of(place, paired="b")
    with pytest.raises(ValueError, match=r"sets of different codecs .*paired by b"):
        codec_id_of(there, "stage1", layout)
    assert recipe_hash(there, "stage1") == recipe_hash(
        config(), "stage1"
    )  # where they lie is not what is trained


def test_a_training_is_not_kept_when_its_sets_have_changed(tmp_path: Path) -> None:
    layout, place = Layout(out=tmp_path / "out"), sets_of(tmp_path / "place", audio_only="a", paired="a")
    there = replace(config(), latents=str(place))
    run = stage_run(layout.pretrain("stage1"), place, there)
    pretend_state(run.out, 2)
    assert verdict_of(run).action == "resume"
    sets_of(place, paired="b")
    with pytest.raises(ValueError, match=r"inputs.latents.paired paired by a, asked for paired by b\)"):
        check_run_folder(run)
