"""AdamW's moments in 8 bits: against torchao's optimizer, sizes, checkpoints, whole trainings."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any
from unittest import mock

import finetune_world
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from titan_ranks import run_ranks
from titan_world import config, rows, stage_run, write_latents
from torch import nn

from finetune.sft.config import RateScales
from pretrain.launch.stage_run import StageRun, check_run_folder
from pretrain.model.flavors import build_model, flavor
from pretrain.model.moments_format import SMALLEST, block_of
from pretrain.model.plan_sizes import model_moments
from pretrain.recipe import CheckpointConfig, OptimizerConfig, PretrainConfig, recipe_hash
from pretrain.titan import moments
from pretrain.titan.moments import ShardedAdamW8bit, optimizer_name, state_tensors
from pretrain.titan.train_spec import create_moments

EIGHT = OptimizerConfig(moments="8bit")


@pytest.fixture(scope="module")
def torchao() -> None:
    pytest.importorskip("torchao", reason="pip install 'torchao>=0.18,<0.19'")


def weights(*shapes: tuple[int, ...]) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(*shape, generator=generator)) for shape in shapes]


def take_steps(optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    """Steps with gradients that a step's number decides, of sizes up to 100 times apart."""
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        for parameter in optimizer.param_groups[0]["params"]:
            sizes = 10 ** (2 * torch.rand(parameter.shape, generator=generator) - 4)
            parameter.grad = sizes * torch.randn(parameter.shape, generator=generator)
        optimizer.step()


SHAPES = [(64, 256), (24, 512), (7, 2, 512), (100,), (3, 256)]
SETTINGS = {"betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.01}


@pytest.mark.usefixtures("torchao")
def test_the_steps_are_bit_by_bit_those_of_torchaos_optimizer() -> None:
    from torchao.optim import AdamW8bit  # pyright: ignore[reportMissingImports]

    ours, theirs = weights(*SHAPES), weights(*SHAPES)
    with mock.patch("torch.compile", lambda update, **_: update):  # as it runs on a CPU here
        take_steps(ShardedAdamW8bit(ours, lr=1e-2, **SETTINGS), 0, 6)
        take_steps(AdamW8bit(theirs, lr=1e-2, **SETTINGS), 0, 6)
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


@pytest.mark.usefixtures("torchao")
def test_rounded_moments_stay_near_fp32_and_whole_ones_are_fp32() -> None:
    ours, exact = weights(*SHAPES), weights(*SHAPES)
    take_steps(ShardedAdamW8bit(ours, lr=1e-2, **SETTINGS), 0, 6)
    take_steps(torch.optim.AdamW(exact, lr=1e-2, foreach=False, **SETTINGS), 0, 6)
    starts = weights(*SHAPES)
    for one, other, start in zip(ours, exact, starts, strict=True):
        moved, wanted = (one - start).flatten(), (other - start).flatten()
        likeness = torch.cosine_similarity(moved, wanted, dim=0).item()
        if block_of(one.shape):
            assert 0.9 < likeness < 1 and not torch.equal(one, other)
        else:
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


@pytest.mark.slow  # two kernels by C++: a minute
@pytest.mark.usefixtures("torchao")
def test_a_compiled_update_is_the_same_within_rounding() -> None:
    def steps(update: Any) -> list[nn.Parameter]:
        held = weights((64, 256), (100,))
        with mock.patch.object(moments, "_torchao", return_value=(update, real[1])):
            take_steps(ShardedAdamW8bit(held, lr=1e-2, **SETTINGS), 0, 3)
        return held

    real = moments._torchao()
    compiled = torch.compile(real[0], fullgraph=True, dynamic=False)
    for one, other in zip(steps(compiled), steps(real[0]), strict=True):
        torch.testing.assert_close(
            one, other, rtol=0, atol=2e-3
        )  # a fifth of a step at its rate: codes apart


def test_an_update_that_cannot_be_compiled_is_one_line() -> None:
    from torch._dynamo.exc import TorchDynamoException

    compiled = mock.Mock(side_effect=TorchDynamoException("no C compiler\nis here"))
    with (
        mock.patch("torch.compile", return_value=compiled),
        mock.patch.object(moments, "_torchao", return_value=(None, None)),
        pytest.raises(ValueError, match=r"^moments in 8 bits: [^\n]*no C compiler is here[^\n]*fp32$"),
    ):
        moments._compiled_update()


@given(st.lists(st.integers(1, 40), min_size=1, max_size=3), st.sampled_from([1, 64, 96, 128, 256]))
def test_a_block_lies_within_a_row_whatever_rows_a_rank_has(sizes: list[int], factor: int) -> None:
    shape = torch.Size([*sizes[:-1], sizes[-1] * factor])
    block, row = block_of(shape), shape[1:].numel() if len(shape) > 1 else 0
    if not block:
        assert len(shape) == 1 or shape.numel() < SMALLEST or row % 64
    else:
        assert row % block == 0 and not (block < 256 and row % (2 * block) == 0)


def test_the_states_of_the_full_model_are_a_quarter_as_the_plan_counts() -> None:
    with torch.device("meta"):
        shapes = [parameter.shape for parameter in build_model(flavor("nava_6b")).parameters()]
    whole = sum(shape.numel() for shape in shapes)
    held = sum(2 * shape.numel() * (1 + 4 / block if (block := block_of(shape)) else 4.0) for shape in shapes)
    assert model_moments(flavor("nava_6b"), "8bit") == pytest.approx(held)
    assert held / whole == pytest.approx(2 * (1 + 4 / 256), rel=0.005)
    assert model_moments(flavor("nava_6b"), "fp32") == 8 * whole


@pytest.mark.usefixtures("torchao")
def test_what_is_held_is_codes_scales_and_small_parameters_in_fp32() -> None:
    given_shapes = [(64, 256), (128, 192), (64, 33), (300,), (2, 256)]
    optimizer = ShardedAdamW8bit(weights(*given_shapes), lr=1e-3)
    create_moments(optimizer)
    assert sum(value.nbytes for value in state_tensors(optimizer)) == 2 * (
        64 * 256 + 4 * 64 + 128 * 192 + 4 * 128 * 3 + 4 * (64 * 33 + 300 + 512)
    )
    before = weights(*given_shapes)
    assert all(torch.equal(a, b) for a, b in zip(optimizer.param_groups[0]["params"], before, strict=True))


@pytest.mark.usefixtures("torchao")
def test_a_loaded_state_is_the_same_bits_in_the_same_memory_and_so_is_the_next_step() -> None:
    first, second = (ShardedAdamW8bit(weights(*SHAPES), lr=1e-2, **SETTINGS) for _ in range(2))
    take_steps(first, 0, 3)
    create_moments(second)
    places = [value.data_ptr() for value in state_tensors(second)]
    second.load_state_dict(first.state_dict())
    with torch.no_grad():
        for parameter, value in zip(
            second.param_groups[0]["params"], first.param_groups[0]["params"], strict=True
        ):
            parameter.copy_(value)
    assert [value.data_ptr() for value in state_tensors(second)] == places
    assert {value.dtype for value in state_tensors(second)} == {torch.uint8, torch.float32}
    for optimizer in (first, second):
        take_steps(optimizer, 3, 5)
    pairs = zip(second.param_groups[0]["params"], first.param_groups[0]["params"], strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_a_missing_or_an_old_package_is_one_line_and_fp32_needs_none() -> None:
    with mock.patch.object(moments.importlib.util, "find_spec", return_value=None):
        assert optimizer_name("fp32") == "AdamW"
        with pytest.raises(
            ValueError, match=r"^optimizer\.moments=8bit: [^\n]*not installed[^\n]*moments=fp32$"
        ):
            optimizer_name("8bit")
    with (
        mock.patch.object(moments.importlib.util, "find_spec", return_value=object()),
        mock.patch.object(moments, "_torchao", side_effect=ImportError("No module named 'torchao.optim'")),
        pytest.raises(ValueError, match=r"^optimizer\.moments=8bit: [^\n]*torchao\.optim[^\n]*moments=fp32$"),
    ):
        optimizer_name("8bit")
    with pytest.raises(ValueError, match=r"optimizer\.moments: unknown value"):
        OptimizerConfig(moments="8bits")  # type: ignore[arg-type]


def test_the_field_leaves_old_hashes_and_another_value_is_refused_by_name(tmp_path: Path) -> None:
    eight = dataclasses.replace(PretrainConfig(), optimizer=EIGHT)
    assert recipe_hash(eight, "stage1") != recipe_hash(PretrainConfig(), "stage1")
    latents = write_latents(tmp_path / "latents")
    run = stage_run(tmp_path / "run", latents, config())
    assert "moments" not in json.loads((run.out / "resolved.json").read_text())["config"]["optimizer"]
    (run.out / "checkpoint" / "step-2").mkdir(parents=True)
    (run.out / "checkpoint" / "step-2" / ".metadata").write_text("")
    with pytest.raises(ValueError, match=r"^[^\n]*\(optimizer\.moments fp32, asked for 8bit\)[^\n]*$"):
        check_run_folder(dataclasses.replace(run, config=dataclasses.replace(run.config, optimizer=EIGHT)))


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_latents(tmp_path_factory.mktemp("latents"))


def recipe(steps: int = 4, asynchronous: bool = False, optimizer: OptimizerConfig = EIGHT) -> PretrainConfig:
    changed = config(steps, interval=2, optimizer=optimizer)
    saves = CheckpointConfig(interval=2, asynchronous=asynchronous, keep_last=9)
    return dataclasses.replace(changed, checkpoint=saves)


def trained(run: StageRun, world_size: int, mishap: str = "") -> StageRun:
    wanted = [-9 if mishap else 0] * world_size
    assert run_ranks(run.save(), world_size, mishap) == wanted, (run.out / "log.0").read_text()[-2000:]
    return run


@pytest.fixture(scope="module")
def uninterrupted(torchao: None, latents: Path, tmp_path_factory: pytest.TempPathFactory) -> StageRun:
    return trained(stage_run(tmp_path_factory.mktemp("whole"), latents, recipe()), 1)


@pytest.mark.distributed
@pytest.mark.usefixtures("torchao")
@pytest.mark.parametrize("asynchronous", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_killed_training_ends_with_the_same_bits(uninterrupted, tmp_path, asynchronous) -> None:
    run = stage_run(tmp_path, uninterrupted.latents, recipe(asynchronous=asynchronous))
    trained(run, 1, "kill@3")
    trained(run, 1)
    assert [row["loss"] for row in rows(run)] == [row["loss"] for row in rows(uninterrupted)]
    for name in ("model.safetensors", "ema.safetensors"):
        assert (run.out / "model" / name).read_bytes() == (uninterrupted.out / "model" / name).read_bytes()


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.usefixtures("torchao")
def test_one_rank_begins_and_two_go_on_to_the_same_model(uninterrupted, tmp_path) -> None:
    run = stage_run(tmp_path, uninterrupted.latents, recipe())
    trained(run, 1, "kill@2")
    trained(run, 2)
    for ours, theirs in zip(rows(run), rows(uninterrupted), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
    mine, other = (load_file(each.out / "model" / "model.safetensors") for each in (run, uninterrupted))
    for name in other:
        torch.testing.assert_close(mine[name], other[name], rtol=1e-3, atol=2e-5)


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.usefixtures("torchao")
def test_fine_tuning_with_rates_of_its_own_goes_on_with_the_same_bits(tmp_path) -> None:
    world = finetune_world.write_world(tmp_path / "world")
    asked = {"full": True, "optimizer": EIGHT, "lr_scale": RateScales(video=0.5)}
    tuned = [
        finetune_world.finetune_run(world, tmp_path / name, finetune_world.config(4, 1, **asked))
        for name in ("whole", "killed")
    ]
    assert finetune_world.run_ranks(tuned[1], mishap="kill@2") == [-9]
    for run in tuned:
        assert finetune_world.run_ranks(run) == [0], (run.out / "log.0").read_text()[-2000:]
    first, second = ((run.out / "model" / "model.safetensors").read_bytes() for run in tuned)
    assert first == second
