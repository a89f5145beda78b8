"""A training that goes on has the moments and the step of its state, and the settings that are asked for."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import finetune_world
import pytest
import torch
from titan_ranks import run_ranks
from titan_world import config, rows, stage_run, write_latents
from torch import nn
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from finetune.sft.config import RateScales
from finetune.sft.finetune_run import FinetuneRun
from pretrain.launch.continuing import claim
from pretrain.launch.stage_run import StageRun
from pretrain.recipe import OptimizerConfig, PretrainConfig
from pretrain.schedule import StageConfig
from pretrain.titan.job_config import LRScheduler
from pretrain.titan.moments import ShardedAdamW8bit
from pretrain.titan.optimizer_states import OptimizerMoments, ScheduleSteps, set_rates
from pretrain.titan.train_spec import OptimizersContainer, build_lr_schedulers, create_moments

BEFORE = {"lr": 1e-2, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.01}
AFTER = {"lr": 3e-4, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.5}
SHAPES = [(64, 128), (128, 64), (7,)]  # two that 8 bits round, and one that they do not


def factor(step: int, stage: StageConfig) -> float:
    """Of the rate of step 1, 2, ...: linear warm-up, a plateau, linear decay over the last steps."""
    decay = round(stage.steps * stage.decay_fraction)
    if step <= stage.warmup_steps:
        return step / stage.warmup_steps
    left = (stage.steps + 1 - step) / (decay + 1e-9)
    return stage.min_lr_factor + (1 - stage.min_lr_factor) * min(1.0, left)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weights = nn.ParameterList(torch.randn(*shape, generator=generator) for shape in SHAPES)


def container(kind: type[torch.optim.Optimizer], settings: dict[str, Any], split: bool) -> Any:
    optimizers = OptimizersContainer([Small()], kind, settings)  # type: ignore[type-var]
    (optimizer,) = optimizers.optimizers
    if split:
        (whole,) = optimizer.param_groups
        first, *rest = whole["params"]
        halved = {**whole, "params": rest, "lr": whole["lr"] / 2}
        optimizer.param_groups = [{**whole, "params": [first]}, halved]
    create_moments(optimizer)
    return optimizers


def take_steps(optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = 1e-3 * torch.randn(parameter.shape, generator=generator)
        optimizer.step()


def schedules_of(optimizers: Any, steps: int) -> Any:
    return build_lr_schedulers(optimizers, LRScheduler(warmup_steps=2, decay_ratio=0.5), steps)


@pytest.mark.parametrize("split", [False, True], ids=["one group", "groups that were one"])
@pytest.mark.parametrize("kind", [torch.optim.AdamW, ShardedAdamW8bit])
def test_the_next_step_is_that_of_the_new_settings_on_the_old_moments(kind: Any, split: bool) -> None:
    if kind is ShardedAdamW8bit:
        pytest.importorskip("torchao", reason="pip install 'torchao>=0.18,<0.19'")
    old = container(kind, BEFORE, split=False)
    schedules = schedules_of(old, 8)
    for step in range(3):
        take_steps(old.optimizers[0], step, step + 1)
        schedules.step()
    saved = copy.deepcopy([OptimizerMoments(old).state_dict(), ScheduleSteps(schedules).state_dict()])
    new = container(kind, AFTER, split)
    new.model_parts[0].load_state_dict(old.model_parts[0].state_dict())
    after = schedules_of(new, 4)
    OptimizerMoments(new).load_state_dict(saved[0])
    ScheduleSteps(after).load_state_dict(saved[1])
    set_rates(after)
    # by hand: the old optimizer itself, whose groups get the new values; step 4 of 4 has half the rate
    groups = [{**group, **AFTER} for group in old.optimizers[0].param_groups]
    if split:
        (whole,) = groups
        groups = [
            {**whole, "params": whole["params"][:1]},
            {**whole, "params": whole["params"][1:], "lr": AFTER["lr"] / 2},
        ]
    for group in groups:
        group["lr"] *= 0.5
    old.optimizers[0].param_groups = groups
    assert after.schedulers[0].get_last_lr() == pytest.approx([group["lr"] for group in groups])
    for optimizers in (old, new):
        take_steps(optimizers.optimizers[0], 3, 4)
    pairs = zip(new.model_parts[0].parameters(), old.model_parts[0].parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    after.step()  # the schedule goes on from there
    assert after.schedulers[0].last_epoch == 4


def of_stage(steps: int, optimizer: OptimizerConfig | None = None, **changes: Any) -> PretrainConfig:
    recipe = config(steps=steps, interval=1, optimizer=optimizer or OptimizerConfig())
    stage = {"decay_fraction": 0.4, "decay": "linear", "min_lr_factor": 0.1, **changes}
    return dataclasses.replace(
        recipe, stages={"stage1": dataclasses.replace(recipe.stages["stage1"], **stage)}
    )


def rates(run: StageRun) -> list[float]:
    return [row["lr"] for row in rows(run) if "lr" in row]


def settings_saved(run: StageRun, step: int, folder: Path) -> dict[str, set[Any]]:
    """What the groups of the optimizer had in a checkpoint, by name."""
    dcp_to_torch_save(run.out / "checkpoint" / f"step-{step}", folder / "state.pt")
    found: dict[str, set[Any]] = {}
    for name, value in torch.load(folder / "state.pt", weights_only=False)["optimizer"].items():
        if name.startswith("param_groups."):
            found.setdefault(name.rpartition(".")[2], set()).add(value)
    return found


@pytest.fixture(scope="module")
def latents(tmp_path_factory) -> Path:
    return write_latents(tmp_path_factory.mktemp("latents"))


@pytest.fixture(scope="module")
def three(latents, tmp_path_factory) -> StageRun:
    run = stage_run(tmp_path_factory.mktemp("three"), latents, of_stage(3))
    assert run_ranks(run.save()) == [0]
    return run


def gone_on(run: StageRun, out: Path, wanted: PretrainConfig, anyway: bool = False) -> StageRun:
    """A copy of a training, trained on with another configuration."""
    shutil.copytree(run.out, out)
    other = dataclasses.replace(run, config=wanted, out=out, anyway=anyway)
    claim(other)
    assert run_ranks(other.save()) == [0], (out / "log.0").read_text()[-2000:]
    return other


@pytest.mark.distributed
def test_an_extended_stage_follows_the_new_schedule_from_its_first_step_on(three, tmp_path):
    longer = of_stage(5)
    run = gone_on(three, tmp_path / "run", longer)
    old, new = three.config.stages["stage1"], longer.stages["stage1"]
    wanted = [factor(step, old if step <= 3 else new) * 1e-3 for step in range(1, 6)]
    assert wanted[3:] == pytest.approx([1e-3, 0.55e-3])
    assert rates(run) == pytest.approx(wanted)


@pytest.mark.distributed
def test_resume_anyway_trains_with_what_is_asked_for(three, tmp_path):
    asked = OptimizerConfig(weight_decay=0.5, beta1=0.8, beta2=0.9, eps=1e-6)
    wanted = of_stage(5, asked, lr=1e-5, decay_fraction=0.6, min_lr_factor=0.2)
    run = gone_on(three, tmp_path / "run", wanted, anyway=True)
    stage = wanted.stages["stage1"]
    assert rates(run)[3:] == pytest.approx([factor(step, stage) * 1e-5 for step in (4, 5)])
    saved = settings_saved(run, 5, tmp_path)
    assert saved["weight_decay"] == {0.5} and saved["eps"] == {1e-6} and saved["betas"] == {(0.8, 0.9)}
    assert saved["initial_lr"] == {1e-5}
    changes = {name for name, _, _ in json.loads((run.out / "run.json").read_text())["resumed"][0]["changes"]}
    assert {"optimizer.weight_decay", "stages.stage1.lr", "optimizer.beta1"} <= changes


@pytest.mark.slow
@pytest.mark.distributed
def test_fewer_steps_than_are_trained_end_with_the_model_of_those(latents, tmp_path):
    run = stage_run(tmp_path / "run", latents, of_stage(5, decay_fraction=0.0))
    assert run_ranks(run.save(), mishap="kill@4") == [-9]
    shorter = dataclasses.replace(run, config=of_stage(2, decay_fraction=0.0), anyway=True)
    claim(shorter)
    assert run_ranks(shorter.save()) == [0]
    assert json.loads((run.out / "model" / "config.json").read_text())["step"] == 4


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("moments", ["fp32", "8bit"])
def test_fine_tuning_goes_on_with_other_rates_of_the_modalities(moments, tmp_path):
    if moments == "8bit":
        pytest.importorskip("torchao", reason="pip install 'torchao>=0.18,<0.19'")
    world = finetune_world.write_world(tmp_path / "world")

    def tuned(**changes: Any) -> FinetuneRun:
        optimizer = OptimizerConfig(moments=moments, weight_decay=changes.pop("decay", 0.01))
        asked = finetune_world.config(4, 1, full=True, optimizer=optimizer, **changes)
        return finetune_world.finetune_run(world, tmp_path / "run", asked, anyway=True)

    assert finetune_world.run_ranks(tuned(), mishap="kill@2") == [-9]
    run = tuned(lr=1e-4, lr_scale=RateScales(video=0.5), decay=0.3)
    assert finetune_world.run_ranks(run) == [0], (run.out / "log.0").read_text()[-2000:]
    saved = settings_saved(run, 4, tmp_path)
    assert saved["weight_decay"] == {0.3} and saved["initial_lr"] == {1e-4, 0.5e-4}
    assert all(row["lr"] <= 1e-4 for row in rows(run)[2:])
