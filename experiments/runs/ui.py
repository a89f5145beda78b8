"""MLflow's user interface as one process tree that ends with `nava ui`, however that ends.

    nava ui -> guard (this module) -> mlflow server and what it starts

The guard is told by the kernel when `nava ui` is gone (PR_SET_PDEATHSIG) and inherits the server's orphans
(PR_SET_CHILD_SUBREAPER), so it ends them all; the server ends if the guard is killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil

from experiments.runs.sender import EXPERIMENT, open_default_store, quiet_mlflow
from experiments.runs.store_uri import connection_uri, scrubbed, store_uri
from pretrain.config import one_line
from pretrain.launch.torchrun import port_problem

_SET_PDEATHSIG, _SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
GRACE_S = 3.0
POLL_S = 0.5


def serve_ui(port: int, root: Path) -> int:
    """Serve until a signal ends it; returns the exit code. Raises OSError or ValueError where the database
    cannot be opened."""
    uri = connection_uri(root)
    if uri.startswith(("http://", "https://", "databricks")):
        place = store_uri(root)
        quiet_mlflow()
        page = _front_page(uri)
        print(f"the runs are on a server: {place.rstrip('/')}{'/' if page else ''}{page}")
        return 0
    check_address(uri)
    if problem := port_problem(port):
        raise ValueError(f"--port {port}: {problem}; choose another")
    quiet_mlflow()
    open_default_store(root)
    page = f"http://127.0.0.1:{port}/{_front_page(uri)}"
    # the URI may hold a password, and everybody sees the arguments of a process
    environment = {
        **os.environ,
        "MLFLOW_BACKEND_STORE_URI": uri,
        # jobs of MLflow's evaluation service are nobody's here, and are six more processes
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    guard = subprocess.Popen(
        [sys.executable, "-m", "experiments.runs.ui", str(os.getpid()), str(port)],
        env=environment,
        start_new_session=True,
    )
    stopped = False

    def stop(*_: object) -> None:
        nonlocal stopped
        stopped = True
        guard.terminate()

    before = {
        number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    }
    try:
        if _answers(port, guard):
            print(f"{page}  (Ctrl-C ends it)", flush=True)
        code = guard.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        with contextlib.suppress(ProcessLookupError):  # where the guard itself was killed
            os.killpg(guard.pid, signal.SIGKILL)
    return 0 if stopped else code


def _answers(port: int, server: subprocess.Popen[bytes]) -> bool:
    """Wait until somebody listens on the port; False if the server ends before."""
    while server.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
        time.sleep(POLL_S)
    return False


def _front_page(uri: str) -> str:
    """Path of the list of runs; "" where there are none, or nobody answers."""
    from experiments.runs.mlflow_store import MlflowStore

    try:
        return MlflowStore(uri, EXPERIMENT).front_page()
    except Exception:  # a store raises whatever its database or HTTP client does; the address alone is of use
        return ""


def check_address(uri: str) -> None:
    """Raises ValueError for a database address that cannot be read, which the server would print whole."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        if not uri.startswith("file:"):
            make_url(uri)
    except (ArgumentError, ValueError) as error:
        raise ValueError(f"MLFLOW_TRACKING_URI: {one_line(scrubbed(str(error)), 200)}") from None


def _die_with_parent(number: int) -> None:
    """Have the kernel send this process a signal when its parent is gone; Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_PDEATHSIG, number, 0, 0, 0)


def _server(port: str) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--host",
        "127.0.0.1",
        "--port",
        port,
        "--workers",
        "1",
    ]
    # what the server says is no answer of `nava ui`, whose only line on standard output is the address
    return subprocess.Popen(command, stdout=sys.stderr, preexec_fn=lambda: _die_with_parent(signal.SIGTERM))


def _end_all() -> None:
    """End every process below this one."""
    me = psutil.Process()
    for number in (signal.SIGTERM, signal.SIGKILL):
        end = time.monotonic() + GRACE_S
        for process in me.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)
        while time.monotonic() < end and me.children(recursive=True):
            with contextlib.suppress(ChildProcessError):
                os.waitpid(-1, os.WNOHANG)
            time.sleep(0.05)


def guard(parent: int, port: str) -> int:
    """Run the server while the process `parent` lives."""
    _die_with_parent(signal.SIGTERM)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    ended = False

    def stop(*_: object) -> None:
        nonlocal ended
        ended = True

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, stop)
    server = _server(port)
    try:
        while not ended and server.poll() is None and os.getppid() == parent:
            time.sleep(POLL_S)
        return server.poll() or 0
    finally:
        _end_all()


if __name__ == "__main__":
    sys.exit(guard(int(sys.argv[1]), sys.argv[2]))
