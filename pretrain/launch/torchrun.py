"""Starts a module's ranks under torchrun and stays with them: progress, signals, and one line when they fail.

A run folder holds resolved.json for the ranks, log.txt, metrics.jsonl, and what they write: state.json, or
error.txt.RANK.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from pretrain.config import one_line
from pretrain.files import read_json
from pretrain.launch.alone import RANK_VARIABLES, is_rank_of_torchrun
from pretrain.launch.nodes import Nodes
from pretrain.progress import MetricsTail, StageProgress
from pretrain.storage import place

LOG, METRICS = "log.txt", "metrics.jsonl"
RESOLVED, IDENTITY, STATE, ERROR = "resolved.json", "run.json", "state.json", "error.txt"
SHUTDOWN_TIMEOUT = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"  # seconds that ranks have for a checkpoint after SIGTERM
# a store of each attempt's own: in one that torchrun keeps, restarted ranks meet the addresses of the dead
# (pytorch issue 135712)
FRESH_STORE = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
ALONE = Nodes()
_POLL_S = 0.2
PORT_TRIES = 5  # starts of ranks on one machine, each on other ports


def run_ranks(
    module: str, out: Path, nproc: int, port: int, progress: StageProgress | None, nodes: Nodes = ALONE
) -> int:
    """Run `python -m module out/resolved.json` on `nproc` local ranks; returns torchrun's exit code.

    port: torchrun's rendezvous port on a single node, 0 = any free one. A node that does not lead shows
    nothing and clears nothing. A launcher's variables of the environment are left out. Raises ValueError
    where the port is taken, or torchrun started this process itself, as one of several.
    """
    if is_rank_of_torchrun():
        ranks = os.environ["WORLD_SIZE"]
        raise ValueError(f"torchrun started {ranks} of these, and each starts torchrun itself; leave it out")
    if port and nodes.count == 1:
        check_port(port)
    if nodes.leads:
        # of an earlier attempt
        for stale in (*out.glob(f"{ERROR}.*"), *out.glob(STATE)):
            stale.unlink()
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        *nodes.arguments(nproc, port),
        "-m",
        module,
        str(out / RESOLVED),
    ]
    tail, environment = MetricsTail(out / METRICS), _environment(nproc)
    with log_file(out, nodes).open("a") as log, progress or contextlib.nullcontext():
        for _ in range(PORT_TRIES):
            code = _attempt(command, environment, log, lambda: _show(tail, progress))
            if code <= 0 or nodes.count > 1 or not lost_its_port(out / LOG):
                break
    return code


def _environment(nproc: int) -> dict[str, str]:
    threads = max(
        1,
        (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1) // nproc,
    )
    repository = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join([repository, *filter(None, [os.environ.get("PYTHONPATH")])])
    # PET_*: torchrun's options by environment
    left_out = {name for name in os.environ if name.startswith("PET_") or name in RANK_VARIABLES}
    inherited = {name: value for name, value in os.environ.items() if name not in left_out}
    return {
        SHUTDOWN_TIMEOUT: "90",
        FRESH_STORE: "1",
        **inherited,
        "OMP_NUM_THREADS": str(threads),
        "PYTHONPATH": path,
    }


def _attempt(command: list[str], environment: dict[str, str], log: TextIO, show: Callable[[], None]) -> int:
    print(ATTEMPT, file=log, flush=True)
    process = subprocess.Popen(
        command,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,
        preexec_fn=end_with_parent,
    )
    with _forwarding(process):
        while (code := _wait(process)) is None:
            show()
    show()
    return code


def lost_its_port(log: Path) -> bool:
    """The last attempt in `log` ended since another process took the port that torchrun had found free for
    its ranks, before they listened there (nothing had begun then)."""
    return "EADDRINUSE" in log.read_text(errors="replace").rpartition(ATTEMPT)[2]


def log_file(out: Path, nodes: Nodes) -> Path:
    """What the ranks of a node print: log.txt, or log.NODE.txt of those that do not lead."""
    return out / (LOG if nodes.leads else f"log.{nodes.rank}.txt")


def _show(tail: MetricsTail, progress: StageProgress | None) -> None:
    for row in tail.rows() if progress else ():
        progress.show(row)  # type: ignore[union-attr]


def check_port(port: int) -> None:
    """Raises ValueError where the port is taken."""
    if problem := port_problem(port):
        raise ValueError(
            f"port {port} for torchrun cannot be used ({problem}); choose another, or 0 for any free one"
        )


def port_problem(port: int) -> str:
    """Why nothing of this machine can listen on a port of the loopback; "" if it can."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            return getattr(error, "strerror", None) or one_line(error)
    return ""


def _wait(process: subprocess.Popen) -> int | None:
    try:
        return process.wait(timeout=_POLL_S)
    except subprocess.TimeoutExpired:
        return None


@contextlib.contextmanager
def _forwarding(process: subprocess.Popen) -> Iterator[None]:
    """SIGTERM and Ctrl-C go to torchrun as SIGTERM: the ranks finish their step, write a checkpoint and end.

    Once: each further signal would cut its wait for them short.
    """
    forwarded: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def forward(number: int, frame: object) -> None:
        if process.poll() is None and not forwarded:
            forwarded.append(number)
            process.send_signal(signal.SIGTERM)

    try:
        for number in before:
            signal.signal(number, forward)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_with_parent() -> None:
    """Linux: torchrun gets SIGTERM when this process dies, so that no training goes on unattended."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def read_state(out: Path) -> dict[str, Any]:
    """The ranks' last state: status, step, model_id; empty if there is none."""
    path = out / STATE
    return read_json(path, "remove it to go on from the newest checkpoint") if path.is_file() else {}


def report(error: Exception, out: Path) -> None:
    """A rank's exit: one line in error.txt.RANK and the traceback in the log, if the disk allows."""
    line = one_line(error)
    with contextlib.suppress(OSError):
        (out / f"{ERROR}.{os.environ['RANK']}").write_text(line + "\n")
    with contextlib.suppress(OSError):
        traceback.print_exc()
        print(f"error: {line}", file=sys.stderr, flush=True)


def failure(out: Path, code: int, log: Path | None = None) -> Exception:
    """The killed rank, or the ranks' own one-line error, or the log's last error line (out/log.txt)."""
    log = log or out / LOG
    printed = log.read_text(errors="replace")
    if died := dead_rank(printed):
        return OSError(f"{died}; {newest_state(out / RESOLVED)}; run again to resume; see {log}")
    if code < 0:
        killed = f"torchrun was killed by {_signal_name(-code)}"
        return OSError(f"{killed}; {newest_state(out / RESOLVED)}; run again to resume; see {log}")
    reported = sorted(out.glob(f"{ERROR}.*"))
    if reported:
        line = reported[0].read_text().strip()
        return OSError(line) if "could not be written" in line else ValueError(line)
    lines = [line.strip() for line in printed.splitlines()]
    errors = [
        line
        for line in lines
        if "Error" in line and "ChildFailedError" not in line and not line.startswith("raise ")
    ]
    return ValueError(
        f"training ended with exit code {code}: {errors[-1][:300] if errors else 'no error line'}; see {log}"
    )


ATTEMPT = "-- torchrun starts --"
# the end of a rank's error after which `rank.begin` ends restarted ranks at once
NOT_AGAIN = "a restart would meet the same"
_RECORD = re.compile(
    r"host\s*: (?P<host>\S+)\s+rank\s*: (?P<rank>\d+) \(local_rank: \d+\)\s+"
    r"exitcode\s*: -(?P<signal>\d+) \(pid: (?P<pid>\d+)\)"
)
_ENDED = re.compile(r"Sending process (\d+) closing signal")
_HINTS = {
    "SIGKILL": "by the system for want of memory, or from outside",
    "SIGSEGV": "by a fault in native code",
}


def dead_rank(log: str) -> str:
    """Who was killed by which signal by the last attempt's failure record in `log`; "" where no rank was.

    Ranks that torchrun itself ended because of another's death are not meant.
    """
    attempt = log.rpartition(ATTEMPT)[2]
    ended = set(_ENDED.findall(attempt))
    killed = [
        found for found in _RECORD.finditer(attempt.rpartition("\nFailures:")[2]) if found["pid"] not in ended
    ]
    if not killed:
        return ""
    name = _signal_name(int(killed[0]["signal"]))
    hint = f" ({_HINTS[name]})" if name in _HINTS else ""
    return f"rank {killed[0]['rank']} on {killed[0]['host']} was killed by {name}{hint}"


def _signal_name(number: int) -> str:
    known = number in {item.value for item in signal.Signals}
    return signal.Signals(number).name if known else f"signal {number}"


def newest_state(resolved: Path) -> str:
    """What can be resumed of the run described by resolved.json, in words."""
    from pretrain.launch.states import complete_steps

    folder = resolved.parent / "checkpoint"
    with suppress(OSError, ValueError):
        folder = place(json.loads(resolved.read_text()).get("checkpoints") or folder)
        steps = complete_steps(folder)
        return f"the checkpoint of step {steps[-1]} is intact" if steps else "no checkpoint was complete"
    return f"{folder}: its checkpoints could not be listed"
