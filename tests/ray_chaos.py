"""Alignments on Ray that lose a rollout worker, a reward worker and their driver, by SIGKILL at random
moments: `python tests/ray_chaos.py --trials 20 --to docs/ray_chaos.json`, in the repository
root.

One run is left alone. Every other one is of the same tiny world (tests/align_world.py), is killed three times
and started again with the same command; what it leaves is held against the run that was left alone. Moments
are drawn as a round and a part of it.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from chaos_comparison import Left, Verdict, compare, read

from experiments.benchmarks.harness import facts
from finetune.align_run import AlignRun
from pretrain.files import write_json
from pretrain.progress import track

TESTS = Path("tests")
WORKERS = {"rollout": "ray::RolloutWorker", "reward": "ray::RewardWorker"}
DRIVER = "driver"
PATIENCE_S = 300.0
MAX_STARTS = 4
GONE_S = 60.0  # that processes of a killed driver may need to end


@dataclass(frozen=True)
class Moment:
    """When `rounds` rows of metrics are there (the first is of the held-out prompts), and `part` of a round
    later."""

    rounds: int
    part: float


@dataclass(frozen=True)
class Trial:
    """killed: victim -> the moment it was killed at. starts: of the driver, 2 unless Ray itself did not come
    up. left_behind: processes that outlived their driver."""

    killed: Mapping[str, Moment]
    verdict: Verdict
    starts: int
    restarts: int
    left_behind: int
    seconds: float


def draw(rng: random.Random, rounds: int) -> dict[str, Moment]:
    """Rollout worker and reward worker in either order, the driver after them; from before the first round to
    the last one."""
    moments = sorted(
        (Moment(rng.randrange(rounds), rng.random()) for _ in range(3)),
        key=lambda moment: (moment.rounds, moment.part),
    )
    first = ["rollout", "reward"]
    rng.shuffle(first)
    return dict(zip((*first, DRIVER), moments, strict=True))


def tiny_run(world: Path, out: Path, rounds: int, tests: Path = TESTS) -> AlignRun:
    """nft, then grpo, `rounds` rounds of each, in the world that the tests of alignment have. Raises
    FileNotFoundError without them."""
    if not (tests / "align_world.py").is_file():
        raise FileNotFoundError(f"{tests / 'align_world.py'}: no such file; run this in the repository root")
    if str(tests.resolve()) not in sys.path:
        sys.path.insert(0, str(tests.resolve()))
    made = importlib.import_module("align_world")
    if not (world / "base").is_dir():
        world.mkdir(parents=True, exist_ok=True)
        made.write_world(world)
    return made.align_run(world, out, made.config(("nft", "grpo"), rounds=rounds))


class Driver:
    """A process that aligns out/resolved.json on a Ray of its own."""

    def __init__(self, run: AlignRun, ranks: int, staleness: int, tests: Path = TESTS) -> None:
        self.temporary = tempfile.mkdtemp(
            prefix="nc", dir="/tmp"
        )  # the names of Ray's sockets must stay short
        places = [str(Path().resolve()), str(tests.resolve()), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {
            **os.environ,
            "RAY_TMPDIR": self.temporary,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(places),
        }
        command = [
            sys.executable,
            __file__,
            "--drive",
            str(run.out / "resolved.json"),
        ]
        self.run, self.family = run, set[psutil.Process]()
        with (run.out / "driver.txt").open("a") as said:
            command += [f"--ranks={ranks}", f"--staleness={staleness}"]
            self.process = subprocess.Popen(
                command, stdout=said, stderr=said, env=environment, start_new_session=True
            )

    def rows(self) -> int:
        path = self.run.out / "metrics.jsonl"
        return path.read_text().count("\n") if path.is_file() else 0

    def wait_for(self, moment: Moment, round_s: float, victim: str) -> psutil.Process | None:
        """A process of that kind at that moment; None where the run had ended before."""
        end = time.monotonic() + PATIENCE_S
        while self.process.poll() is None:
            if self.rows() >= moment.rounds and self.victims(victim):
                time.sleep(moment.part * round_s)
                found = self.victims(victim)
                return min(found, key=lambda process: (process.create_time(), process.pid)) if found else None
            if time.monotonic() > end:
                raise OSError(
                    f"{self.run.out}: round {moment.rounds} did not come in {PATIENCE_S:.0f} s; see "
                    "driver.txt there"
                )
            time.sleep(0.02)
        return None

    def victims(self, victim: str) -> list[psutil.Process]:
        if victim == DRIVER:
            return [psutil.Process(self.process.pid)] if self.process.poll() is None else []
        return [process for process in self.processes() if _title(process).startswith(WORKERS[victim])]

    def processes(self) -> set[psutil.Process]:
        """All that the driver has started and that live; remembered, for they lose their parents when it is
        killed."""
        with contextlib.suppress(psutil.NoSuchProcess):
            self.family |= set(psutil.Process(self.process.pid).children(recursive=True))
        return {process for process in self.family if _lives(process)}

    def end(self) -> int:
        """Wait for it to end; how many of its processes had to be killed after that."""
        try:
            while self.process.poll() is None:
                self.processes()
                time.sleep(0.2)
            _, left = psutil.wait_procs(list(self.processes()), timeout=GONE_S)
        finally:
            for process in (*self.processes(), *self.victims(DRIVER)):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            shutil.rmtree(self.temporary, ignore_errors=True)
        return len([process for process in left if _lives(process)])


def _title(process: psutil.Process) -> str:
    try:
        return (process.cmdline() or [""])[0]
    except psutil.Error:
        return ""


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def to_the_end(run: AlignRun, ranks: int, staleness: int) -> tuple[int, int]:
    """Start the same command until it has finished: (starts, processes left behind). Raises ValueError where
    MAX_STARTS are not enough."""
    left_behind = 0
    for start in range(1, MAX_STARTS + 1):
        driver = Driver(run, ranks, staleness)
        left_behind += driver.end()
        if driver.process.returncode == 0:
            return start, left_behind
    raise ValueError(
        f"{run.out / 'driver.txt'}: the run did not end well in {MAX_STARTS} starts; read it there"
    )


def undisturbed(run: AlignRun, ranks: int, staleness: int) -> tuple[Left, float]:
    """What the run leaves that nobody kills, and the seconds of a round. Raises ValueError where it fails."""
    to_the_end(run, ranks, staleness)
    rows = [json.loads(line) for line in (run.out / "metrics.jsonl").read_text().splitlines()]
    return read(run.out), sum(row.get("seconds_per_step", 0.0) for row in rows) / run.config.num_rounds


def disturbed(
    run: AlignRun, moments: Mapping[str, Moment], whole: Left, round_s: float, ranks: int, staleness: int
) -> Trial | None:
    """The same run killed at these moments and started again; None where it ended well before all were
    killed, or never began.

    Raises ValueError where it did not outlive a worker.
    """
    started = time.monotonic()
    driver = Driver(run, ranks, staleness)
    killed = 0
    for victim, moment in moments.items():
        if (process := driver.wait_for(moment, round_s, victim)) is None:
            break
        with contextlib.suppress(psutil.NoSuchProcess):
            driver.processes()
            process.send_signal(signal.SIGKILL)
            killed += 1
    left_behind = driver.end()
    if killed < len(moments):
        if killed and driver.process.returncode:
            victims = " and ".join(list(moments)[:killed])
            raise ValueError(
                f"{run.out / 'driver.txt'}: the driver did not outlive the loss of {victims}; read it there"
            )
        return None
    starts, more = to_the_end(run, ranks, staleness)
    left, seconds = read(run.out), round(time.monotonic() - started, 1)
    return Trial(dict(moments), compare(left, whole), 1 + starts, left.restarts, left_behind + more, seconds)


def trials(
    folder: Path, count: int, rounds: int, ranks: int, staleness: int, seed: int
) -> Iterator[tuple[Trial | None, Left]]:
    """Of each trial its result; None where the draw came too late and is drawn again."""
    whole, round_s = undisturbed(tiny_run(folder / "world", folder / "whole", rounds), ranks, staleness)
    rng, done, number = random.Random(seed), 0, 0
    while done < count:
        run = tiny_run(folder / "world", folder / f"trial-{number}", rounds)
        trial = disturbed(run, draw(rng, run.config.num_rounds), whole, round_s, ranks, staleness)
        number, done = number + 1, done + (trial is not None)
        yield trial, whole


def line(trial: Trial) -> str:
    """A row of the table."""
    moments = [f"{trial.killed[name].rounds + trial.killed[name].part:5.2f}" for name in (*WORKERS, DRIVER)]
    verdict = trial.verdict
    counts = (verdict.rounds_missing, verdict.rounds_doubled, verdict.samples_lost, verdict.samples_doubled)
    numbers = "  ".join(f"{count:6d}" for count in (*counts, trial.starts, trial.restarts, trial.left_behind))
    return (
        f"{'  '.join(moments)}  {numbers}  {verdict.curve:8.1e}  {verdict.adapter:8.1e}  "
        f"{'same' if verdict.same else 'DIFFERS'}"
    )


HEADER = """\
killed after row           rounds          samples         driver  worker  processes  difference of
rollo  rewrd  drivr    lost  double    lost  double  starts  restarts  left    curves   adapter"""


def drive(resolved: Path, ranks: int, staleness: int) -> int:
    """What each driver is."""
    from orchestration.align import align_on_ray
    from orchestration.config import RayConfig

    result = align_on_ray(
        AlignRun.load(resolved), ranks, RayConfig(staleness=staleness), lambda options, rewards: options
    )
    return 0 if result.status == "finished" else 130


def report(found: Sequence[Trial], whole: Left, given: argparse.Namespace, redrawn: int) -> dict[str, Any]:
    return {
        **facts("ray"),
        "world": "tests/align_world.py, nft then grpo",
        "rounds": whole.rounds,
        "ranks": given.ranks,
        "samples": sum(map(len, whole.samples.values())),
        "staleness": given.staleness,
        "seed": given.seed,
        "trials": len(found),
        "same": sum(trial.verdict.same for trial in found),
        "drawn_again": redrawn,
        "worst_curve_difference": max(trial.verdict.curve for trial in found),
        "runs": [asdict(trial) for trial in found],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3, help="of each of the two phases")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--staleness", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--folder", type=Path, default=None, help="where the runs are kept; default a temporary folder"
    )
    parser.add_argument("--to", type=Path, default=Path("ray_chaos.json"))
    parser.add_argument("--drive", type=Path, default=None, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.drive:
        return drive(given.drive, given.ranks, given.staleness)
    found: list[Trial] = []
    content, redrawn = {"same": -1}, 0
    with tempfile.TemporaryDirectory() as scratch:
        print(HEADER)
        results = trials(
            given.folder or Path(scratch),
            given.trials,
            given.rounds,
            given.ranks,
            given.staleness,
            given.seed,
        )
        for trial, whole in track(results, given.trials, "trials"):
            redrawn += trial is None
            if trial:
                found.append(trial)
                print(line(trial), flush=True)
                content = report(found, whole, given, redrawn)
                write_json(given.to, content, indent=1)
    left = sum(trial.left_behind for trial in found)
    print(
        f"{content['same']} of {len(found)} end as the run that nobody killed; {left} processes were left "
        "behind"
    )
    return 0 if content["same"] == len(found) and not left else 1


if __name__ == "__main__":
    sys.exit(main())
