"""Starts a stage under torchrun and stays with it: progress, signals, and one line when it fails."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.data.loader import check_sets
from pretrain.files import read_json
from pretrain.progress import MetricsTail, StageProgress
from pretrain.recipe import PretrainConfig
from pretrain.stage_run import ERROR, STATE, StageRun, check_parent, check_run_folder, clear

LOG = "log.txt"
_POLL_S = 0.2


@dataclass(frozen=True)
class StageResult:
    """How a stage ended: status "finished" or "interrupted" (run again to resume), its step, and the exported model."""

    status: str
    step: int
    model: Path | None
    model_id: str


def pretrain_stage(
    config: PretrainConfig, stage: str, latents: Path, out: Path, *, codec_id: str = "", init_from: Path | None = None, nproc: int = 1,
    port: int = 0, trackers: Mapping[str, Mapping[str, Any]] | None = None, restart: bool = False,
) -> StageResult:  # fmt: skip
    """Train `stage` into `out` on `nproc` local ranks, going on from the newest checkpoint there.

    port: torchrun's rendezvous port, 0 = any free one. trackers: "package.module:factory" -> keyword arguments. restart: forget what is
    in `out`. A finished stage is returned at once. Raises ValueError, FileNotFoundError or OSError in one line; out/log.txt has the rest.
    """
    config.stage(stage)
    config.local_batch(nproc)
    run = StageRun(
        config=config, stage=stage, latents=latents.absolute(), out=out.absolute(), codec_id=codec_id,
        init_from=init_from.absolute() if init_from else None, trackers=trackers or {},
    )  # fmt: skip
    check_parent(run)
    check_sets(run.latents, config.stage(stage))
    if port:
        check_port(port)
    if restart:
        clear(run.out)
    check_run_folder(run)
    state = _state(run.out)
    if state and state["status"] == "finished" and (run.out / "model" / "config.json").is_file():
        return _result(run.out, state)
    for stale in (*run.out.glob(f"{ERROR}.*"), *run.out.glob(STATE)):  # what an earlier attempt said is not this one's answer
        stale.unlink()
    code = _watch(run, _command(run.save(), nproc, port), nproc)
    state = _state(run.out)
    if state and state["status"] in ("finished", "interrupted"):
        return _result(run.out, state)
    raise _failure(run.out, code)


def check_port(port: int) -> None:
    """Raises ValueError where the port is taken."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise ValueError(f"port {port} for torchrun cannot be used ({error.strerror}); choose another, or 0 for any free one") from None


def _command(resolved: Path, nproc: int, port: int) -> list[str]:
    where = ["--master-addr=127.0.0.1", f"--master-port={port}"] if port else ["--standalone"]
    launcher = [sys.executable, "-m", "torch.distributed.run", *where, f"--nproc-per-node={nproc}"]
    return [*launcher, "-m", "pretrain.titan.run", str(resolved)]


def _watch(run: StageRun, command: list[str], nproc: int) -> int:
    """Run torchrun to its end, showing rank 0's metrics; returns its exit code."""
    threads = max(1, (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1) // nproc)
    repository = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join([repository, *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": path}
    tail = MetricsTail(run.out / "metrics.jsonl")
    with (run.out / LOG).open("a") as log, StageProgress(run.stage, run.config.stage(run.stage).steps) as progress:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True, preexec_fn=end_with_parent
        )
        with _forwarding(process):
            while (code := _wait(process)) is None:
                for row in tail.rows():
                    progress.show(row)
        for row in tail.rows():
            progress.show(row)
    return code


def _wait(process: subprocess.Popen) -> int | None:
    try:
        return process.wait(timeout=_POLL_S)
    except subprocess.TimeoutExpired:
        return None


@contextmanager
def _forwarding(process: subprocess.Popen) -> Iterator[None]:
    """SIGTERM and Ctrl-C go to torchrun as SIGTERM: the ranks finish their step, write a checkpoint and end."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def forward(number: int, frame: object) -> None:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)

    try:
        for number in before:
            signal.signal(number, forward)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_with_parent() -> None:
    """Linux: torchrun gets SIGTERM when this process dies however it dies, so that no training goes on unseen."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _state(out: Path) -> dict[str, Any]:
    path = out / STATE
    return read_json(path, "remove it to go on from the newest checkpoint") if path.is_file() else {}


def _result(out: Path, state: Mapping[str, Any]) -> StageResult:
    model = out / "model" if state["status"] == "finished" else None
    return StageResult(state["status"], int(state["step"]), model, state["model_id"])


def _failure(out: Path, code: int) -> Exception:
    """The ranks' own one-line error, or the last error line of the log."""
    reported = sorted(out.glob(f"{ERROR}.*"))
    if reported:
        line = reported[0].read_text().strip()
        return OSError(line) if "could not be written" in line else ValueError(line)
    lines = [line.strip() for line in (out / LOG).read_text(errors="replace").splitlines()]
    errors = [line for line in lines if "Error" in line and "ChildFailedError" not in line and not line.startswith("raise ")]
    return ValueError(f"training ended with exit code {code}: {errors[-1][:300] if errors else 'no error line'}; see {out / LOG}")
