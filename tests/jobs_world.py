"""A pipeline of one small training, and a Ray cluster of one machine to submit it to."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
from launch_world import write_world
from titan_world import config

from experiments.recipes.base import Recipe

TOKEN = "RAY_AUTH_TOKEN"
STAGE, RECIPE, STEPS = "pretrain_stage1", "jobs_world.submitted", 240
DVC = f"""stages:
  {STAGE}:
    cmd: python -m experiments.stages {STAGE}
    deps: [out/latents]
    params: [recipe]
    outs:
      - out/pretrain/stage1:
          persist: true
"""


def submitted() -> Recipe:
    """Debug sizes, long enough to be interrupted."""
    return Recipe(name="submitted", pretrain=config(steps=STEPS, interval=1000))


def write_pipeline(folder: Path) -> dict[str, str]:
    """params.yaml, dvc.yaml and what the stage reads, in a DVC repository; the environment that imports
    recipe and stages."""
    folder.mkdir(parents=True)
    environment = write_world(folder)
    (folder / "params.yaml").write_text(f"recipe: {RECIPE}\n")
    (folder / "dvc.yaml").write_text(DVC)
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "-q"], cwd=folder, check=True)
    return {**environment, "OMP_NUM_THREADS": "1", "MLFLOW_TRACKING_URI": ""}


@contextlib.contextmanager
def cluster(token: str) -> Iterator[str]:
    """A head with a dashboard on ports of its own, open to who has the token; its address. Ends with
    everything it started."""
    folder = tempfile.mkdtemp(prefix="ray_", dir="/tmp")  # Ray's sockets have to have short names
    names = (
        "port",
        "dashboard-port",
        "ray-client-server-port",
        "dashboard-agent-listen-port",
        "dashboard-agent-grpc-port",
        "runtime-env-agent-port",
        "metrics-export-port",
        "node-manager-port",
        "object-manager-port",
    )
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    command = [
        str(Path(sys.executable).with_name("ray")),
        "start",
        "--head",
        "--block",
        "--num-cpus=2",
        f"--temp-dir={folder}",
    ]
    command += ["--object-store-memory=100000000", "--include-dashboard=true", "--disable-usage-stats"]
    command += [f"--{name}={port}" for name, port in ports.items()]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {
        "RAY_AUTH_MODE": "token",
        TOKEN: token,
    }
    log = Path(folder) / "head.txt"
    with log.open("w") as said:
        head = subprocess.Popen(command, env=environment, stdout=said, stderr=said, start_new_session=True)
    try:
        address = f"http://127.0.0.1:{ports['dashboard-port']}"
        wait_until(lambda: head.poll() is not None or answers(address), 120)
        assert head.poll() is None, log.read_text()[-2000:]
        yield address
    finally:
        family = psutil.Process(head.pid).children(recursive=True) if head.poll() is None else []
        head.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            head.wait(20)
        for process in (*family, head):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        head.wait()
        shutil.rmtree(folder, ignore_errors=True)


def free_ports(count: int) -> list[int]:
    """Below those that the system hands out by itself: nobody else comes to have one before Ray takes it."""
    found: set[int] = set()
    while len(found) < count:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", random.randrange(20_000, 30_000)))
            found.add(probe.getsockname()[1])
    return list(found)


def answers(address: str) -> bool:
    from orchestration.launch import connect

    try:
        connect(address)
    except OSError:
        return False
    return True


def wait_until(true: object, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not true():  # type: ignore[operator]
        assert time.monotonic() < end, f"waited {seconds} s in vain"
        time.sleep(0.2)


@dataclass(frozen=True)
class Parts:
    """The processes of a job that trains in `root`, from the one that Ray started to the ranks."""

    root: Path

    def found(self) -> dict[str, psutil.Process]:
        parts = {}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                line, here = " ".join(process.cmdline()), Path(process.cwd()) == self.root
                if here and process.status() != psutil.STATUS_ZOMBIE and (name := _part(line)):
                    parts[name] = process
        return parts

    def terminate(self, name: str) -> None:
        self.found()[name].send_signal(signal.SIGTERM)


def _part(line: str) -> str:
    names = {"torch.distributed.run": "torchrun", "pretrain.titan.run": "rank", "experiments.stages": "stage"}
    names |= {"experiments.jobs.attend": "attendant", "dvc repro": "dvc"}
    return next((name for mark, name in names.items() if mark in line), "")


def rows(root: Path) -> int:
    path = root / "out" / "pretrain" / "stage1" / "metrics.jsonl"
    return path.read_text().count("\n") if path.is_file() else 0
