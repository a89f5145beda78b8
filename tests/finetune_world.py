"""A tiny model and two encoded sets to fine-tune on, and the ranks that do it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from model_cases import debug_model
from rank_processes import run_processes
from titan_world import write_latents

from finetune.lora import LoraConfig
from finetune.sft.config import BASE, CLIPS, STAGE, FinetuneConfig
from finetune.sft.finetune_run import FinetuneRun
from pretrain.launch.stage_run import check_run_folder
from pretrain.model.checkpoint import write_model
from pretrain.model.flavors import flavor
from pretrain.recipe import CheckpointConfig


def write_world(folder: Path, side: int = 2) -> Path:
    """base/ (a random debug model with an average of its own), clips/ and base_set/ of 16 clips each."""
    weights: Any = {"model": debug_model(seed=1).state_dict(), "ema": debug_model().state_dict()}
    write_model(
        folder / "base", "debug", flavor("debug"), weights, {"codec_id": "test-codec", "ema_updates": 9}
    )
    write_latents(folder / "own", side)
    write_latents(folder / "theirs", side)
    return folder


def config(steps: int = 6, interval: int = 2, **changes: Any) -> FinetuneConfig:
    """fp32, LoRA of rank 3, global batch 4, synchronous saves."""
    fields: dict[str, Any] = {
        "steps": steps,
        "lr": 3e-3,
        "warmup_steps": 2,
        "lora": LoraConfig(rank=3, alpha=6.0),
        "global_batch_size": 4,
        "mixed_precision": "fp32",
        "log_every": 1,
        "clips_every": 0,
        "checkpoint": CheckpointConfig(interval=interval, asynchronous=False),
        **changes,
    }
    return dataclasses.replace(FinetuneConfig(), **fields)


def finetune_run(world: Path, out: Path, tuned: FinetuneConfig, **changes: Any) -> FinetuneRun:
    base = {BASE: 1.0} if tuned.base_share else {}
    places = {CLIPS: str(world / "own" / "paired"), BASE: str(world / "theirs" / "paired")}
    run = FinetuneRun(
        config=tuned.as_pretraining("debug", base),
        stage=STAGE,
        latents=world,
        places=places,
        out=out,
        codec_id="test-codec",
        init_from=world / "base",
        finetune=tuned,
        **changes,
    )
    check_run_folder(run)
    run.save()
    return run


def run_ranks(run: FinetuneRun, world_size: int = 1, mishap: str = "") -> list[int]:
    """Exit codes; mishaps as of `titan_ranks`."""
    return run_processes(_rank, world_size, run.out, run.save(), mishap)


def _rank(rank: int, resolved: Path, mishap: str) -> int:
    from titan_ranks import _arrange

    from finetune.sft import run

    if mishap:
        _arrange(mishap, rank)
    return run.main(resolved)
