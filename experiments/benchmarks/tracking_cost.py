"""What tracking costs a training: `python -m experiments.benchmarks.tracking_cost out/pretrain/stage3 --out
tracking_cost.json`.

100,000 metric points and 5,000 artifacts go through the trackers of a training process, in calls like those
of a finished training whose folder is given: its metrics' names, its seconds a step, its log_every. The share
is of that training's time for so many calls, and of the time if it logged every step. Then a process sends
the spool to MLflow (SQLite): its processor time is the other share. With --race-s the sender is stopped and
let go in turn beside training steps of the mini: how much longer a step takes while it sends. That wants a
machine with nothing else to do.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from experiments.benchmarks.harness import facts, make_parser, parse, race, ratio, summary, write
from experiments.benchmarks.random_model import latent_sizes, random_batch, random_clip, random_model
from experiments.doctor import num_cores
from experiments.runs.sender import quiet_mlflow
from experiments.runs.spool import SpooledRun
from experiments.runs.store_uri import store_uri
from experiments.runs.tracker import RunStart, SpoolTracker, ensure_sender
from pretrain.files import read_json
from pretrain.model.flavors import flavor
from pretrain.model.plan import clip_shape
from pretrain.objective import ObjectiveConfig, corrupt, velocity_loss
from pretrain.tracking import JsonlTracker, Trackers
from pretrain.types import Task

CLIP = (25, 64, 64)  # frames, height, width in pixels, as the mini's
STEPS_A_TURN = 4


@dataclass(frozen=True)
class LoggedTraining:
    """What a finished training logged: a row of numbers a call, of the median number of metrics."""

    seconds_per_step: float
    log_every: int
    names: tuple[str, ...]

    @classmethod
    def read(cls, folder: Path) -> LoggedTraining:
        """Raises FileNotFoundError or ValueError where the folder is no finished training."""
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        logged = [row for row in rows if "seconds_per_step" in row]
        if not logged:
            raise ValueError(f"{folder / 'metrics.jsonl'}: no row has seconds_per_step; give a trained stage")
        numbers = sorted(
            [tuple(name for name, value in row.items() if isinstance(value, (int, float))) for row in logged],
            key=len,
        )
        log_every = read_json(folder / "resolved.json", "give a trained stage")["config"]["log_every"]
        median = statistics.median(row["seconds_per_step"] for row in logged)
        return cls(median, log_every, tuple(name for name in numbers[len(numbers) // 2] if name != "step"))


def cost(work: Callable[[], object]) -> dict[str, float]:
    """Wall and processor seconds of this process."""
    wall, processor = time.perf_counter(), time.process_time()
    work()
    found = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - processor}
    return {name: round(value, 4) for name, value in found.items()}


def spooled(training: LoggedTraining, folder: Path, points: int, artifacts: int) -> dict[str, Any]:
    """Costs of the calls into folder/spool/run, and of reading the points again when the run is resumed."""
    calls = -(-points // len(training.names))
    run = folder / "spool" / "run"
    tracker = SpoolTracker(run)
    tracker.start(RunStart(name="cost", config={"points": points}))
    trackers = Trackers(JsonlTracker(folder / "metrics.jsonl"), [tracker])
    sample = folder / "sample.txt"
    sample.write_text("an artifact")

    def log_points() -> None:
        for step in range(calls):
            trackers.log_metrics(
                {name: (step + place) / 7 for place, name in enumerate(training.names)}, step
            )

    def log_artifacts() -> None:
        for number in range(artifacts):
            trackers.log_artifact(str(sample), f"files/{number % 50}")

    costs = {"points": cost(log_points), "artifacts": cost(log_artifacts)}
    costs["resume"] = cost(lambda: SpoolTracker(run).logged(0))
    wall_s = costs["points"]["wall_s"] + costs["artifacts"]["wall_s"]
    whole_s = {"as_logged": calls * training.log_every, "every_step": calls}
    shares = {
        name: float(f"{100 * wall_s / (steps * training.seconds_per_step):.2g}")
        for name, steps in whole_s.items()
    }
    microseconds = {
        name: round(1e6 * costs[name]["wall_s"] / count, 1)
        for name, count in {"points": calls, "artifacts": artifacts}.items()
    }
    return {
        "calls": calls,
        "metrics_a_call": len(training.names),
        "artifacts": artifacts,
        "seconds": costs,
        "microseconds_a_call": microseconds,
        "training_s": {name: round(steps * training.seconds_per_step, 1) for name, steps in whole_s.items()},
        "percent_of_training": shares,
    }


def sending(training: LoggedTraining, folder: Path, calls: int) -> dict[str, Any]:
    """Processor time of a process that sends all of folder/spool, at the priority of this one."""
    code = "import sys; from pathlib import Path; from experiments.runs.sender import flush; "
    code += "sys.exit(flush(Path(sys.argv[1]), Path(sys.argv[2])))"
    begun = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", code, str(folder / "spool"), str(folder)])
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise OSError("the spool was not sent; see the message above")
    processor_s, whole_s = used.ru_utime + used.ru_stime, calls * training.seconds_per_step
    cores = num_cores()
    return {
        "wall_s": round(time.perf_counter() - begun, 1),
        "cpu_s": round(processor_s, 1),
        "percent_of_all_cores": {
            name: float(f"{100 * processor_s / (cores * seconds):.2g}")
            for name, seconds in (("as_logged", whole_s * training.log_every), ("every_step", whole_s))
        },
    }


def training_step() -> Callable[[], object]:
    """Forward and backward passes of the mini on a random clip."""
    model = random_model(flavor("mini"), torch.float32, torch.device("cpu"))
    clip = random_clip(flavor("mini"), clip_shape(flavor("mini"), *CLIP), latent_sizes(*CLIP))
    objective = ObjectiveConfig()
    corrupted = corrupt(random_batch(clip, 4, Task.T2AV, torch.device("cpu")), objective, 0)

    def step() -> None:
        for _ in range(STEPS_A_TURN):
            model.zero_grad()
            sums = velocity_loss(model(corrupted.video, corrupted.audio, corrupted.conditioning), corrupted)
            sums.loss(sums.video_count, sums.audio_count, objective.audio_weight).backward()

    return step


def beside_the_sender(folder: Path, budget_s: float) -> dict[str, Any]:
    """Seconds of training steps while the sender is stopped and while it sends, turn by turn."""
    sender = ensure_sender(folder / "spool", folder)
    if sender is None:
        raise OSError("the sender did not start; see the message above")
    process, run, uri = psutil.Process(sender.pid), SpooledRun(folder / "spool" / "run"), store_uri(folder)
    while not run.sent_to(uri).offset and process.is_running():
        time.sleep(0.2)
    step = training_step()

    def beside(number: signal.Signals) -> Callable[[], object]:
        def turn() -> None:
            process.send_signal(number)
            step()

        return turn

    before, processor = run.sent_to(uri).offset, process.cpu_times()
    alone, together = race(beside(signal.SIGSTOP), beside(signal.SIGCONT), budget_s, torch.device("cpu"))
    sent, used = run.sent_to(uri).offset - before, process.cpu_times()
    busy = run.has_pending(uri)
    process.kill()
    sender.wait()
    return {
        "steps_alone_s": summary(alone),
        "steps_beside_s": summary(together),
        "times_as_long": ratio(alone, together),
        "sender_niceness": 19,
        "sender_cpu_s": round(used.user + used.system - processor.user - processor.system, 2),
        "bytes_sent": sent,
        "sent_to_the_end_of_the_race": busy,
    }


def show(found: Mapping[str, Any], parts: Sequence[str]) -> None:
    for part in parts:
        print(part, json.dumps(found[part], indent=1))


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument(
        "training", type=Path, help="folder of a finished training, such as out/pretrain/stage3"
    )
    parser.add_argument("--points", type=int, default=100_000)
    parser.add_argument("--artifacts", type=int, default=5_000)
    parser.add_argument("--race-s", type=float, default=0.0, help="steps beside the sender, for so long")
    options = parse(parser)
    quiet_mlflow()
    training = LoggedTraining.read(options.training)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch).resolve()
        cost_of = spooled(training, folder, options.points, options.artifacts)
        found: dict[str, Any] = {
            **facts("mlflow"),
            "basis": {
                "seconds_per_step": round(training.seconds_per_step, 4),
                "log_every": training.log_every,
            },
            "tracking": cost_of,
            "sending": sending(training, folder, cost_of["calls"]),
        }
    if options.race_s:
        with tempfile.TemporaryDirectory() as scratch:
            spooled(training, Path(scratch).resolve(), options.points, options.artifacts)
            found["race"] = beside_the_sender(Path(scratch).resolve(), options.race_s)
    show(found, [part for part in ("basis", "tracking", "sending", "race") if part in found])
    write(found, options.out)


if __name__ == "__main__":
    main()
