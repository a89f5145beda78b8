"""Ours against diffusers' transformers at one block of nava_6b: `experiments.benchmarks.peers`, in bf16."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Iterator

import torch
from torch.utils._triton import has_triton

from experiments.benchmarks.gpu_parts.finding import Figures, NotHere
from experiments.benchmarks.gpu_parts.sizes import PartSize
from experiments.benchmarks.peers.measure import compare


def race_of(sound: bool, compiled: bool, size: PartSize, device: torch.device) -> Iterator[Figures]:
    """Training and generation steps, round by round. Raises NotHere where nothing compiles."""
    if compiled:
        _check_compiler(device)
    warnings.filterwarnings("ignore")
    shape = size.races[sound]
    found = compare(shape, torch.bfloat16, device, size.race_s, compiled, size.matmul_sides)
    training, generation = (found[name]["times_as_fast"] for name in ("training", "generation"))
    words = (
        f"training {training['ratio']:.2f} ({training['low']:.2f} to {training['high']:.2f}), generation "
        f"{generation['ratio']:.2f} ({generation['low']:.2f} to {generation['high']:.2f}) times as fast as "
        f"{found['peer']}; {found['share_of_ceiling']:.0%} of the peak"
    )
    yield Figures(shape.name, found, words)


def _check_compiler(device: torch.device) -> None:
    if device.type == "cpu":
        if not shutil.which(os.environ.get("CXX", "g++")):
            raise NotHere("torch.compile needs a C++ compiler on a CPU: install g++ or set CXX")
    elif not has_triton():
        raise NotHere("torch.compile needs Triton on a GPU, and this machine's does not run")
