"""Fine-tune a model on local ranks: checks, torchrun and its result."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from finetune.sft.finetune_run import FinetuneRun
from finetune.sft.heard import ROW
from pretrain.launch import training_lock
from pretrain.launch.launch import StageResult, join_stage, train_run
from pretrain.launch.nodes import Nodes
from pretrain.launch.torchrun import ALONE
from pretrain.progress import describe_step

RANK = "finetune.sft.run"


def finetune_model(
    run: FinetuneRun, nproc: int = 1, port: int = 0, restart: bool = False, nodes: Nodes = ALONE
) -> StageResult:
    """Fine-tune into run.out, going on from the newest checkpoint there; arguments as of `train_run`.

    Writes adapter/ (PEFT; not of all weights), model/ (merged), metrics.jsonl, state.json and samples/step-N.
    """
    return train_run(
        run, nproc=nproc, port=port, restart=restart, nodes=nodes, module=RANK, describe=describe
    )


def join_finetuning(out: Path, nproc: int, nodes: Nodes, steps: int) -> StageResult:
    """Run this node's ranks of the fine-tuning that node 0 makes into `out`, a folder that both see."""
    return join_stage(out, nproc, nodes, steps, RANK)


def describe(row: Mapping[str, Any]) -> str:
    """Losses, speed, and how much of the clips' sound was trained on."""
    return f"{describe_step(row)}, {row.get(f'{ROW}/clips', 0.0):.0f} s of the clips' sound so far"


def alone(out: Path) -> AbstractContextManager[None]:
    """Hold the folder of a fine-tuning. Raises ValueError where another one has it."""
    return training_lock.alone(out, "fine-tuning", "--to")
