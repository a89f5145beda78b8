"""Read the spool written by `experiments.runs.tracker`, and its unsent events."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import psutil

from experiments.runs.tracker import EVENTS, OWNER, SpoolTracker

SENT = "sent.json"


class Store(Protocol):
    """Destination of runs. Calls may be repeated after a failure."""

    uri: str

    def announce(self, key: str, event: Mapping[str, Any]) -> str: ...

    def start(self, key: str, event: Mapping[str, Any], run_ids: Mapping[str, str]) -> str: ...

    def metrics(self, run_id: str, events: list[Mapping[str, Any]]) -> None: ...

    def tags(self, run_id: str, event: Mapping[str, Any]) -> None: ...

    def artifact(self, run_id: str, event: Mapping[str, Any]) -> None: ...

    def model(self, run_id: str, event: Mapping[str, Any]) -> None: ...

    def finish(self, run_id: str, event: Mapping[str, Any]) -> None: ...


@dataclass(frozen=True)
class Sent:
    """How far a run was sent, to which store and under which id."""

    uri: str = ""
    run_id: str = ""
    offset: int = 0


class SpooledRun:
    """Spool folder of one run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def key(self) -> str:
        return self.folder.name

    def exists(self) -> bool:
        return (self.folder / EVENTS).is_file()

    def sent(self) -> Sent:
        path = self.folder / SENT
        return Sent(**json.loads(path.read_text())) if path.is_file() else Sent()

    def run_id(self, uri: str) -> str:
        """The run's id in that store; "" if it was not sent there."""
        sent = self.sent()
        return sent.run_id if sent.uri == uri else ""

    def events(self, offset: int = 0) -> Iterator[tuple[int, dict[str, Any]]]:
        """(end offset, event) from a byte offset on.

        An incomplete last line, which is still being written, is left for later.
        """
        with (self.folder / EVENTS).open("rb") as file:
            file.seek(offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                offset += len(line)
                yield offset, json.loads(line)

    def has_pending(self, uri: str) -> bool:
        """True if this store lacks events."""
        sent = self.sent()
        return (self.folder / EVENTS).stat().st_size > (sent.offset if sent.uri == uri else 0)

    def pending(self, uri: str) -> int:
        """Number of events that this store lacks."""
        sent = self.sent()
        return sum(1 for _ in self.events(sent.offset if sent.uri == uri else 0))

    def alive(self) -> bool:
        """True if the run has not ended and its process is alive."""
        path = self.folder / OWNER
        if not path.is_file():
            return False
        owner = json.loads(path.read_text())
        try:
            # a process that started later has reused the pid
            return psutil.Process(owner["pid"]).create_time() <= owner["time_s"]
        except psutil.NoSuchProcess:
            return False

    def started(self) -> bool:
        """False for a run that was only announced."""
        return any(event["kind"] == "start" for _, event in self.events())

    def last_end(self) -> tuple[str, int]:
        """(status, milliseconds since 1970) of the run's last end; ("", 0) if it runs or waits."""
        last = ("", 0)
        for _, event in self.events():
            if event["kind"] in ("announce", "start"):
                last = ("", 0)
            elif event["kind"] == "finish":
                last = (event["status"], event["time_ms"])
        return last

    def end_if_abandoned(self) -> bool:
        """Write the end event of a killed process; True if one was missing."""
        if not (self.folder / OWNER).is_file() or self.alive():
            return False
        SpoolTracker(self.folder).finish("KILLED")
        return True

    def send(self, store: Store) -> None:
        """Send pending events in order, metrics in batches; progress is saved after every call."""
        sent = self.sent()
        if sent.uri != store.uri:
            sent = Sent(uri=store.uri)
        batch: list[Mapping[str, Any]] = []
        behind = sent.offset
        for offset, event in self.events(sent.offset):
            if event["kind"] == "metrics":
                batch.append(event)
            else:
                sent = self._send_batch(store, sent, batch, behind)
                batch = []
                sent = self._remember(Sent(store.uri, self._send_event(store, sent.run_id, event), offset))
            behind = offset
        self._send_batch(store, sent, batch, behind)

    def _send_event(self, store: Store, run_id: str, event: Mapping[str, Any]) -> str:
        """Send one event; returns the run's id, which the first event creates."""
        if event["kind"] == "announce":
            return store.announce(self.key, event)
        if event["kind"] == "start":
            return store.start(self.key, event, self._siblings(store.uri))
        getattr(store, event["kind"])(run_id, event)
        return run_id

    def _send_batch(self, store: Store, sent: Sent, batch: list[Mapping[str, Any]], behind: int) -> Sent:
        if not batch:
            return sent
        store.metrics(sent.run_id, batch)
        return self._remember(Sent(store.uri, sent.run_id, behind))

    def _remember(self, sent: Sent) -> Sent:
        # replaced atomically: a torn offset would send events twice or never
        partial = self.folder / f"{SENT}.{os.getpid()}"
        partial.write_text(json.dumps(vars(sent)))
        partial.replace(self.folder / SENT)
        return sent

    def _siblings(self, uri: str) -> dict[str, str]:
        return {run.key: run.run_id(uri) for run in spooled_runs(self.folder.parent)}


def spooled_runs(spool: Path) -> list[SpooledRun]:
    """All runs of a spool, oldest first."""
    return [SpooledRun(path.parent) for path in sorted(spool.glob(f"*/{EVENTS}"))]
