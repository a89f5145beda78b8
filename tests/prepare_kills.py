"""SIGKILL at random moments to `nava prepare`, its worker processes or Ray's: the set stays the same.

    python tests/prepare_kills.py --kills 20 --folder SCRATCH [--ray]

A killed command is given again; one that ends before all kills are used is given for a new output. Every
finished set is compared with one that nobody disturbed, byte for byte.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from prepare_world import VOICES, ffmpeg, talk

ROOT = Path(__file__).parent.parent
WORKER = ("multiprocessing.spawn", "ray::", "default_worker.py")  # words of a worker's command line
NO_WORKER = ("Agent", "resource_tracker")
RAYLET = "raylet"
OF_DRIVER = 0.5  # share of the kills
STARTED = 0.8  # share of the starts in which nothing is killed before there are workers
LEAST_S = 4.0
AFTER = (
    0.8  # the most between two kills, in times of the last start, which other work on the machine stretches
)
PATIENCE_S = 900.0
BUSY = "run again, when the machine has less to do"  # Ray did not start in its time: the command says so


def write_videos(raw: Path, count: int = 10) -> Path:
    """Talking heads of 4 to 6 s with their transcripts, and one that is cut off."""
    raw.mkdir(parents=True)
    for number in range(count):
        video = talk(raw / f"v{number}.mp4", number, [VOICES[number % 3]], 4.0 + number % 3)
        (raw / f"v{number}.txt").write_text(" ".join(one.word for one in video.said))
    ffmpeg("-i", raw / "v0.mp4", "-t", "3", "-vf", "hflip", raw / "again.mp4")
    (raw / "broken.mp4").write_bytes((raw / "v1.mp4").read_bytes()[:20_000])
    return raw


def content_of(out: Path) -> dict[str, bytes]:
    """What must not differ: rows, clips, references and rejections."""
    files = [out / "manifest.jsonl", out / "rejected.jsonl"]
    files += [path for name in ("clips", "references", "rejected") for path in (out / name).rglob("*.*")]
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in files}


@dataclass
class Kills:
    """One preparation after the other, until `left` kills are used up."""

    raw: Path
    folder: Path
    ray: bool
    left: int
    draw: random.Random
    wanted: dict[str, bytes]
    killed: list[str] = field(default_factory=list)
    finished: int = 0
    start_s: float = LEAST_S
    temporary: str = field(default_factory=lambda: tempfile.mkdtemp(prefix="np", dir="/tmp"))

    def run(self) -> None:
        number = 0
        while self.left > 0 or not self.finished:
            out = self.folder / f"set{number}"
            self._finish(out)
            if content_of(out) != self.wanted:
                raise AssertionError(f"{out}: differs from the undisturbed set after {self.killed}")
            if partial := list(out.with_name(f".{out.name}.work").glob(".*.partial")):
                raise AssertionError(f"left behind: {partial}")
            number, self.finished = number + 1, self.finished + 1

    def _finish(self, out: Path) -> None:
        code = -1
        while code != 0:
            with (self.folder / "said.txt").open("ab") as log:
                process = subprocess.Popen(
                    command(self.raw, out, self.ray), env=self._environment(), stdout=log, stderr=log
                )
            begun_s = time.monotonic()
            if self.draw.random() < STARTED:
                while process.poll() is None and self.left > 0 and not self._workers(process):
                    time.sleep(0.2)
                self.start_s = max(LEAST_S, time.monotonic() - begun_s)
            while process.poll() is None and self.left > 0:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(self.draw.uniform(0.0, AFTER * self.start_s))
                if process.poll() is None:
                    self._kill_one(process)
            code = process.wait(PATIENCE_S)
            said = (self.folder / "said.txt").read_text()
            ended_by_us = code in (0, -9) or RAYLET in self.killed[-2:]  # a driver ends without its raylet
            if not ended_by_us and BUSY not in said[-500:]:
                raise AssertionError(f"exit code {code}: {said[-2000:]}")

    def _kill_one(self, process: subprocess.Popen[bytes]) -> None:
        below = self._workers(process)
        driver = psutil.Process(process.pid)
        victim = self.draw.choice(below) if below and self.draw.random() > OF_DRIVER else driver
        with suppress(psutil.NoSuchProcess):
            name = "driver" if victim is driver else RAYLET if victim.name() == RAYLET else "worker"
            victim.kill()
            self.killed.append(name)
            self.left -= 1
            print(f"killed {name}, {self.left} kills left, {self.finished} sets finished", flush=True)

    def _workers(self, process: subprocess.Popen[bytes]) -> list[psutil.Process]:
        try:
            below = psutil.Process(process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        return [one for one in below if is_worker(one)]

    def _environment(self) -> dict[str, str]:
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        return {**os.environ, "PYTHONPATH": path, "RAY_TMPDIR": self.temporary, "OMP_NUM_THREADS": "1"}


def is_worker(process: psutil.Process) -> bool:
    try:
        line = " ".join(process.cmdline())
    except psutil.Error:
        return False
    return any(word in line for word in WORKER) and not any(word in line for word in NO_WORKER)


def command(raw: Path, out: Path, ray: bool) -> list[str]:
    chosen = ["--set", "prepare.min_confidence=0", "--nproc", "2", *(["--ray"] if ray else [])]
    return [sys.executable, "-m", "experiments.cli", "prepare", str(raw), "--to", str(out), *chosen]


def kill_through(folder: Path, kills: int, ray: bool, seed: int = 0, videos: int = 10) -> Kills:
    """Raises AssertionError where a set differs; what was killed otherwise."""
    raw = folder / "raw" if (folder / "raw").is_dir() else write_videos(folder / "raw", videos)
    undisturbed = folder / "undisturbed"
    if not undisturbed.is_dir():
        subprocess.run([*command(raw, undisturbed, False)[:-1], "1"], check=True, stdout=subprocess.DEVNULL)
    made = Kills(raw, folder, ray, kills, random.Random(seed), content_of(undisturbed))
    try:
        made.run()
    finally:
        shutil.rmtree(made.temporary, ignore_errors=True)
    left = [
        one for one in psutil.process_iter(["cmdline"]) if str(folder) in " ".join(one.info["cmdline"] or [])
    ]
    if [one for one in left if one.pid != os.getpid()]:
        raise AssertionError(f"processes are left: {left}")
    return made


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--ray", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--videos", type=int, default=10)
    given = parser.parse_args()
    begun_s = time.monotonic()
    made = kill_through(given.folder.absolute(), given.kills, given.ray, given.seed, given.videos)
    counts = {name: made.killed.count(name) for name in ("driver", "worker")}
    seconds = time.monotonic() - begun_s
    print(f"{counts} killed in {seconds:.0f} s, {made.finished} sets finished, all the same byte for byte")
    return 0


if __name__ == "__main__":
    sys.exit(main())
