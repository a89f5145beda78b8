"""Send spooled runs to MLflow: `python -m experiments.runs.sender SPOOL` follows a spool to its end."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from experiments.runs.spool import SpooledRun, spooled_runs

EXPERIMENT = "nava"
POLL_S = 5.0
IDLE_S = 20.0
RETRY_S = 60.0


def store_uri(root: Path) -> str:
    """Tracking URI: MLFLOW_TRACKING_URI, else the SQLite file in the repository root."""
    if os.environ.get("MLFLOW_TRACKING_URI"):
        return os.environ["MLFLOW_TRACKING_URI"]
    return f"sqlite:///{(root / 'mlflow.db').resolve()}"


def quiet_mlflow() -> None:
    """Configure MLflow before its import: no telemetry, no migration log, short HTTP timeouts."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")


def wait_until_sent(spool: Path, root: Path, patience_s: float) -> bool:
    """Wait for a concurrent sender; False if events are still pending after `patience_s`."""
    end = time.monotonic() + patience_s
    while waiting := any(run.has_pending(store_uri(root)) for run in spooled_runs(spool)):
        if time.monotonic() > end:
            break
        time.sleep(0.5)
    return not waiting


class Unreachable(OSError):
    """The store did not accept an event; it stays in the spool."""


def flush(spool: Path, root: Path) -> int:
    """Send pending events and return how many remain. Raises Unreachable if the store does not respond."""
    for run in spooled_runs(spool):
        run.end_if_abandoned()
    pending = [run for run in spooled_runs(spool) if run.has_pending(store_uri(root))]
    if not pending:
        return 0
    store = _connect(root)
    for run in pending:
        _send(store, run)
    return sum(run.pending(store_uri(root)) for run in spooled_runs(spool))


_store: Any = None


def _connect(root: Path) -> Any:
    global _store
    if _store is None:
        quiet_mlflow()
        from experiments.runs.mlflow_store import MlflowStore

        try:
            _store = MlflowStore(store_uri(root), EXPERIMENT, root)
        except Exception as error:  # MLflow's stores raise whatever their database or HTTP client does
            raise Unreachable(
                f"{store_uri(root)}: MLflow does not answer ({_first_line(error)}); the runs stay in the "
                "spool"
            ) from error
    return _store


def _send(store: Any, run: SpooledRun) -> None:
    try:
        run.send(store)
    except OSError as error:
        raise Unreachable(f"{run.folder}: {_first_line(error)}") from error
    except Exception as error:  # as above: after any failure the events stay in the spool
        raise Unreachable(f"{run.folder}: MLflow refused an event ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]


def follow(spool: Path, root: Path) -> None:
    """Send every few seconds until all runs have ended or died and no new events arrive."""
    idle_since = time.monotonic()
    wait_s = POLL_S
    while True:
        try:
            busy = any(run.has_pending(store_uri(root)) for run in spooled_runs(spool))
            flush(spool, root)
            wait_s = POLL_S
        except Unreachable as error:
            print(f"{time.strftime('%F %T')} {error}", flush=True)
            busy, wait_s = False, min(2 * wait_s, RETRY_S)
        # a live process may write events at any time, so the idle period starts when the last one has ended
        alive = any(run.alive() for run in spooled_runs(spool))
        idle_since = time.monotonic() if busy or alive else idle_since
        if time.monotonic() - idle_since > IDLE_S:
            return
        time.sleep(wait_s)


def sender_lock(spool: Path) -> FileLock:
    """Lock held while sending."""
    spool.mkdir(parents=True, exist_ok=True)
    return FileLock(spool / "sender.lock")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("spool", type=Path)
    parser.add_argument("--root", type=Path, default=Path())
    arguments = parser.parse_args()
    try:
        held = sender_lock(arguments.spool).acquire(blocking=False)
    except Timeout:  # another process is sending
        return 0
    with held:
        os.nice(19)
        follow(arguments.spool, arguments.root)
    return 0


if __name__ == "__main__":
    sys.exit(main())
