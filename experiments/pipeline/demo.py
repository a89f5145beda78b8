"""`nava demo`: time estimate, the pipeline under DVC, and a summary of time and memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from experiments.doctor import repository_problem
from experiments.layout import STAGES, Layout
from experiments.recipes.load import read_params
from experiments.runs.invocation import invocation
from experiments.runs.memory import PeakMemory
from experiments.runs.run import read_record
from experiments.runs.sender import wait_until_sent
from experiments.runs.tracker import ensure_sender
from pretrain.files import write_json

ENOUGH_GFLOPS = 500
EXPECTED_MINUTES = 28
MLFLOW_PATIENCE_S = 20.0
TIMINGS = "timings.json"


def up_to_date(root: Path) -> bool:
    """True if DVC has nothing to run; takes a second or two."""
    if not (root / "dvc.lock").is_file():
        return False
    command = [*dvc_command(), "status", "-q"]
    done = subprocess.run(
        command, cwd=root, env=environment(), capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    if done.returncode not in (0, 1):
        raise ValueError(f"dvc status: {_last_line(done.stderr)}")
    return done.returncode == 0


def dvc_command() -> list[str]:
    return [sys.executable, "-m", "dvc"]


def environment() -> dict[str, str]:
    """Environment with this interpreter's folder first in PATH, so that `python` in dvc.yaml is this one."""
    folder = str(Path(sys.executable).parent)
    return {
        **os.environ,
        "PATH": f"{folder}{os.pathsep}{os.environ.get('PATH', '')}",
        "PYTHONUNBUFFERED": "1",
    }


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("ERROR: ") if lines else "failed without a word; run it by hand"


def print_estimate() -> dict[str, float]:
    """Measure the peak matmul throughput and print the estimated minutes; returns GFLOP/s by precision."""
    import torch

    from experiments.doctor import peak_matmul_gflops, processor_name

    speed = {name: peak_matmul_gflops(getattr(torch, name)) for name in ("bfloat16", "float32")}
    rates = f"{speed['bfloat16']:.0f} GFLOP/s in bf16, {speed['float32']:.0f} in fp32"
    print(f"{processor_name()}, {torch.get_num_threads()} threads: peak matmul throughput {rates}")
    if speed["bfloat16"] >= ENOUGH_GFLOPS:
        print(f"expect about {EXPECTED_MINUTES} minutes and at most 6 GiB of memory")
    else:
        factor = ENOUGH_GFLOPS / max(speed["bfloat16"], 1.0)
        print(
            f"below the {ENOUGH_GFLOPS} GFLOP/s that {EXPECTED_MINUTES} minutes are meant for: up to "
            f"{factor:.1f} times as long, "
            f"expect about {EXPECTED_MINUTES * factor:.0f} minutes; the result is the same"
        )
    sys.stdout.flush()
    return speed


def run_pipeline(root: Path, layout: Layout) -> None:
    """Run `dvc repro` with all stages' progress, then print timings. Raises ValueError if a stage fails.

    Ctrl-C reaches the stages too (same process group); they leave a checkpoint that the next call resumes.
    """
    if problem := repository_problem(root):
        raise ValueError(problem)
    speed = print_estimate()
    asked = read_params(root / "params.yaml")
    what = f"demo {asked.get('recipe', 'mini')}"
    ensure_sender(layout.tracking, root)
    started, start_s = time.time(), time.monotonic()
    with PeakMemory() as memory, invocation(what, layout, root, asked):
        _reproduce(root)
    write_timings(layout, speed, time.monotonic() - start_s, started, memory)
    if not wait_until_sent(layout.tracking, root, MLFLOW_PATIENCE_S):
        print(
            f"MLflow has not got every run yet ({layout.tracking / 'sender.log'}); `nava tracking flush` "
            "sends the rest"
        )


def _reproduce(root: Path) -> None:
    pipeline = subprocess.Popen(
        [*dvc_command(), "repro"], cwd=root, env=environment(), stdin=subprocess.DEVNULL
    )
    try:
        code = pipeline.wait()
    except KeyboardInterrupt:
        pipeline.wait()
        raise
    if code:
        raise ValueError(
            "a stage failed (its own line is above); mend that and run this again, it goes on where it "
            "stopped"
        )


def write_timings(
    layout: Layout, speed: dict[str, float], seconds: float, started: float, memory: PeakMemory
) -> None:
    """Store the run's timings next to the report: `reports/timings.json`."""
    records = [record for stage in STAGES if (record := read_record(layout, stage))]
    begun = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started))
    timings = {
        "total_s": round(seconds, 1),
        "stages_s": {
            record.stage: round(record.duration_s, 1) for record in records if record.started_at >= begun
        },
        "peak_memory_gib": round(memory.peak_bytes / 2**30, 2),
        "peak_memory_is": memory.kind,
        "matmul_gflops": {name: round(value) for name, value in speed.items()},
        "started_at": begun,
    }
    write_json(layout.reports / TIMINGS, timings, indent=1)


def print_timings(layout: Layout) -> None:
    """Print the time per stage of the last complete run."""
    path = layout.reports / TIMINGS
    if not path.is_file():
        return
    timings: dict[str, Any] = json.loads(path.read_text())
    stages = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in timings["stages_s"].items())
    print(f"{timings['total_s'] / 60:.1f} minutes ({stages})")
    print(
        f"peak memory of all processes together {timings['peak_memory_gib']} GiB "
        f"({timings['peak_memory_is']})"
    )
