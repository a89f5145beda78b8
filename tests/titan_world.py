"""A tiny encoded corpus and short stages for the trainer's tests."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from pretrain.data.encoding.writer import LatentWriter
from pretrain.data.stream.sample import Sample
from pretrain.launch.stage_run import StageRun, check_run_folder
from pretrain.recipe import CheckpointConfig, PretrainConfig
from pretrain.schedule import StageConfig

JOINT_AND_AUDIO = {"T2A": 1.0, "T2AV": 0.6, "TI2AV": 0.4, "T2V": 0.5}


def write_latents(folder: Path, side: int = 2) -> Path:
    """audio_only: 12 sounds. paired: 16 clips of two lengths, some of two speakers."""
    for name in ("audio_only", "paired"):
        with LatentWriter(folder / name, codec_id="test-codec") as writer:
            for index in range(12 if name == "audio_only" else 16):
                generator = torch.Generator().manual_seed(index)
                frames, tokens = (2, 6) if index % 4 else (3, 9)
                spans = 1 + index % 2
                writer.add(
                    Sample(
                        f"{name}-{index}",
                        torch.randn(48, frames, side, side, generator=generator)
                        if name == "paired"
                        else None,
                        torch.randn(128, tokens, generator=generator),
                        6.0,
                        torch.randn(6 + index % 3, 256, generator=generator),
                        torch.arange(spans),
                        torch.randn(spans, 192, generator=generator),
                    )
                )
    return folder


def config(
    steps: int = 6, tasks: dict[str, float] | None = None, interval: int = 2, **changes
) -> PretrainConfig:
    """fp32, debug flavor, global batch 4, synchronous saves."""
    stage = StageConfig(name="stage1", steps=steps, tasks=tasks or JOINT_AND_AUDIO, warmup_steps=2, lr=1e-3)
    fields = {
        "flavor": "debug",
        "stages": {"stage1": stage},
        "global_batch_size": 4,
        "mixed_precision": "fp32",
        "log_every": 1,
        "checkpoint": CheckpointConfig(interval=interval, asynchronous=False),
        **changes,
    }
    return dataclasses.replace(PretrainConfig(), **fields)


def stage_run(out: Path, latents: Path, recipe: PretrainConfig, **changes) -> StageRun:
    run = StageRun(config=recipe, stage="stage1", latents=latents, out=out, **changes)
    check_run_folder(run)
    run.save()
    return run


def pretend_state(out: Path, step: int) -> None:
    """What a complete checkpoint looks like from outside."""
    folder = out / "checkpoint" / f"step-{step}"
    folder.mkdir(parents=True)
    (folder / ".metadata").write_text("")


def command(run: StageRun, nproc: int) -> tuple[list[str], dict[str, str]]:
    """torchrun's command line and environment for a run on one thread per rank."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={nproc}"]
    return [*launcher, "-m", "pretrain.titan.run", str(run.out / "resolved.json")], {
        **os.environ,
        "OMP_NUM_THREADS": "1",
    }


def torchrun(run: StageRun, nproc: int = 1) -> subprocess.CompletedProcess[str]:
    arguments, environment = command(run, nproc)
    return subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=120)


def rows(run: StageRun) -> list[dict]:
    return [json.loads(line) for line in (run.out / "metrics.jsonl").read_text().splitlines()]
