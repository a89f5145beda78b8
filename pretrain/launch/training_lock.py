"""One command at a time trains into a folder, and only once the ranks of a killed one have ended."""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from pretrain.files import read_json, write_json
from pretrain.launch.rank import wait_for_ranks

_held: dict[Path, int] = {}  # folder -> the process that holds it, as a forked one does not


@contextmanager
def alone(
    out: Path,
    work: str = "training",
    option: str = "folder",
    patience_s: float = 0.0,
    training: Path | None = None,
) -> Iterator[None]:
    """Hold the folder of a training, by a lock beside it: the folder itself may be moved aside.

    Nested calls of a process are one. Of several nodes the leading one alone calls this. Waits for the ranks
    of an earlier start. work, option: as a refusal calls them. patience_s: how long to wait for another
    command first. training: the folder that is trained into, where `out` gets its states only; ranks of a
    killed one are waited for in its own. Raises ValueError in one line that names who holds it. Where the
    file system has no locks, or the place beside the folder cannot be written, it says so and goes on
    without.
    """
    folder = out.parent.resolve() / out.name
    if _held.get(folder) == os.getpid():
        yield
        return
    lock, holder = _locked(folder, work, option, patience_s), folder.with_name(f".{folder.name}.holder")
    _held[folder] = os.getpid()
    try:
        if lock:
            if training and (before := _read(holder).get("training")):
                wait_for_ranks(Path(before))
            with suppress(OSError):
                write_json(holder, _this_process(training))
        wait_for_ranks(folder)
        yield
    finally:
        del _held[folder]
        if lock:
            with suppress(OSError):
                holder.unlink(missing_ok=True)
            lock.release()


def _locked(folder: Path, work: str, option: str, patience_s: float) -> FileLock | None:
    """The lock, taken; None where there can be none. Raises ValueError where another process has it."""
    lock = FileLock(folder.with_name(f".{folder.name}.lock"), timeout=0, thread_local=False)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
        except Timeout:
            if patience_s:
                print(f"{folder}: waits for another {work}{_of(folder)}", file=sys.stderr, flush=True)
            lock.acquire(timeout=patience_s)
    except Timeout:
        raise ValueError(
            f"{folder}: another {work} is at work here{_of(folder)}; wait for it, or give another {option}"
        ) from None
    except (OSError, NotImplementedError) as error:  # the latter from filelock, of a file system
        logging.getLogger(__name__).warning(
            "%s: no lock can be held beside it (%s); start no second command on it", folder, error
        )
        return None
    return lock


def _this_process(training: Path | None) -> dict[str, str]:
    since = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    own = {"process": str(os.getpid()), "host": socket.gethostname(), "since": since}
    return own | ({"training": str(training)} if training else {})


def _of(folder: Path) -> str:
    """Who holds the folder, in brackets; "" where that is not known."""
    held = _read(folder.with_name(f".{folder.name}.holder"))
    with suppress(KeyError):
        of = f"of --out {held['training']}, " if "training" in held else ""
        return f" ({of}process {held['process']} on {held['host']}, since {held['since']})"
    return ""


def _read(holder: Path) -> dict[str, str]:
    """Who said last that it holds a folder; empty where that is not known."""
    with suppress(OSError, ValueError):
        return read_json(holder, "remove it")
    return {}
