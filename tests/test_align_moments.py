"""Alignment with AdamW's moments in 8 bits: against the plan, killed, on other ranks, refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from unittest import mock

import pytest
import torch
from align_world import align_run, config, metrics, run_align, write_world
from model_cases import debug_model
from safetensors.torch import load_file

from experiments.alignment.checks import check_before
from finetune.align_run import AlignRun
from finetune.lora import LoraConfig, inject
from finetune.policy import LoraPolicy
from finetune.recipe import AlignConfig
from finetune.trainer import Trainer
from pretrain.config import to_json
from pretrain.model.flavors import flavor
from pretrain.model.plan_sizes import adapter_moments
from pretrain.titan import moments
from pretrain.titan.moments import ShardedAdamW8bit, state_tensors
from pretrain.titan.ranks import Ranks


@pytest.fixture(scope="module")
def torchao() -> None:
    pytest.importorskip("torchao", reason="pip install 'torchao>=0.18,<0.19'")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"))


def recipe(**changes: object) -> AlignConfig:
    """Two phases; at this rank both matrices of a map have rows that are rounded."""
    fields = {"moments": "8bit", "lora": LoraConfig(rank=64, alpha=64), **changes}
    return dataclasses.replace(config(("nft", "rwr"), rounds=1, phase={"lr": 1e-3}), **fields)


def adapter(run: AlignRun) -> dict[str, torch.Tensor]:
    return load_file(run.out / "adapter" / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def whole(torchao: None, world: Path, tmp_path_factory: pytest.TempPathFactory) -> AlignRun:
    run = align_run(world, tmp_path_factory.mktemp("whole"), recipe())
    assert run_align(run) == [0], (run.out / "log.0").read_text()[-2000:]
    return run


@pytest.mark.usefixtures("torchao")
@pytest.mark.parametrize("rank", [4, 64])
def test_the_states_are_as_large_as_planned_and_a_phase_begins_with_none(rank) -> None:
    made, model = recipe(lora=LoraConfig(rank=rank, alpha=rank)), debug_model()
    inject(model, made.lora)
    trainer = Trainer(LoraPolicy(model, made.ema_decay), Ranks(0, 1, torch.device("cpu")), made)
    assert isinstance(trainer.optimizer, ShardedAdamW8bit)
    held = list(state_tensors(trainer.optimizer))
    assert sum(value.nbytes for value in held) == adapter_moments(flavor("debug"), rank, "8bit")
    fresh = [value.clone() for value in held]
    for parameter in trainer.policy.parameters:
        parameter.grad = torch.randn_like(parameter)
    trainer.optimizer.step()
    assert not all(torch.equal(one, other) for one, other in zip(held, fresh, strict=True))
    trainer.begin_phase(1e-3)
    assert all(not value.any() for value in state_tensors(trainer.optimizer))


@pytest.mark.distributed
def test_a_killed_alignment_ends_with_the_same_bits(whole, world, tmp_path) -> None:
    run = align_run(world, tmp_path, recipe())
    assert run_align(run, mishap="kill@1") == [-9]
    assert run_align(run) == [0]
    for name, value in adapter(whole).items():
        assert torch.equal(adapter(run)[name], value), name


@pytest.mark.slow
@pytest.mark.distributed
def test_one_rank_begins_and_two_go_on_to_the_same_adapter(whole, world, tmp_path) -> None:
    run = align_run(world, tmp_path, recipe())
    assert run_align(run, mishap="kill@1") == [-9]
    assert run_align(run, world_size=2) == [0, 0]
    for name, value in adapter(whole).items():
        torch.testing.assert_close(adapter(run)[name], value, rtol=1e-2, atol=2e-4)
    assert metrics(run)[-1]["reward/warm"] == pytest.approx(metrics(whole)[-1]["reward/warm"], rel=1e-4)


def test_fp32_is_no_field_of_a_run_and_a_missing_package_is_one_line(world, tmp_path) -> None:
    assert "moments" not in to_json(recipe(moments="fp32")) and to_json(recipe())["moments"] == "8bit"
    with pytest.raises(ValueError, match="moments: expected fp32 or 8bit, got '4bit'"):
        recipe(moments="4bit")
    run = align_run(world, tmp_path, recipe())
    run = dataclasses.replace(run, scorer=("any:thing", {"options": {}}))
    with (
        mock.patch.object(moments.importlib.util, "find_spec", return_value=None),
        pytest.raises(ValueError, match=r"^align\.moments=8bit: [^\n]*not installed[^\n]*moments=fp32$"),
    ):
        check_before(run, 1)
