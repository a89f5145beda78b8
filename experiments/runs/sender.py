"""Send spooled runs to MLflow: `python -m experiments.runs.sender SPOOL` follows a spool to its end."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import sqlite3
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from experiments.runs.local_store import follow_move
from experiments.runs.owner import silence
from experiments.runs.spool import FOLDER_REFUSED, SpooledRun, problem_of, spooled_runs
from experiments.runs.store_uri import connection_uri, store_uri
from pretrain.files import replacing

EXPERIMENT = "nava"
PROBLEM = "sender.problem"  # in the spool, while the store as a whole does not take anything
WAKE = "sender.wake"  # made in the spool by a run that waits for its end to be sent
LOCK = "sender.lock"
NOT_OURS = "its folder can be written by another user only, who has to send it"
POLL_S = 5.0
WAKE_S = 0.25
IDLE_S = 20.0
RETRY_S = 60.0
NICE = 10  # below the training; at 19 a machine whose cores are all busy would leave it next to nothing


def quiet_mlflow() -> None:
    """Configure MLflow before its import: no telemetry, no migration log, short HTTP timeouts, and no printed
    addresses of runs, which are the tracking URI's and so hold its password."""
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")


def wait_until_sent(spool: Path, root: Path, patience_s: float) -> bool:
    """Wait for a concurrent sender; False if events are still pending after `patience_s`."""
    end = time.monotonic() + patience_s
    while waiting := any(run.has_pending(store_uri(root)) and run.is_ours() for run in spooled_runs(spool)):
        if time.monotonic() > end:
            break
        with contextlib.suppress(OSError):
            (spool / WAKE).touch()  # after an outage it sleeps for up to RETRY_S
        time.sleep(0.5)
    return not waiting


@dataclass(frozen=True)
class Unsent:
    """A run that the store lacks events of; problem: why, "" if it only waits."""

    key: str
    events: int
    problem: str


def wait_while_it_sends(spool: Path, root: Path, patience_s: float) -> None:
    """Wait for a concurrent sender as long as it gets on: until `patience_s` have passed without progress."""

    def left() -> int:
        return sum(run.pending(store_uri(root)) for run in spooled_runs(spool))

    before = left()
    while not wait_until_sent(spool, root, patience_s):
        if (now := left()) >= before:
            return
        before = now


def unsent(spool: Path, root: Path) -> list[Unsent]:
    """The runs of a spool that the store does not have whole."""
    uri = store_uri(root)
    return [
        Unsent(run.key, run.pending(uri), run.sent_to(uri).problem if run.is_ours() else NOT_OURS)
        for run in spooled_runs(spool)
        if run.has_pending(uri)
    ]


def give_up(spool: Path, root: Path, key: str) -> int:
    """Give up what the store cannot be sent of a run; returns the number of events, which stay in the spool.

    Raises ValueError where there is no such run, or nothing says that it cannot be sent.
    """
    run, uri = SpooledRun(spool / key), store_uri(root)
    if key not in {known.key for known in spooled_runs(spool)}:
        raise ValueError(f"{key}: no run in {spool}; `nava tracking flush` names those that are not sent")
    if not run.has_pending(uri):
        raise ValueError(f"{key}: {uri} has all of it; there is nothing to give up")
    if not run.sent_to(uri).problem:
        raise ValueError(f"{key}: it waits, and no fault of it is known; `nava tracking flush` sends it")
    return run.let_go(uri)


def silent_elsewhere(spool: Path) -> list[tuple[str, str]]:
    """(key, what is known and what follows) of the runs of other machines that give no signs."""
    return [(run.key, told) for run in spooled_runs(spool) if (told := silence(run.folder))]


def stuck(folder: Path, root: Path) -> str:
    """Why a run (its spool folder) is not being sent, in one line; "" if it is, or nothing is known yet."""
    run, uri = SpooledRun(folder), store_uri(root)
    if not run.exists() or not run.has_pending(uri):
        return ""
    with contextlib.suppress(OSError):
        return (folder.parent / PROBLEM).read_text(encoding="utf-8").strip()
    return run.sent_to(uri).problem


def wait_for_end(folder: Path, root: Path, patience_s: float) -> None:
    """Give a sender at work the time to send a run's end, or to say why it cannot."""
    spool, end = folder.parent, time.monotonic() + patience_s
    while SpooledRun(folder).has_pending(store_uri(root)) and not stuck(folder, root):
        if time.monotonic() > end or not is_sending(spool):
            return
        with contextlib.suppress(OSError):
            (spool / WAKE).touch()
        time.sleep(WAKE_S)


def is_sending(spool: Path) -> bool:
    """True if a sender is at work on the spool; False where none can be, as it cannot be written."""
    try:
        with sender_lock(spool).acquire(blocking=False):
            return False
    except Timeout:
        return True
    except OSError:
        return False


class Unreachable(OSError):
    """The store did not accept an event; it stays in the spool."""


def flush(spool: Path, root: Path) -> int:
    """Send pending events and return how many remain; a run that cannot be sent holds no other, and its
    `Sent.problem` says why. Raises Unreachable if the store does not respond at all."""
    for run in spooled_runs(spool):
        run.end_if_abandoned()
    pending = [run for run in spooled_runs(spool) if run.has_pending(store_uri(root)) and run.is_ours()]
    if not pending:
        _tell(spool, "")
        return 0
    try:
        store = _connect(root)
        for run in pending:
            _send(store, run)
    except Unreachable as error:
        _tell(spool, str(error))
        raise
    _tell(spool, "")
    return sum(run.pending(store_uri(root)) for run in spooled_runs(spool))


_store: Any = None


def _connect(root: Path) -> Any:
    global _store
    if _store is None or _store.uri != store_uri(root):
        quiet_mlflow()
        from experiments.runs.mlflow_store import MlflowStore

        try:
            open_default_store(root)
            store = MlflowStore(connection_uri(root), EXPERIMENT)
            store.open()
            _store = store
        except Exception as error:  # MLflow's stores raise whatever their database or HTTP client does
            problem = problem_of(error)
            said = problem if problem == FOLDER_REFUSED else f"MLflow does not answer ({problem})"
            raise Unreachable(f"{store_uri(root)}: {said}; the runs stay in the spool") from error
    return _store


def open_default_store(root: Path) -> None:
    """Bring the addresses in a database that moved with its checkout up to date, and say so.

    Raises OSError where the database cannot be written.
    """
    try:
        message = follow_move(connection_uri(root), root, EXPERIMENT)
    except sqlite3.Error as error:
        raise OSError(f"{store_uri(root)}: {error}; is another process at work on it?") from None
    if message:
        print(message, flush=True)


def _send(store: Any, run: SpooledRun) -> None:
    """Send a run; what stops it is kept with it. Raises Unreachable where nothing can be sent now."""
    before = run.sent_to(store.uri).problem
    try:
        run.send(store)
    except Exception as error:  # MLflow's stores raise whatever their database or HTTP client does
        if not store.answers():
            raise Unreachable(f"{store.uri}: MLflow does not answer ({problem_of(error)})") from error
        with contextlib.suppress(OSError):  # the disk is full
            run.note(store.uri, problem_of(error))
    problem = run.sent_to(store.uri).problem
    if problem and problem != before:
        print(f"{time.strftime('%F %T')} {run.key}: not sent whole: {problem}", flush=True)


def _tell(spool: Path, problem: str) -> None:
    """Keep why nothing can be sent at all, for the runs that end meanwhile; "" = it can."""
    path = spool / PROBLEM
    with contextlib.suppress(OSError):
        if problem:
            with replacing(path) as partial:
                partial.write_text(problem, encoding="utf-8")
        else:
            path.unlink(missing_ok=True)


def follow(spool: Path, root: Path) -> None:
    """Send every few seconds until all runs have ended or died and no new events arrive."""
    idle_since = time.monotonic()
    wait_s, left = POLL_S, 0
    while True:
        before = left
        try:
            busy = any(run.has_pending(store_uri(root)) for run in spooled_runs(spool))
            left = flush(spool, root)
            wait_s = POLL_S
        except Unreachable as error:
            print(f"{time.strftime('%F %T')} {error}", flush=True)
            busy, wait_s = False, min(2 * wait_s, RETRY_S)
        # what nobody takes keeps no process alive
        busy = busy and not 0 < before == left
        # a live process may write events at any time, so the idle period starts when the last one has ended
        alive = any(run.alive() for run in spooled_runs(spool))
        idle_since = time.monotonic() if busy or alive else idle_since
        if time.monotonic() - idle_since > IDLE_S:
            return
        _pause(spool, wait_s)


def _pause(spool: Path, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            (spool / WAKE).unlink()
            return
        time.sleep(WAKE_S)


def sender_lock(spool: Path) -> FileLock:
    """Lock held while sending, by any user who can write the spool. Raises Timeout where another one holds it
    who made it for himself alone, OSError where the spool cannot be written."""
    spool.mkdir(parents=True, exist_ok=True)
    path = spool / LOCK
    if path.exists() and not os.access(path, os.W_OK):
        _replace_foreign(path)
    return FileLock(path, mode=0o666 & spool.stat().st_mode)


def _replace_foreign(path: Path) -> None:
    """Remove a lock file that only its owner can open for writing, as earlier versions made them. Raises
    Timeout where he holds it, OSError where this user may not."""
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Timeout(str(path)) from None
        path.unlink()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("spool", type=Path)
    parser.add_argument("--root", type=Path, default=Path())
    arguments = parser.parse_args()
    try:
        # not at once: a run that looks whether a sender is at work holds the lock for a moment
        held = sender_lock(arguments.spool).acquire(timeout=1)
    except Timeout:  # another process is sending
        return 0
    except OSError as error:
        print(f"{arguments.spool}: runs are not sent ({error})", flush=True)
        return 1
    with held:
        os.nice(NICE)
        follow(arguments.spool, arguments.root)
    return 0


if __name__ == "__main__":
    sys.exit(main())
