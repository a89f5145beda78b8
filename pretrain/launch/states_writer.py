"""One training at a time writes states into a place outside of its own folder.

A local place is locked as the folder of a training is. A store has no locks: there `writer.json` beside the
states names who writes, and the command that trains counts a number in it up while it lives.
"""

from __future__ import annotations

import errno
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pretrain.files import read_json, write_json
from pretrain.launch.rank import PATIENCE_S
from pretrain.launch.training_lock import alone
from pretrain.storage import check_reachable, is_file, is_remote, remove_file, writing

WRITER = "writer.json"
OPTION = "checkpoint.folder"
BEAT_S = 20.0
POLL_S = 2.0
READS = 5
DEAD_S = PATIENCE_S  # without a beat; ranks whose command was killed have written their last state by then


@contextmanager
def writing_states(place: Path, out: Path) -> Iterator[None]:
    """Hold a place for the states of the training in `out`; nothing to do where they are in `out` itself.

    One that was killed is waited for until its ranks must have ended: not at all where it trained into this
    `out` of this host, else as long as its lock is held, or for `DEAD_S` without a beat. Raises ValueError in
    one line that names another that is at work, also in the end where another has taken the place meanwhile.
    """
    if place.parent == out:
        yield
    elif not is_remote(place):
        with alone(place, option=OPTION, patience_s=PATIENCE_S, training=out):
            yield
    else:
        wait_for_writer(place, out)
        with _beating(place, out):
            yield


def wait_for_writer(place: Path, out: Path) -> None:
    """Returns once no other training than that in `out` writes its states there.

    Raises ValueError as `writing_states`, OSError where a store does not answer.
    """
    if place.parent == out:
        return
    if not is_remote(place):
        with alone(place, option=OPTION, patience_s=PATIENCE_S, training=out):
            return
    check_reachable(place)
    first = _read(place)
    if not first or _is_of(first, out):
        return
    print(
        f"{place}: looks for {DEAD_S:.0f} s whether another training ({_told(first)}) still writes here, as "
        f"it has not said that it ended; if you know that it has, remove {place / WRITER}",
        file=sys.stderr,
        flush=True,
    )
    end = time.monotonic() + DEAD_S
    while time.monotonic() < end:
        time.sleep(POLL_S)
        now = _read(place)
        if not now or _is_of(now, out):
            return
        if now != first:
            raise ValueError(
                f"{place}: another training is at work here ({_told(now)}); wait for it, or give another "
                f"{OPTION}"
            )


@contextmanager
def _beating(place: Path, out: Path) -> Iterator[None]:
    writer = _Writer(place, out)
    writer.write()
    writer.start()
    try:
        yield
    finally:
        writer.end()
    if writer.taken_by:
        raise ValueError(writer.taken)


class _Writer(threading.Thread):
    """Counts `writer.json` up, and stops this process where it has become another's: both began at once, or
    this one was away for long."""

    def __init__(self, place: Path, out: Path) -> None:
        super().__init__(name="states-writer", daemon=True)
        self.place, self.ended = place, threading.Event()
        self.record = {
            "out": _named(out),
            "host": socket.gethostname(),
            "process": str(os.getpid()),
            "since": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
            "token": secrets.token_hex(8),
            "beat": 0,
        }
        self.taken_by = ""

    @property
    def taken(self) -> str:
        return f"{self.place}: taken over by another training ({self.taken_by}), so this one stopped"

    def write(self) -> None:
        write_json(self.place / WRITER, self.record, through=writing)
        self.record["beat"] += 1

    def run(self) -> None:
        pause_s = POLL_S  # soon after the beginning: another one may have begun at the same time
        while not self.ended.wait(pause_s):
            pause_s = BEAT_S
            with suppress(OSError, ValueError):  # a store that is away: the next beat tells
                if self._is_other(found := _read(self.place)):
                    self.taken_by = _told(found)
                    print(self.taken, file=sys.stderr, flush=True)
                    os.kill(os.getpid(), signal.SIGTERM)
                    return
                self.write()

    def end(self) -> None:
        self.ended.set()
        self.join()
        with suppress(OSError, ValueError):
            if not self._is_other(_read(self.place)):
                remove_file(self.place / WRITER)

    def _is_other(self, found: Mapping[str, Any]) -> bool:
        return bool(found) and found.get("token") != self.record["token"]


def _read(place: Path) -> dict[str, Any]:
    """Who has said that it writes there; empty without one."""
    path = place / WRITER
    for tries_left in reversed(range(READS)):
        try:
            return read_json(path, "remove it if no training writes there") if is_file(path) else {}
        except FileNotFoundError:  # removed in between
            return {}
        except OSError as error:  # EBUSY: of S3, written anew in between
            if error.errno != errno.EBUSY or not tries_left:
                raise
    return {}


def _is_of(found: Mapping[str, Any], out: Path) -> bool:
    """Of an earlier start of the training in `out`, whose folder is locked while it runs."""
    return (found.get("out"), found.get("host")) == (_named(out), socket.gethostname())


def _named(out: Path) -> str:
    return str(out.parent.resolve() / out.name)


def _told(found: Mapping[str, Any]) -> str:
    names = ("out", "process", "host", "since")
    out, process, host, since = (str(found.get(name, "unknown")) for name in names)
    return f"of --out {out}, process {process} on {host}, since {since}"
