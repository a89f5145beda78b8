"""Simulates rank 0 of many: `python -m pretrain.titan.dry_run resolved.json GPUS` takes one step.

Collectives are simulated by torch's fake process group: a gather repeats this rank's shard, a reduction is a
no-op, so values are meaningless; the run checks building, sharding, gathering, reducing, clipping, stepping
and averaging at these sizes.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torchtitan.distributed.utils import init_fake_mode

from pretrain.data.stream.collate import num_tokens
from pretrain.data.stream.loader import SampleSet
from pretrain.data.stream.sample import Sample
from pretrain.files import write_json
from pretrain.launch.stage_run import StageRun
from pretrain.model.flavors import flavor
from pretrain.titan.ema import local_shard
from pretrain.titan.moments import state_tensors
from pretrain.titan.trainer import PretrainTrainer

RESULT, SET = "dry_run.json", "dry"
_GIB = 2**30


class RehearsingTrainer(PretrainTrainer):
    """Trainer with torchtitan's sharded initialisation and a step policy that takes every step."""

    def first_weights(self) -> None: ...

    def take_every_step(self) -> None:
        self.guard.take = lambda loss, grad_norm, step: True  # type: ignore[method-assign]


def tiny_clip(run: StageRun) -> Sample:
    """5 frames of 64x64 with their sound, and a text."""
    args, generator = flavor(run.config.flavor), torch.Generator().manual_seed(0)
    return Sample(
        "clip",
        torch.randn(48, 2, 4, 4, generator=generator),
        torch.randn(128, 5, generator=generator),
        6.0,
        torch.randn(8, args.text_width, generator=generator),
        torch.tensor([1]),
        torch.randn(1, 192, generator=generator),
    )


def rehearse_step(run: StageRun, gpus: int) -> dict[str, Any]:
    """Sizes of rank 0's shards, seconds of each part, and the peak of this process's memory."""
    started = time.perf_counter()
    init_fake_mode(gpus)
    rows: list[dict[str, Any]] = []
    _print(f"building {run.config.flavor} and rank 0's shards of {gpus}")
    trainer = RehearsingTrainer(
        run, {SET: SampleSet(SET, [tiny_clip(run)])}, lambda metrics, step: rows.append(metrics)
    )
    trainer.take_every_step()
    for module in trainer.model.modules():
        if isinstance(module, FSDPModule) and module is not trainer.model:
            # as on a GPU: with the default the whole model would not fit
            module.set_reshard_after_forward(run.config.parallel.reshard_after_forward)
    built = time.perf_counter()
    assert trainer.dataloader is not None
    batches = list(_first(trainer, 1))
    _print(f"built in {built - started:.0f} s; one step")
    trainer.step = 1
    trainer.train_step(iter(batches))
    ended = time.perf_counter()
    states = [state for optimizer in trainer.optimizers for state in optimizer.state.values()]
    parameters = dict(trainer.model.named_parameters())
    return {
        "ranks": gpus,
        "tokens": sum(num_tokens(batch) for batch, _ in batches),
        "parameters_whole": sum(value.numel() for value in parameters.values()),
        "parameters_here": sum(local_shard(value).numel() for value in parameters.values()),
        "shard_gib": {
            "parameters": _gib(parameters.values()),
            "gradients": _gib(value.grad for value in parameters.values() if value.grad is not None),
            "optimizer": _gib(each for optimizer in trainer.optimizers for each in state_tensors(optimizer)),
            "ema": _gib(trainer.ema.weights.values()),
        },
        "tensors": len(parameters),
        "tensors_with_gradient": sum(value.grad is not None for value in parameters.values()),
        "tensors_stepped": sum(int(state["step"]) == 1 for state in states),
        "ema_updates": trainer.ema.updates,
        "rows_logged": len(rows),
        "seconds": {
            "build": round(built - started, 1),
            "step": round(ended - built, 1),
            "total": round(ended - started, 1),
        },
        "peak_rss_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "left_out": "numbers (collectives are pretended), compiled blocks, the GPU's kernels and memory, "
        "saving and loading",
    }


def _first(trainer: RehearsingTrainer, count: int) -> Iterable[Any]:
    assert trainer.dataloader is not None
    batches = trainer.batch_generator(trainer.dataloader)
    return (next(batches) for _ in range(count * trainer.gradient_accumulation_steps))


def _gib(tensors: Iterable[Tensor]) -> float:
    return round(sum(local_shard(tensor).numel() * tensor.element_size() for tensor in tensors) / _GIB, 4)


def _print(words: str) -> None:
    print(f"dry run: {words}", file=sys.stderr, flush=True)


def main(resolved: Path, gpus: int) -> int:
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE=str(gpus))
    run = StageRun.load(resolved)
    write_json(run.out / RESULT, rehearse_step(run, gpus))
    return 0


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
