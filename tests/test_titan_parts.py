"""Parts of the trainer that need no ranks."""

import dataclasses
import errno
import json
import math
from contextlib import nullcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from titan_world import config, pretend_state, write_latents
from torch import nn

from pretrain.config import from_json, to_json
from pretrain.launch.stage_run import StageRun, check_parent, check_run_folder
from pretrain.recipe import PretrainConfig, StepPolicy, recipe_hash
from pretrain.schedule import StageConfig
from pretrain.titan.checkpoints import complete_steps, remove_incomplete, retain, save_error
from pretrain.titan.ema import Ema
from pretrain.titan.policy import StepGuard
from pretrain.titan.train_spec import Optimizer, ParallelDims, build_complete_optimizers
from pretrain.titan.weights import check_finite


def checkpoints(folder, steps, unfinished=()):
    for step in (*steps, *unfinished):
        (folder / f"step-{step}").mkdir(parents=True)
        (folder / f"step-{step}" / "__0_0.distcp").write_text("x")
    for step in steps:
        (folder / f"step-{step}" / ".metadata").write_text("x")


@given(st.sets(st.integers(1, 60)), st.integers(1, 5), st.sampled_from([0, 3, 10]))
@settings(max_examples=25, deadline=None)
def test_retention_rule(tmp_path_factory, steps, keep_last, keep_every):
    folder = tmp_path_factory.mktemp("checkpoint")
    checkpoints(folder, steps, unfinished={1000})
    kept = retain(folder, keep_last, keep_every)
    newest = sorted(steps)[-keep_last:]
    assert (
        kept
        == complete_steps(folder)
        == sorted(step for step in steps if step in newest or (keep_every and step % keep_every == 0))
    )
    assert (folder / "step-1000").is_dir()


def test_unfinished_folders_are_removed_and_finished_ones_stay(tmp_path):
    checkpoints(tmp_path, [2, 4], unfinished=[6])
    assert remove_incomplete(tmp_path) == [6]
    assert complete_steps(tmp_path) == [2, 4]


def test_full_disk_line_names_the_folder_and_what_is_good(tmp_path):
    checkpoints(tmp_path, [4])
    try:
        raise RuntimeError("writer thread") from OSError(errno.ENOSPC, "No space left on device")
    except RuntimeError as error:
        line = str(save_error(error, tmp_path))
    assert (
        str(tmp_path) in line and "disk is full" in line and "step 4 is intact" in line and "\n" not in line
    )
    assert "disk is full" not in str(save_error(RuntimeError("other"), tmp_path))


def test_guard_skips_nonfinite_and_spikes_and_stops():
    guard = StepGuard(StepPolicy(max_skips_in_a_row=2, spike_factor=5.0, spike_window=4))
    assert all(
        guard.take(1.0, norm, step) for step, norm in enumerate([1.0, 1.1, 100.0, 1.0])
    )  # no window yet: no spike
    assert not guard.take(1.0, 40.0, 4)
    assert guard.take(1.0, 2.0, 5)
    assert not guard.take(float("nan"), 1.0, 6)
    assert not guard.take(1.0, float("inf"), 7)
    assert (guard.skipped_spikes, guard.skipped_nonfinite) == (1, 2)
    resumed = StepGuard(guard.policy)
    resumed.load_state_dict(json.loads(json.dumps(guard.state_dict())))
    with pytest.raises(ValueError, match="step 8: 3 steps in a row skipped"):
        resumed.take(1.0, float("nan"), 8)


@pytest.mark.parametrize(
    ("steps", "refused"),
    [
        ([(1.0, 1.0), (math.nan, 1.0)], True),
        ([(1.0, 1.0), (1.0, math.inf)], True),
        ([(math.nan, 1.0), (1.0, 1.0)], False),
        ([(1.0, 1.0)] * 4 + [(1.0, 90.0)], False),  # one spike left out harms nothing
        ([(1.0, 1.0)] * 4 + [(1.0, 90.0)] * 2, True),
    ],
)
def test_a_stage_does_not_end_on_steps_that_were_skipped(steps, refused):
    guard = StepGuard(StepPolicy(max_skips_in_a_row=9, spike_factor=5.0, spike_window=4))
    for number, (loss, norm) in enumerate(steps, start=1):
        guard.take(loss, norm, number)
    with pytest.raises(ValueError, match="not exported") if refused else nullcontext():
        guard.check_end(len(steps))


@pytest.mark.parametrize("averaged", [False, True])
def test_weights_that_are_not_finite_are_not_exported(averaged):
    model = nn.Linear(2, 2)
    ema = Ema(model, decay=0.5)
    check_finite(model, ema)
    with torch.no_grad():
        (ema.weights["bias"] if averaged else model.bias)[0] = math.inf
    with pytest.raises(ValueError, match=r"1 of 4 weights are NaN or infinite"):
        check_finite(model, ema)


def test_ema_warms_up_and_swaps():
    model = nn.Linear(2, 2)
    ema = Ema(model, decay=0.5)
    first = model.weight.detach().clone()
    with torch.no_grad():
        model.weight += 1
    ema.update()  # decay (1 + 0) / (10 + 0)
    torch.testing.assert_close(ema.weights["weight"], first + 0.9)
    with ema.swapped_in():
        torch.testing.assert_close(model.weight.detach(), first + 0.9)
    torch.testing.assert_close(model.weight.detach(), first + 1)
    for _ in range(20):
        ema.update()
    assert ema.updates == 21


def test_optimizer_state_is_complete_before_the_first_gradient():
    model = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
    before = [parameter.detach().clone() for parameter in model.parameters()]
    job = Optimizer(
        name="AdamW", lr=0.1, beta1=0.9, beta2=0.99, eps=1e-8, weight_decay=0.1, implementation="fused"
    )
    one = ParallelDims(dp_replicate=1, dp_shard=1, cp=1, tp=1, pp=1, ep=1, etp=1, world_size=1)
    optimizers = build_complete_optimizers([model], job, one)
    (optimizer,) = optimizers
    assert len(optimizer.state) == 4 and all(float(state["step"]) == 0 for state in optimizer.state.values())
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert optimizer.param_groups[0]["lr"] == 0.1
    copies = [parameter.detach().clone().requires_grad_() for parameter in model.parameters()]
    reference = torch.optim.AdamW(copies, 0.1, (0.9, 0.99), 1e-8, 0.1)
    for parameter, other in zip(model.parameters(), reference.param_groups[0]["params"], strict=True):
        parameter.grad = torch.ones_like(parameter)
        other.grad = torch.ones_like(other)
    optimizers.step()
    reference.step()
    for parameter, other in zip(model.parameters(), reference.param_groups[0]["params"], strict=True):
        torch.testing.assert_close(parameter, other)


def test_recipe_survives_json_and_refuses_other_fields():
    recipe = config(steps=3)
    values = json.loads(json.dumps(to_json(recipe)))
    assert from_json(PretrainConfig, values) == recipe
    with pytest.raises(ValueError, match="surprise"):
        from_json(PretrainConfig, {**values, "surprise": 1})
    assert recipe_hash(recipe, "stage1") == recipe_hash(dataclasses.replace(recipe, log_every=7), "stage1")
    assert recipe_hash(recipe, "stage1") != recipe_hash(dataclasses.replace(recipe, seed=7), "stage1")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mixed_precision": "fp16"}, "mixed_precision"),
        ({"stages": {"stage2": StageConfig(name="stage1")}}, "stages.stage2.name"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"global_batch_size": 0}, "global_batch_size"),
    ],
)
def test_unusable_recipe(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(PretrainConfig(), **changes)


def test_run_folder_refuses_another_flavor_recipe_and_data(tmp_path):
    latents = write_latents(tmp_path / "latents")
    run = StageRun(config=config(), stage="stage1", latents=latents, out=tmp_path / "run")
    check_run_folder(run)
    check_run_folder(run)
    pretend_state(run.out, 2)
    check_run_folder(run)
    with pytest.raises(ValueError, match="flavor debug, asked for mini"):
        check_run_folder(dataclasses.replace(run, config=dataclasses.replace(run.config, flavor="mini")))
    with pytest.raises(ValueError, match=r"other inputs or settings \(seed 0, asked for 3\)"):
        check_run_folder(dataclasses.replace(run, config=dataclasses.replace(run.config, seed=3)))
    with pytest.raises(ValueError, match=r"inputs\.codec nothing, asked for other"):
        check_run_folder(dataclasses.replace(run, codec_id="other"))


def test_parent_of_another_flavor_is_refused_before_training(tmp_path):
    parent = tmp_path / "model"
    run = StageRun(config=config(), stage="stage1", latents=tmp_path, out=tmp_path / "run", init_from=parent)
    with pytest.raises(FileNotFoundError, match="not found; give the model"):
        check_parent(run)
    parent.mkdir()
    identity = dataclasses.replace(run, init_from=None).identity()
    (parent / "config.json").write_text(json.dumps({**identity, "checkpoint_id": "x", "flavor": "mini"}))
    with pytest.raises(ValueError, match="flavor is 'mini' instead of 'debug'"):
        check_parent(run)
    (parent / "config.json").write_text(
        json.dumps({**identity, "checkpoint_id": "x", "args": {**identity["args"], "width": 64}})
    )
    with pytest.raises(ValueError, match="width 64 instead of 32"):
        check_parent(run)
