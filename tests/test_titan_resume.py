import dataclasses
import json
from pathlib import Path

import pytest
from safetensors.torch import load_file
from titan_ranks import run_ranks
from titan_world import config, rows, stage_run, write_latents

from pretrain.launch.stage_run import StageRun
from pretrain.recipe import CheckpointConfig
from pretrain.schedule import task_of_step
from pretrain.titan.checkpoints import complete_steps
from pretrain.types import Task

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def latents(tmp_path_factory) -> Path:
    return write_latents(tmp_path_factory.mktemp("latents"))


def audio_first_seed() -> int:
    """A seed whose first and fourth steps are audio-only, so that a resumed run must know which sounds it has
    had."""
    stage = config().stages["stage1"]
    return next(
        seed
        for seed in range(200)
        if [task_of_step(seed, stage, step).task is Task.T2A for step in (1, 2, 3, 4)]
        == [True, False, False, True]
    )


@pytest.fixture(scope="module")
def uninterrupted(latents, tmp_path_factory) -> StageRun:
    run = stage_run(
        tmp_path_factory.mktemp("whole"), latents, config(steps=5, interval=1, seed=audio_first_seed())
    )
    assert run_ranks(run.save()) == [0]
    return run


def assert_same_weights(a: StageRun, b: StageRun) -> None:
    for name in ("model.safetensors", "ema.safetensors"):
        assert (a.out / "model" / name).read_bytes() == (b.out / "model" / name).read_bytes(), name
    ids = [json.loads((run.out / "model" / "config.json").read_text())["checkpoint_id"] for run in (a, b)]
    assert ids[0] == ids[1]


def same_recipe(uninterrupted: StageRun, out: Path, **checkpoint) -> StageRun:
    recipe = dataclasses.replace(
        uninterrupted.config,
        checkpoint=CheckpointConfig(**{"interval": 1, "asynchronous": False, **checkpoint}),
    )
    return stage_run(out, uninterrupted.latents, recipe)


def test_killed_right_after_an_audio_only_first_step(uninterrupted, tmp_path):
    run = same_recipe(uninterrupted, tmp_path)
    assert run_ranks(run.save(), mishap="kill@1") == [-9]
    assert [row["task"] for row in rows(run)] == ["T2A"]
    assert complete_steps(run.out / "checkpoint") == [1]
    assert run_ranks(run.save()) == [0]
    assert_same_weights(run, uninterrupted)
    assert [row["step"] for row in rows(run)] == [1, 2, 3, 4, 5]


def test_killed_between_asynchronous_saves(uninterrupted, tmp_path):
    run = same_recipe(uninterrupted, tmp_path, interval=2, asynchronous=True)
    assert run_ranks(run.save(), mishap="kill@4") == [-9]
    assert 2 in complete_steps(run.out / "checkpoint")  # the save of step 4 waited for it
    assert run_ranks(run.save()) == [0]
    assert_same_weights(run, uninterrupted)
    losses = [{row["step"]: row["loss"] for row in rows(each)} for each in (run, uninterrupted)]
    assert losses[0] == losses[1]


def test_sigterm_writes_a_checkpoint_and_exits_0(uninterrupted, tmp_path):
    run = same_recipe(uninterrupted, tmp_path, interval=100)
    assert run_ranks(run.save(), mishap="term@2") == [0]
    state = json.loads((run.out / "state.json").read_text())
    assert (state["status"], state["step"]) == ("interrupted", 2)
    assert not (run.out / "model").exists()
    assert run_ranks(run.save()) == [0]
    assert_same_weights(run, uninterrupted)


def test_full_disk_keeps_the_last_good_checkpoint(uninterrupted, tmp_path):
    run = same_recipe(uninterrupted, tmp_path, keep_last=1)
    assert run_ranks(run.save(), mishap="full@3") == [2]
    line = (run.out / "error.txt.0").read_text()
    assert line.count("\n") == 1
    assert "disk is full" in line and str(run.out / "checkpoint") in line and "step 2 is intact" in line
    assert sorted(path.name for path in (run.out / "checkpoint").iterdir()) == ["step-2"]
    assert run_ranks(run.save()) == [0]
    assert_same_weights(run, uninterrupted)


def test_nan_step_is_skipped_and_counted(latents, tmp_path):
    run = stage_run(tmp_path, latents, config(steps=3, interval=100, tasks={"T2AV": 1.0}))
    assert run_ranks(run.save(), mishap="nan@2") == [0]
    assert [row["skipped_nonfinite"] for row in rows(run)] == [0, 1, 1]
    weights = load_file(run.out / "model" / "model.safetensors")
    assert all(bool(value.isfinite().all()) for value in weights.values())


def test_a_stage_that_ends_on_a_nan_step_is_not_finished(latents, tmp_path):
    run = stage_run(tmp_path, latents, config(steps=3, interval=100, tasks={"T2AV": 1.0}))
    assert run_ranks(run.save(), mishap="nan@3") == [2]
    line = (run.out / "error.txt.0").read_text()
    assert "step 3" in line and "not exported" in line and line.count("\n") == 1
    assert not (run.out / "model").exists()
    assert run_ranks(run.save()) == [2], "going on from the last checkpoint does not make it whole"


def test_a_stage_that_diverges_is_not_finished(latents, tmp_path):
    recipe = config(steps=3, interval=100)
    steep = dataclasses.replace(recipe.stages["stage1"], lr=1e18, warmup_steps=0)
    run = stage_run(tmp_path, latents, dataclasses.replace(recipe, stages={"stage1": steep}))
    assert run_ranks(run.save()) == [2]
    assert "not exported" in (run.out / "error.txt.0").read_text()
    assert not (run.out / "model").exists()


def test_too_many_skips_stop_the_run(latents, tmp_path):
    recipe = config(steps=3, interval=100)
    recipe = dataclasses.replace(recipe, policy=dataclasses.replace(recipe.policy, max_skips_in_a_row=0))
    run = stage_run(tmp_path, latents, recipe)
    assert run_ranks(run.save(), mishap="nan@2") == [2]
    assert "steps in a row skipped" in (run.out / "error.txt.0").read_text()


def test_a_later_stage_starts_from_the_earlier_ones_weights_and_ema(uninterrupted, tmp_path):
    recipe = config(steps=1, interval=100)
    tiny = dataclasses.replace(recipe.stages["stage1"], lr=1e-12, warmup_steps=0)
    recipe = dataclasses.replace(recipe, stages={"stage1": tiny}, ema_decay=0.9999)
    run = stage_run(tmp_path, uninterrupted.latents, recipe, init_from=uninterrupted.out / "model")
    assert run_ranks(run.save()) == [0]
    before, after = (load_file(each.out / "model" / "model.safetensors") for each in (uninterrupted, run))
    assert all(bool((before[name] - after[name]).abs().max() < 1e-9) for name in before)
    parents = [json.loads((each.out / "model" / "config.json").read_text()) for each in (uninterrupted, run)]
    assert parents[1]["parent"] == parents[0]["checkpoint_id"]
    assert parents[1]["ema_updates"] == parents[0]["ema_updates"] + 1


@pytest.mark.slow
def test_without_an_average_a_resumed_run_ends_equal_and_a_stage_starts_from_it(
    uninterrupted, latents, tmp_path
):
    whole, cut = (
        stage_run(tmp_path / name, latents, dataclasses.replace(uninterrupted.config, ema_decay=0.0))
        for name in ("whole", "cut")
    )
    assert run_ranks(whole.save()) == [0]
    assert run_ranks(cut.save(), mishap="kill@2") == [-9] and run_ranks(cut.save()) == [0]
    files = [
        sorted(path.name for path in (run.out / "model").iterdir()) for run in (whole, cut, uninterrupted)
    ]
    assert files[0] == files[1] == ["config.json", "model.safetensors"]
    weights = [(run.out / "model" / "model.safetensors").read_bytes() for run in (whole, cut, uninterrupted)]
    assert weights[0] == weights[1] == weights[2]  # the average never acts on training
    after = stage_run(tmp_path / "after", latents, whole.config, init_from=whole.out / "model")
    assert run_ranks(after.save()) == [0]
