"""What one stage of the pipeline is run with."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.layout import Layout
from pretrain.launch.nodes import Nodes


@dataclass(frozen=True)
class StageJob:
    """Recipe, paths and ranks of a stage."""

    recipe: Any
    layout: Layout = field(default_factory=Layout)
    root: Path = Path()  # of the repository
    nproc: int = 0  # ranks that train; 0 = one per GPU, or two on a CPU
    port: int = 0  # of torchrun; 0 = any free one
    nodes: Nodes = field(default_factory=Nodes)
    init_from: Path | None = None  # model folder a pretraining stage starts from, not the stage before it
    anyway: bool = False  # an interrupted training goes on although settings or inputs that count differ

    @property
    def ranks(self) -> int:
        if self.nproc:
            return self.nproc
        import torch

        # two CPU ranks keep their speed where two threads would wait
        return torch.cuda.device_count() or min(2, os.cpu_count() or 1)
