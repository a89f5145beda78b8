"""Kills processes of a generation at random until it has been killed often enough, and compares the clips.

    python tests/generation_kills.py MODEL CODEC PROMPTS --mode one|ranks|ray [--kills 30] [--limit 200]

Each attempt is the same call of `pretrain.generate.generate` in a process forked from this one, which has
imported everything (`--with-command`: `nava generate` itself, which takes longer to start). In the end every
clip is there once, its latents and files byte for byte those of an undisturbed run, the index is complete and
nothing of the work is left. Exit code 1 if not.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

import psutil

from orchestration.config import RayConfig, Workers
from orchestration.generation import on_ray
from pretrain.generate import HERE, generate
from pretrain.generation.config import GenerateConfig
from pretrain.generation.ranks import on_ranks

REPOSITORY = Path(__file__).resolve().parents[1]
MODES = {
    "one": [],
    "ranks": ["--nproc", "2"],
    "ray": ["--ray", "--set", "ray.rollout.workers=2", "--set", "ray.rollout.num_cpus=1"],
}
KINDS = {
    "rank": "pretrain.generation.worker",
    "actor": "ray::ClipWorker",
    "raylet": "raylet/raylet",
    "gcs": "gcs_server",
}
PATIENCE_S = 900.0


class Attempt(Protocol):
    """A process that may be asked how it ended."""

    @property
    def pid(self) -> int: ...
    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...


class Forked:
    """A call in a fork of this process, with the face of a subprocess."""

    def __init__(self, work: Path, call: Callable[[], None]) -> None:
        def run() -> None:
            os.chdir(work)
            said = os.open(work / "said.txt", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.dup2(said, 1)
            os.dup2(said, 2)
            call()

        self.process = multiprocessing.get_context("fork").Process(target=run)
        self.process.start()

    @property
    def pid(self) -> int:
        return self.process.pid or 0

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self.process.join(timeout)
        return -9 if self.process.exitcode is None else self.process.exitcode


@dataclass
class Killed:
    """A call that is killed while kills are left. killed: kinds of the processes, in order."""

    start: Callable[[], Attempt]
    work: Path
    out: Path
    kills: int
    draw: random.Random
    most_clips: int = 8  # between two kills
    killed: list[str] = field(default_factory=list)
    attempts: int = 0

    def finish(self) -> None:
        code = -1
        while code != 0:
            self.attempts += 1
            undisturbed = len(self.killed) >= self.kills
            code = self._attempt()
            if code > 0 and undisturbed:
                raise RuntimeError(f"exit code {code}: {(self.work / 'said.txt').read_text()[-3000:]}")

    def _attempt(self) -> int:
        job = self.start()
        end = time.monotonic() + PATIENCE_S
        while job.poll() is None and len(self.killed) < self.kills:
            self._wait(job, end)
            if job.poll() is None:
                self._kill_one(job)
        return job.wait(PATIENCE_S)

    def _wait(self, job: Attempt, end: float) -> None:
        """Until some more clips are there, or, now and then, for some seconds only."""
        wanted = self._clips() + self.draw.randint(0, self.most_clips)
        until = time.monotonic() + self.draw.uniform(0.0, 12.0) if self.draw.random() < 0.25 else end
        while job.poll() is None and self._clips() <= wanted and time.monotonic() < until:
            time.sleep(0.02)

    def _clips(self) -> int:
        with suppress(OSError):
            return sum(1 for _ in (self.out / ".nava-parts" / "rows").iterdir())
        return 0

    def _kill_one(self, job: Attempt) -> None:
        victims: list[tuple[str, psutil.Process]] = []
        with suppress(psutil.Error):
            driver = psutil.Process(job.pid)
            victims = [("command", driver)]
            victims += [(_kind(one), one) for one in driver.children(recursive=True)]
        if not victims:
            return
        kind = self.draw.choice(sorted({kind for kind, _ in victims}))
        name, process = self.draw.choice([one for one in victims if one[0] == kind])
        with suppress(psutil.Error):
            process.kill()
            self.killed.append(name)


def _kind(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        words = " ".join(process.cmdline())
        return next((kind for kind, sign in KINDS.items() if sign in words), "helper")
    return "helper"


def make(mode: str, model: str, codec: str, prompts: str, to: str, limit: int, batch: int) -> None:
    """One attempt."""
    config = GenerateConfig(batch_size=batch, threads=1, keep_latents=True)
    ray = RayConfig(rollout=Workers(workers=2, num_cpus=1))
    spread = {"one": HERE, "ranks": on_ranks(2), "ray": on_ray(ray)}[mode]
    generate(config, Path(model), Path(codec), Path(prompts), Path(to), limit, spread=spread)


def started(given: argparse.Namespace, work: Path, mode: str, to: str) -> Attempt:
    """An attempt at work/TO."""
    files = [str(path.absolute()) for path in (given.model, given.codec, given.prompts)]
    if not given.with_command:
        return Forked(work, partial(make, mode, *files, to, given.limit, given.batch))
    command = [sys.executable, "-m", "experiments.cli", "generate", files[2], "--model", files[0]]
    command += ["--codec", files[1], "--limit", str(given.limit), "--to", to, *MODES[mode]]
    for setting in (f"batch_size={given.batch}", "threads=1", "keep_latents=true"):
        command += ["--set", f"generate.{setting}"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "CUDA_VISIBLE_DEVICES": ""}
    with (work / "said.txt").open("ab") as said:
        return subprocess.Popen(
            command, cwd=work, env=environment, stdin=subprocess.DEVNULL, stdout=said, stderr=said
        )


def problems(clean: Path, killed: Path) -> list[str]:
    """How the clips differ; none where every one is there once and the same."""
    found = [json.loads(line)["data_id"] for line in (killed / "index.jsonl").read_text().splitlines()]
    wanted = [json.loads(line)["data_id"] for line in (clean / "index.jsonl").read_text().splitlines()]
    wrong = [] if found == wanted else [f"the index has {len(found)} rows, {len(wanted)} are wanted"]
    names = {path.name for path in clean.iterdir()}
    there = {path.name for path in killed.iterdir()}
    wrong += [f"{name} is missing" for name in sorted(names - there)]
    wrong += [f"{name} is left over" for name in sorted(there - names)]
    same = (name for name in sorted(names & there) if name != ".nava-output.json")
    return wrong + [f"{n} differs" for n in same if (clean / n).read_bytes() != (killed / n).read_bytes()]


def run(given: argparse.Namespace, work: Path) -> Killed:
    """Make work/clean (unless it is there) and work/MODE, which is killed. Raises AssertionError."""
    mode, clean = given.mode, work / "clean"
    if started(given, work, "one", "clean").wait(PATIENCE_S):
        raise RuntimeError((work / "said.txt").read_text()[-3000:])
    start, draw = partial(started, given, work, mode, mode), random.Random(given.seed)
    job = Killed(start, work, work / mode, given.kills, draw)
    job.finish()
    assert problems(clean, work / mode) == []
    return job


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for name in ("model", "codec", "prompts"):
        made.add_argument(name, type=Path)
    made.add_argument("--mode", choices=MODES, default="one")
    made.add_argument("--kills", type=int, default=30)
    made.add_argument("--limit", type=int, default=200)
    made.add_argument("--batch", type=int, default=4)
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--work", type=Path)
    made.add_argument("--with-command", action="store_true")
    return made


def main() -> int:
    given = parser().parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = given.work or Path(folder)
        work.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        job = run(given, work)
        print(
            f"{given.mode}: {given.limit} clips, {len(job.killed)} kills {dict(Counter(job.killed))}, "
            f"{job.attempts} attempts, {time.monotonic() - began:.0f} s: every clip once, all files equal"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
