"""Starts a module's ranks under torchrun and stays with them: progress, signals, and one line when they fail.

A run folder holds resolved.json for the ranks, log.txt, metrics.jsonl, and what they answer: state.json, or error.txt.RANK.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pretrain.files import read_json, replacing
from pretrain.progress import MetricsTail, StageProgress

LOG, METRICS = "log.txt", "metrics.jsonl"
RESOLVED, IDENTITY, STATE, ERROR = "resolved.json", "run.json", "state.json", "error.txt"
_POLL_S = 0.2


def run_ranks(module: str, out: Path, nproc: int, port: int, progress: StageProgress) -> int:
    """`python -m module out/resolved.json` on `nproc` local ranks, to its end; returns torchrun's exit code.

    port: torchrun's rendezvous port, 0 = any free one. Raises ValueError where it is taken.
    """
    if port:
        check_port(port)
    for stale in (*out.glob(f"{ERROR}.*"), *out.glob(STATE)):  # what an earlier attempt said is not this one's answer
        stale.unlink()
    threads = max(1, (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1) // nproc)
    repository = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join([repository, *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": path}
    tail = MetricsTail(out / METRICS)
    with (out / LOG).open("a") as log, progress:
        process = subprocess.Popen(
            _command(module, out / RESOLVED, nproc, port), stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True,
            preexec_fn=end_with_parent,
        )  # fmt: skip
        with _forwarding(process):
            while (code := _wait(process)) is None:
                for row in tail.rows():
                    progress.show(row)
        for row in tail.rows():
            progress.show(row)
    return code


def check_port(port: int) -> None:
    """Raises ValueError where the port is taken."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise ValueError(f"port {port} for torchrun cannot be used ({error.strerror}); choose another, or 0 for any free one") from None


def _command(module: str, resolved: Path, nproc: int, port: int) -> list[str]:
    where = ["--master-addr=127.0.0.1", f"--master-port={port}"] if port else ["--standalone"]
    return [sys.executable, "-m", "torch.distributed.run", *where, f"--nproc-per-node={nproc}", "-m", module, str(resolved)]


def _wait(process: subprocess.Popen) -> int | None:
    try:
        return process.wait(timeout=_POLL_S)
    except subprocess.TimeoutExpired:
        return None


@contextlib.contextmanager
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


def read_state(out: Path) -> dict[str, Any]:
    """What the ranks said last: status, step, model_id; empty where they said nothing."""
    path = out / STATE
    return read_json(path, "remove it to go on from the newest checkpoint") if path.is_file() else {}


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2) + "\n")


def report(error: Exception, out: Path) -> None:
    """A rank's farewell: one line in error.txt.RANK and the traceback in the log, as far as the disk lets us."""
    line = " ".join(str(error).split())
    with contextlib.suppress(OSError):
        (out / f"{ERROR}.{os.environ['RANK']}").write_text(line + "\n")
    with contextlib.suppress(OSError):
        traceback.print_exc()
        print(f"error: {line}", file=sys.stderr, flush=True)


def failure(out: Path, code: int) -> Exception:
    """The ranks' own one-line error, or the last error line of the log."""
    reported = sorted(out.glob(f"{ERROR}.*"))
    if reported:
        line = reported[0].read_text().strip()
        return OSError(line) if "could not be written" in line else ValueError(line)
    lines = [line.strip() for line in (out / LOG).read_text(errors="replace").splitlines()]
    errors = [line for line in lines if "Error" in line and "ChildFailedError" not in line and not line.startswith("raise ")]
    return ValueError(f"training ended with exit code {code}: {errors[-1][:300] if errors else 'no error line'}; see {out / LOG}")
