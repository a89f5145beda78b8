"""Whole steps of `experiments.benchmarks.full_step`, and their memory against the plan's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psutil
import torch

from experiments.benchmarks.full_step import (
    GIB,
    PARTS,
    ModelStep,
    against_plan,
    measure,
    peak_bytes_of,
    setup_of,
)
from experiments.benchmarks.gpu_parts.finding import Figures, NotHere, OutOfBounds
from experiments.benchmarks.gpu_parts.sizes import PartSize
from experiments.benchmarks.harness import peak_matmul_flops
from pretrain.model.flavors import flavor
from pretrain.model.plan_memory import memory_parts

PLAN_LIMIT = 0.1  # of what is planned


def whole_step(part: str, size: PartSize, device: torch.device) -> Iterator[Figures]:
    """One of full_step's parts. Raises NotHere where the plan says that it does not fit."""
    step = ModelStep(size.step_flavor, *size.step_clip, compiled=False, device=device)
    check_room(step, part)
    peak = peak_matmul_flops(torch.bfloat16, device, sides=size.matmul_sides)
    if device.type == "cuda":
        torch.cuda.empty_cache()  # the whole model needs the room of those matrices
    for _, found in measure(step, [part], size.repeats, peak):
        words = (
            f"{found['seconds']['low']:.4g} s, {found['share_of_ceiling']:.0%} of the peak, "
            f"{_against(found['memory'])}"
        )
        yield Figures("step", {**found, "flavor": step.flavor, "clip": list(size.step_clip)}, words)


def memory(size: PartSize, device: torch.device) -> Iterator[Figures]:
    """Peaks of a small model's steps. Raises OutOfBounds where one is not what is planned, to PLAN_LIMIT."""
    wrong = []
    for part in PARTS:
        clip, flavor_name = size.memory_clip, size.memory_flavor
        step = ModelStep(
            flavor_name,
            *clip,
            compiled=False,
            device=device,
            context_tokens=size.memory_context,
            rank=size.memory_rank,
        )
        check_room(step, part)
        with PARTS[part](step, 1) as work:
            work.take()
            peak_bytes = peak_bytes_of(work, device)
        del work
        found = against_plan(step, part, peak_bytes)
        words = f"{part}: {found['measured_over_planned']:.2f} of the plan"
        yield Figures(part, {"memory": found}, words)
        if abs(found["measured_over_planned"] - 1) > PLAN_LIMIT:
            wrong.append(f"{part}: {_against(found)}")
    if wrong:
        raise OutOfBounds(f"more than {PLAN_LIMIT:.0%} from the plan: {'; '.join(wrong)}")


def check_room(step: ModelStep, part: str) -> None:
    """Raises NotHere where the plan counts more than there is."""
    planned = sum(memory_parts(flavor(step.flavor), step.shape, setup_of(part, step)).values())
    if step.device.type == "cuda":
        there = torch.cuda.get_device_properties(step.device).total_memory
    else:
        there = psutil.virtual_memory().available
    if planned > there:
        raise NotHere(
            f"{step.flavor}: the plan counts {planned / GIB:.1f} GiB for {part}, there are {there / GIB:.1f} "
            "here; take a smaller --size"
        )


def _against(found: dict[str, Any]) -> str:
    times, planned = found["measured_over_planned"], found["planned_gib"]
    return f"{found['measured_gib']} GiB, {times:.2f} of the plan's {planned}"
