"""Dry run of full-size training on one CPU: simulated ranks, real shards of one of them."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from pretrain.files import read_json
from pretrain.launch.stage_run import StageRun
from pretrain.recipe import PretrainConfig
from pretrain.schedule import StageConfig

_RESULT = "dry_run.json"


def rehearse(config: PretrainConfig, gpus: int) -> dict[str, Any]:
    """Build, shard and step `config`'s model as rank 0 of `gpus`; returns sizes, seconds and peak memory.

    Raises ValueError where the degrees do not divide the ranks, or with the last line of a failed dry run.
    """
    parallel = config.parallel
    if gpus < 1 or gpus % (parallel.replicas * parallel.context):
        raise ValueError(
            f"{gpus} gpus do not divide into {parallel.replicas} replicas x {parallel.context} context ranks"
        )
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        resolved = StageRun(config=one_step(config, gpus), stage="stage1", latents=out, out=out).save()
        log = out / "log.txt"
        command = [sys.executable, "-m", "pretrain.titan.dry_run", str(resolved), str(gpus)]
        environment = {"OMP_NUM_THREADS": str(os.cpu_count() or 1), **os.environ}
        with log.open("w") as file:
            with subprocess.Popen(
                command, stdout=file, stderr=subprocess.PIPE, text=True, env=environment
            ) as process:
                assert process.stderr is not None
                for line in process.stderr:
                    file.write(line)
                    if line.startswith("dry run: "):
                        print(line, end="", file=sys.stderr, flush=True)
            code = process.returncode
        if code or not (out / _RESULT).is_file():
            lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
            raise ValueError(
                f"the dry run ended with exit code {code}: {lines[-1] if lines else 'it said nothing'}"
            )
        return read_json(out / _RESULT, "run it again")


def one_step(config: PretrainConfig, gpus: int) -> PretrainConfig:
    """The same training, but for one step of one clip per group of context ranks, nothing compiled."""
    stage = StageConfig(
        name="stage1", steps=1, tasks={"T2AV": 1.0}, sets={"dry": 1.0}, audio_sets={}, warmup_steps=0, lr=1e-4
    )
    groups = gpus // config.parallel.context
    return replace(
        config,
        stages={"stage1": stage},
        global_batch_size=groups,
        local_batch_size=1,
        validate_every=0,
        validation_samples=0,
        checkpoint=replace(config.checkpoint, asynchronous=False),
        parallel=replace(config.parallel, compile_blocks=False),
    )
