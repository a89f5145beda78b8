"""What a stage of the pipeline is asked to do."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.layout import Layout
from pretrain.launch.nodes import Nodes


@dataclass(frozen=True)
class Job:
    """What a stage is asked to do: the recipe, where, and how many ranks train (0 = one per device, two on a
    CPU)."""

    recipe: Any
    layout: Layout = field(default_factory=Layout)
    root: Path = Path()
    nproc: int = 0
    port: int = 0  # of torchrun, 0 = any free one
    nodes: Nodes = field(default_factory=Nodes)
    init_from: Path | None = (
        None  # a model folder that a pretraining stage starts from, instead of the stage before it
    )

    @property
    def ranks(self) -> int:
        return self.nproc or _default_ranks()


def _default_ranks() -> int:
    import torch

    return torch.cuda.device_count() or min(
        2, os.cpu_count() or 1
    )  # two CPU ranks keep their speed where two threads would wait
