"""Trainings of a minute with two ranks, and SIGKILL to any of the processes that belong to them."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from align_world import config as align_config
from own_alignment import arguments, row, rubric, write_inputs
from own_alignment import prompts as write_prompts
from pipeline_repository import senders_of
from services import Service, clean_environment
from titan_world import config, write_latents

from experiments.recipes.base import Recipe
from finetune.recipe import RubricConfig
from pretrain.recipe import CheckpointConfig

HERE = Path(__file__).parent
STEPS, ROUNDS = 60, 6
KEPT = 10_000  # checkpoints: nothing may go
RANKS = {"pretrain.titan.run", "finetune.run"}
AFTER_S = (0.0, 7.0)  # between two kills
STARTED_SHARE = 0.8  # of the attempts in which nothing is killed before the ranks are there


def pretraining() -> Recipe:
    """`kill_world.pretraining`: a checkpoint every two steps, in the background as by default."""
    recipe = config(steps=STEPS, interval=2)
    checkpoint = CheckpointConfig(interval=2, keep_last=KEPT)
    return Recipe(name="killed", pretrain=dataclasses.replace(recipe, checkpoint=checkpoint))


def alignment() -> Recipe:
    """`kill_world.alignment`: a checkpoint every round."""
    phase = {"rounds": ROUNDS, "prompts_per_round": 2, "clips_per_prompt": 4, "epochs": 1}
    align = align_config(phase=phase, num_frames=5, keep_last=KEPT)
    align = dataclasses.replace(align, rubric=RubricConfig(audio={"snr_estimate_db": 1.0}))
    return Recipe(
        name="killed", align=dataclasses.replace(align, stop=dataclasses.replace(align.stop, every=2))
    )


def write_world(folder: Path) -> dict[str, list[str]]:
    """Inputs in a folder; arguments of `nava` by the folder that they make."""
    write_latents(folder / "latents")
    inputs = write_inputs(folder / "inputs")
    write_prompts(inputs / "prompts.jsonl", [row(f"t{n}", "one", num_frames=5) for n in range(4)])
    write_prompts(inputs / "held_out.jsonl", [row(f"h{n}", "two", num_frames=5) for n in range(2)])
    items = {"snr_estimate_db": {"weight": 1.0}}
    rubric(inputs / "rubric.yaml", {"items": items, "allow_prompt_blind": True})
    given = arguments(inputs, Path("align"), out="out", nproc="2")
    given[1] = "kill_world.alignment"
    pretrain = ["pretrain", "kill_world.pretraining", "--stage", "stage1", "--nproc", "2"]
    latents = ["--set", f"pretrain.latents={folder / 'latents'}"]
    return {"out/pretrain/stage1": [*pretrain, *latents], "align": [*given, "--no-report"]}


def environment(uri: str) -> dict[str, str]:
    path = os.pathsep.join([str(HERE), clean_environment()["PYTHONPATH"]])
    fast = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}
    return clean_environment(PYTHONPATH=path, CUDA_VISIBLE_DEVICES="", MLFLOW_TRACKING_URI=uri, **fast)


def start(work: Path, arguments: Sequence[str], uri: str) -> subprocess.Popen[bytes]:
    """`nava` in the background; what it prints is in work/said.txt."""
    with (work / "said.txt").open("ab") as said:
        command = [sys.executable, "-m", "experiments.cli", *arguments]
        given = environment(uri)
        return subprocess.Popen(
            command, cwd=work, env=given, stdin=subprocess.DEVNULL, stdout=said, stderr=said
        )


def run(work: Path, arguments: Sequence[str], uri: str) -> int:
    return start(work, arguments, uri).wait(400)


@dataclass
class Killer:
    """Kills processes of a training in `work`, its sender or the server, and starts the server again.

    killed: what was killed, in order; lost: what was there before a kill or a restart and is gone after it.
    """

    work: Path
    output: Path
    draw: random.Random
    server: Service
    left: int
    killed: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    seen: dict[str, int] = field(default_factory=dict)
    attempts: int = 0

    def finish(self, arguments: Sequence[str]) -> None:
        """Run the command until it ends well, killing as long as kills are left."""
        code = -1
        while code != 0:
            self.attempts += 1
            job = start(self.work, arguments, self.server.url)
            if self.draw.random() < STARTED_SHARE:
                self.wait_for_ranks(job)
            while job.poll() is None and self.left > 0:
                with suppress(subprocess.TimeoutExpired):
                    job.wait(self.draw.uniform(*AFTER_S))
                if job.poll() is None:
                    self.kill_one(job)
            code = job.wait(400)
            self.look()

    def wait_for_ranks(self, job: subprocess.Popen[bytes]) -> None:
        """Wait until the training has ranks, which takes most of the time of an attempt."""
        while job.poll() is None and self.left > 0 and "rank" not in self.victims(job):
            time.sleep(0.2)

    def victims(self, job: subprocess.Popen[bytes]) -> Mapping[str, list[psutil.Process]]:
        """Processes by kind; `machine` is all of the training and its sender at once."""
        found: dict[str, list[psutil.Process]] = {}
        tree: list[psutil.Process] = []
        with suppress(psutil.NoSuchProcess):
            launcher = psutil.Process(job.pid)
            tree = [launcher, *launcher.children(recursive=True)]
            found["launcher"] = [launcher]
        for process in tree[1:]:
            with suppress(psutil.Error):
                words = set(process.cmdline())
                kind = "torchrun" if "torch.distributed.run" in words else "rank" if words & RANKS else ""
                found.setdefault(kind, []).append(process)
        found.pop("", None)
        senders = senders_of(self.work)
        found["sender"] = senders
        found["server"] = self.server.processes()
        found["machine"] = [*tree, *senders] if "rank" in found else []
        return {kind: processes for kind, processes in found.items() if processes}

    def kill_one(self, job: subprocess.Popen[bytes]) -> None:
        self.look()
        victims = self.victims(job)
        kind = self.draw.choice(sorted(victims))
        chosen = victims[kind] if kind == "machine" else [self.draw.choice(victims[kind])]
        for process in chosen:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.killed.append(kind)
        self.left -= 1
        if kind == "server":
            self.server.kill()
            self.server.launch()
        self.look()

    def look(self) -> None:
        """Compare the finished checkpoints, models and rows with those that were there."""
        now = kept_files(self.output)
        self.lost += [name for name in self.seen if name not in now]
        self.seen |= now


def kept_files(output: Path) -> dict[str, int]:
    """Path -> size of the files that no kill and no restart may take away."""
    steps = [path.parent for path in (output / "checkpoint").glob("*/.metadata")]
    folders = [*steps, output / "model", output / "adapter"]
    found = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
    found += [path for path in (output / "metrics.jsonl", output / "run.json") if path.is_file()]
    return {str(path.relative_to(output)): path.stat().st_size for path in found}


def rows(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
