"""Entry point of each torchrun rank: `python -m finetune.sft.run out/finetune/resolved.json`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from finetune.sft.finetune_run import FinetuneRun
from finetune.sft.trainer import FinetuneTrainer
from pretrain.launch.rank import begin
from pretrain.titan.run import run_rank


def main(path: Path) -> int:
    """Exit code as of `pretrain.titan.run`."""
    return run_rank(FinetuneRun.load(path), FinetuneTrainer)


if __name__ == "__main__":
    begin(Path(sys.argv[1]).parent)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    sys.exit(main(Path(sys.argv[1])))
