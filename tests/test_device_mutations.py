"""What the device tests are worth: a fault is put into real code, one at a time, and a scene must find it.

A mutation edits the source of one function; where the scene then raises, or crosses between device and
host as it is not allowed to (tests/test_device_paths.py), the fault is found.
"""

import importlib
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import device_scenes as scenes
import pytest
from test_device_paths import LEARN, NONE, STEP, Held

PACKAGES = ("pretrain.", "finetune.", "device_scenes")


class Fault(NamedTuple):
    """`old` of a function becomes `new`; the scene has these crossings without it."""

    place: str  # module:function or module:Class.method
    old: str
    new: str
    scene: Callable[[], dict[str, int]]
    held: Held


PADDED = partial(scenes.forward, "debug", "padded, one apart, first frame")
JOINT = partial(scenes.forward, "debug", "joint")
RWR = partial(scenes.learning, "rwr")
STEP_OF_ONE = partial(scenes.training_step, micro_batches=1)
FAULTS = {
    "cpu()": Fault(
        "pretrain.model.modulation:gated_add",
        "update.unflatten(1, shape).to(x.dtype)",
        "update.unflatten(1, shape).cpu().to(x)",
        JOINT,
        NONE,
    ),
    "a constant on the CPU": Fault(
        "pretrain.model.rope:_angles", ", device=positions.device", "", JOINT, NONE
    ),
    "item()": Fault(
        "pretrain.flow.guidance:guided_velocity",
        "scale_video * (full.video - other.video)",
        "scale_video * (full.video - other.video).mul(1.0).max().item()",
        partial(scenes.sampling, "euler", 1),
        NONE,
    ),
    "bool(tensor)": Fault(
        "pretrain.model.scaled_attention:scaled_attention",
        "attn_mask=mask",
        "attn_mask=None if mask is None or bool(mask.all()) else mask",
        PADDED,
        NONE,
    ),
    "a mask made on the CPU": Fault(
        "pretrain.model.attention:plan_attention", ", device=mask.device", "", PADDED, NONE
    ),
    "tolist()": Fault(
        "pretrain.objective:_squared",
        "(per_sample * weight).sum()",
        "per_sample.new_tensor(sum((per_sample * weight).tolist()))",
        STEP_OF_ONE,
        STEP,
    ),
    "numpy()": Fault(
        "finetune.noising:mean_square",
        "difference.square()",
        "torch.from_numpy(difference.detach().cpu().numpy()).to(difference).square()",
        RWR,
        LEARN,
    ),
    "torch.tensor on the CPU": Fault(
        "pretrain.model.modulation:modulated_norm",
        "groups, 1 + scale",
        "groups, torch.tensor([1.0]) + scale",
        JOINT,
        NONE,
    ),
    "nonzero()": Fault(
        "finetune.noising:metric",
        "torch.where(counted, values.detach().double(), 0.0).sum()",
        "values.detach().double()[counted.nonzero()[:, 0]].sum()",
        RWR,
        LEARN,
    ),
    "int(tensor)": Fault(
        "pretrain.model.timbre:place_timbre_tokens",
        "if positions.shape[1] == 0:",
        "if int(positions.max()) < 0:",
        JOINT,
        NONE,
    ),
    "a choice by a mask": Fault(
        "finetune.objectives.rwr:rwr_terms",
        "mean_square(velocity - target)",
        "mean_square(velocity - target)[weight == weight]",
        RWR,
        LEARN,
    ),
    "if tensor:": Fault(
        "pretrain.titan.trainer:PretrainTrainer.forward_backward_step",
        "sums.loss(",
        "assert sums.video >= 0\n        sums.loss(",
        STEP_OF_ONE,
        STEP,
    ),
    "a tensor sent in every step": Fault(
        "pretrain.sampling:streams",
        "video = Stream(",
        "sigmas = sigmas * torch.tensor([1.0], device=sigmas.device)\n        video = Stream(",
        partial(scenes.sampling, "euler", 1),
        NONE,
    ),
    "a batch left on the host": Fault(
        "pretrain.titan.trainer:PretrainTrainer._corrupted",
        "corrupted.to(self.device)",
        "corrupted",
        STEP_OF_ONE,
        STEP,
    ),
}


@contextmanager
def injected(fault: Fault) -> Iterator[None]:
    """The mutated function in the place of the original, wherever it was imported to."""
    module_name, _, path = fault.place.partition(":")
    module = importlib.import_module(module_name)
    owner: Any = module
    *classes, name = path.split(".")
    for part in classes:
        owner = getattr(owner, part)
    original = inspect.getattr_static(owner, name)
    source = textwrap.dedent(inspect.getsource(original))
    assert source.count(fault.old) == 1, f"{fault.place} has {fault.old!r} {source.count(fault.old)} times"
    made: dict[str, Any] = {}
    code = f"from __future__ import annotations\n{source.replace(fault.old, fault.new)}"
    exec(compile(code, inspect.getfile(original), "exec"), module.__dict__, made)
    holders = [owner] if classes else _holders(name, original)
    assert holders
    for holder in holders:
        setattr(holder, name, made[name])
    try:
        yield
    finally:
        for holder in holders:
            setattr(holder, name, original)


def _holders(name: str, original: Any) -> list[Any]:
    ours = [module for key, module in sys.modules.items() if key.startswith(PACKAGES)]
    return [module for module in ours if module.__dict__.get(name) is original]


def found(fault: Fault) -> str:
    """How the scene tells that something is wrong; empty if it does not."""
    allowed = {place: count for place, (count, _) in fault.held.items()}
    try:
        crossings = fault.scene()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "" if crossings == allowed else f"crossings {crossings}, allowed {allowed}"


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found(name):
    with injected(FAULTS[name]):
        assert found(FAULTS[name])


@pytest.mark.slow
@pytest.mark.parametrize("scene", {fault.scene: name for name, fault in FAULTS.items()}.values())
def test_nothing_is_found_without_one(scene):
    assert found(FAULTS[scene]) == ""
