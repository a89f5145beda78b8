import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from titan_ranks import run_ranks
from titan_world import config, rows, stage_run, write_latents

from pretrain.data.encoding.writer import LatentWriter
from pretrain.data.stream.store import LatentStore
from pretrain.launch.stage_run import StageRun
from pretrain.recipe import CheckpointConfig, ParallelConfig, PretrainConfig
from pretrain.types import Task

pytestmark = pytest.mark.distributed
STEPS = 8


@pytest.fixture(scope="module")
def latents(tmp_path_factory) -> Path:
    folder = write_latents(tmp_path_factory.mktemp("latents"))
    with LatentWriter(folder / "validation", codec_id="test-codec") as writer:
        for sample in LatentStore(folder / "paired"):
            writer.add(sample)
    return folder


def trained(out: Path, latents: Path, recipe: PretrainConfig, world_size: int) -> StageRun:
    recipe = dataclasses.replace(recipe, checkpoint=CheckpointConfig(interval=100, asynchronous=False))
    run = stage_run(out, latents, recipe)
    assert run_ranks(run.save(), world_size) == [0] * world_size, (out / "log.0").read_text()[-2000:]
    return run


@pytest.fixture(scope="module")
def one_rank(latents, tmp_path_factory) -> StageRun:
    return trained(tmp_path_factory.mktemp("one"), latents, config(STEPS), 1)


def assert_same_training(run: StageRun, reference: StageRun) -> None:
    ours, theirs = rows(run), rows(reference)
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        losses = [name for name in other if name.startswith(("loss", "validation", "grad_norm"))]
        assert losses == [name for name in mine if name.startswith(("loss", "validation", "grad_norm"))]
        for name in losses:
            assert mine[name] == pytest.approx(other[name], rel=1e-5, abs=1e-6), (mine["step"], name)
    weights, expected = (load_file(each.out / "model" / "ema.safetensors") for each in (run, reference))
    for name in expected:
        torch.testing.assert_close(weights[name], expected[name], rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("shard_blocks", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_two_ranks_alternate_tasks_and_equal_one(latents, one_rank, tmp_path, shard_blocks):
    run = trained(tmp_path, latents, config(STEPS, parallel=ParallelConfig(shard_blocks=shard_blocks)), 2)
    assert {row["task"] for row in rows(run) if "task" in row} == {"T2A", "T2AV", "TI2AV", "T2V"}
    last = rows(run)[-1]
    assert "validation/video" in last and "validation/audio/0.5" in last
    assert {name.split("/")[1] for name in last if name.count("/") == 2} >= set(Task)
    assert "validation/T2A/video" not in last and "validation/T2V/audio" not in last
    assert_same_training(run, one_rank)


def test_accumulation_equals_one_big_batch(latents, one_rank, tmp_path):
    assert_same_training(trained(tmp_path, latents, config(STEPS, local_batch_size=1), 1), one_rank)


def test_hsdp_and_activation_checkpointing_change_nothing(latents, one_rank, tmp_path):
    parallel = ParallelConfig(replicas=2, activation_checkpointing="full")
    assert_same_training(trained(tmp_path, latents, config(STEPS, parallel=parallel), 2), one_rank)


def test_bf16_keeps_fp32_weights_and_follows_fp32(latents, one_rank, tmp_path):
    run = trained(tmp_path, latents, config(STEPS, mixed_precision="bf16"), 1)
    for mine, other in zip(rows(run), rows(one_rank), strict=True):
        if "loss" in mine:
            assert mine["loss"] == pytest.approx(other["loss"], rel=0.02)
    assert {value.dtype for value in load_file(run.out / "model" / "model.safetensors").values()} == {
        torch.float32
    }


@pytest.mark.slow  # the rule itself is tested without ranks in test_titan_parts
def test_retention_keeps_the_last_and_every_nth(latents, tmp_path):
    recipe = config(
        steps=7, checkpoint=CheckpointConfig(interval=1, asynchronous=True, keep_last=2, keep_every=3)
    )
    run = stage_run(tmp_path, latents, recipe)
    assert run_ranks(run.save()) == [0]
    assert sorted(path.name for path in (tmp_path / "checkpoint").iterdir()) == ["step-3", "step-6", "step-7"]


@pytest.mark.slow
def test_mixed_lengths_train_on_two_ranks(latents, tmp_path):
    one = trained(tmp_path / "one", latents, config(4, mix_lengths=True, tasks={"T2AV": 1.0}), 1)
    assert_same_training(
        trained(tmp_path / "two", latents, config(4, mix_lengths=True, tasks={"T2AV": 1.0}), 2), one
    )


@pytest.mark.slow
def test_a_seed_checkpoint_is_what_other_ranks_begin_with(latents, one_rank, tmp_path):
    kept = CheckpointConfig(interval=100, asynchronous=False)
    seeding = dataclasses.replace(kept, create_seed_checkpoint=True)
    run = stage_run(tmp_path, latents, dataclasses.replace(one_rank.config, checkpoint=seeding))
    assert run_ranks(run.save()) == [0]
    assert [path.name for path in (tmp_path / "checkpoint").iterdir()] == ["step-0"] and not rows(run)
    run = dataclasses.replace(run, config=dataclasses.replace(run.config, checkpoint=kept))
    assert run_ranks(run.save(), 2) == [0, 0]
    assert "loading the checkpoint of step 0" in (tmp_path / "log.0").read_text()
    assert_same_training(run, one_rank)
