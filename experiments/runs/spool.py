"""Read the spool written by `experiments.runs.tracker`, and its unsent events."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from experiments.runs.logged_files import changed, located, release, release_all
from experiments.runs.model_names import identified, other_model
from experiments.runs.owner import OWNER, owner_in, runs_here, silent_since
from experiments.runs.store_uri import public_uri, scrubbed
from experiments.runs.tracker import EVENTS, SpoolTracker, read_event
from pretrain.config import one_line
from pretrain.files import replacing

SENT = "sent.json"
CONFIG = "config.json"
ABANDONED = "nava.abandoned"  # tag: why a run that did not end itself was ended
MAX_EVENTS = 500  # of metrics, sent together
FOLDER_REFUSED = (
    "MLflow takes no plain folder any more; set MLFLOW_TRACKING_URI=sqlite:////PATH/mlflow.db, or unset it "
    "(`mlflow migrate-filestore --source FOLDER --target sqlite:////PATH/mlflow.db` takes old runs over)"
)
PATIENCE = 3  # files in a row that could not be stored, before the others of the run wait too
RUN_LINK = re.compile(r"\(run:([\w.\-]+)\)")  # of Markdown: [text](run:KEY)
# kinds of events that copy files, or need a copied one, and may come after those behind them
FILES = ("artifact", "model", "model_alias")


class Store(Protocol):
    """Destination of runs. Calls may be repeated after a failure."""

    uri: str

    def find(self, key: str) -> str: ...

    def announce(self, key: str, event: Mapping[str, Any], run_id: str = "") -> str: ...

    def start(
        self, key: str, event: Mapping[str, Any], run_ids: Mapping[str, str], run_id: str = ""
    ) -> str: ...

    def metrics(self, run_id: str, events: list[Mapping[str, Any]]) -> None: ...

    def tags(self, run_id: str, event: Mapping[str, Any]) -> None: ...

    def note(self, run_id: str, event: Mapping[str, Any], run_ids: Mapping[str, str]) -> None: ...

    def artifact(self, run_id: str, event: Mapping[str, Any]) -> None: ...

    def model(self, run_id: str, event: Mapping[str, Any]) -> None: ...

    def model_metrics(self, run_id: str, event: Mapping[str, Any]) -> None: ...

    def model_alias(self, run_id: str, event: Mapping[str, Any]) -> None: ...

    def finish(self, run_id: str, event: Mapping[str, Any]) -> None: ...


@dataclass(frozen=True)
class Sent:
    """How far a run was sent, to which store and under which id."""

    uri: str = ""  # without user and password
    run_id: str = ""
    offset: int = 0
    left: tuple[int, ...] = ()  # where the events begin that were passed over: files that were not taken
    problem: str = ""  # why the rest could not be sent, in one line


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
        try:
            values = json.loads(path.read_text())
        except (OSError, ValueError):  # without it everything is sent again, which doubles nothing
            return Sent()
        fields = {name: values[name] for name in ("run_id", "offset", "problem") if name in values}
        return Sent(public_uri(values.get("uri", "")), left=tuple(values.get("left", ())), **fields)

    def sent_to(self, uri: str) -> Sent:
        """How far the run was sent to this store."""
        sent = self.sent()
        return sent if sent.uri == uri else Sent(uri=uri)

    def run_id(self, uri: str) -> str:
        """The run's id in that store; "" if it was not sent there."""
        return self.sent_to(uri).run_id

    def events(self, offset: int = 0) -> Iterator[tuple[int, dict[str, Any]]]:
        """(end offset, event) from a byte offset on.

        An incomplete last line, which is still being written, is left for later; a line that a kill cut short
        is passed over.
        """
        with (self.folder / EVENTS).open("rb") as file:
            file.seek(offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                offset += len(line)
                if (event := read_event(line)) is not None:
                    yield offset, event

    def has_pending(self, uri: str) -> bool:
        """True if this store lacks events."""
        sent = self.sent_to(uri)
        try:
            return bool(sent.left) or (self.folder / EVENTS).stat().st_size > sent.offset
        except OSError:  # a spool that could not be written
            return False

    def is_ours(self) -> bool:
        """True if this user can send the run, whose progress is kept in its folder."""
        return os.access(self.folder, os.W_OK)

    def pending(self, uri: str) -> int:
        """Number of events that this store lacks."""
        sent = self.sent_to(uri)
        return len(sent.left) + sum(1 for _ in self.events(sent.offset))

    def let_go(self, uri: str) -> int:
        """Count what this store lacks as sent, which stays in the spool; returns the number of events."""
        events, sent = self.pending(uri), self.sent_to(uri)
        offset = max((end for end, _ in self.events(sent.offset)), default=sent.offset)
        self._remember(replace(sent, offset=offset, left=(), problem=""))
        release_all((event for _, event in self.events()), self.folder)
        return events

    def note(self, uri: str, problem: str) -> None:
        """Keep why the run could not be sent."""
        sent = self.sent_to(uri)
        if sent.problem != problem:
            self._remember(replace(sent, problem=problem))

    def alive(self) -> bool:
        """True if the run has not ended and its process is alive, or cannot be seen from this machine."""
        owner = self.owner()
        return bool(owner) and runs_here(owner) is not False

    def started(self) -> bool:
        """False for a run that was only announced."""
        return any(event["kind"] == "start" for _, event in self.events())

    def last_end(self) -> tuple[str, int]:
        """(status, milliseconds since 1970) of the run's last end; ("", 0) if it runs or waits."""
        event = self.end_event()
        return (event["status"], event["time_ms"]) if event else ("", 0)

    def end_event(self) -> dict[str, Any]:
        """The run's last end; empty if it runs or waits."""
        last: dict[str, Any] = {}
        for event in self._begins_and_ends():
            last = event if event["kind"] == "finish" else {}
        return last

    def end_if_abandoned(self) -> bool:
        """Write the end event of a process that was killed, or is on another machine and silent for hours;
        True if one was missing."""
        owner, tags = self.owner(), {}
        if not (self.folder / OWNER).is_file() or not self.is_ours():
            return False
        if alive := runs_here(owner):
            return False
        if alive is None:
            if not (since_s := silent_since(self.folder)):
                return False
            since = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(since_s))
            tags = {ABANDONED: f"no sign of process {owner['pid']} of {owner['host']} since {since}"}
        if self.owner() != owner or not (self.folder / OWNER).is_file():  # ended or went on meanwhile
            return False
        status = self._end_of_children() if owner.get("waits") else "KILLED"
        SpoolTracker(self.folder).finish(status, tags, abandoned=True)
        return not (self.folder / OWNER).is_file()

    def start_event(self) -> dict[str, Any]:
        """What the run began with, or went on with the last time; empty without it."""
        last: dict[str, Any] = {}
        for event in self._begins_and_ends():
            last = event if event["kind"] == "start" else last
        return last

    def _begins_and_ends(self) -> Iterator[dict[str, Any]]:
        with (self.folder / EVENTS).open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):  # as in `events`
                    return
                # most lines are metrics, which are not parsed
                if any(kind in line for kind in (b'"announce"', b'"start"', b'"finish"')):
                    event = read_event(line)
                    if event is not None and event["kind"] in ("announce", "start", "finish"):
                        yield event

    def end_below(self, invocation: str) -> str | None:
        """Status with which the run ended below an invocation, "" without; None if it was never below it."""
        found, below = None, False
        for event in self._begins_and_ends():
            if event["kind"] == "start":
                below = event.get("invocation") == invocation
                found = "" if below else found
            elif below and event["kind"] == "finish":
                found = event["status"]
        return found

    def owner(self) -> dict[str, Any]:
        """The process that the run lasts as long as (`owner_in`); empty for a run that has ended."""
        return owner_in(self.folder)

    def _end_of_children(self) -> str:
        """FINISHED if every run below this one did, FAILED if one failed, else KILLED."""
        found = {run.end_below(self.key) for run in spooled_runs(self.folder.parent)} - {None}
        return "FAILED" if "FAILED" in found else "FINISHED" if found == {"FINISHED"} else "KILLED"

    def send(self, store: Store) -> None:
        """Send pending events in order, metrics in batches; progress is saved after every call.

        A file that is not taken is passed over, named in `Sent.problem`, and tried again by the next call: it
        holds neither the metrics nor the end of its run. Raises what the store raises for anything else.
        """
        sent = self._send_left(store, self.sent_to(store.uri))
        behind, failures, ended = sent.offset, 0, False
        batch: list[Mapping[str, Any]] = []
        for offset, event in self.events(sent.offset):
            if event["kind"] != "metrics" or len(batch) >= MAX_EVENTS:
                sent, batch = self._send_batch(store, sent, batch, behind), []
            if event["kind"] == "metrics":
                batch.append(event)
            elif event["kind"] in FILES:
                problem = self._send_file(store, sent.run_id, event) if failures < PATIENCE else sent.problem
                failures = failures + 1 if problem else 0
                left = (*sent.left, behind) if problem else sent.left
                sent = replace(sent, offset=offset, left=left, problem=problem or sent.problem)
                self._remember(sent)
                if not problem:
                    release(event, self.folder)
            else:
                run_id = self._send_event(store, sent.run_id, event)
                problem = self._send_file(store, run_id, event) if event.get("config") else ""
                left = (*sent.left, behind) if problem else sent.left
                sent = replace(sent, run_id=run_id, offset=offset, left=left, problem=problem or sent.problem)
                self._remember(sent)
            behind, ended = offset, event["kind"] == "finish"
        sent = self._send_batch(store, sent, batch, behind)
        if sent.problem and not sent.left:
            self._remember(replace(sent, problem=""))
        if ended and not sent.left:
            release_all((event for _, event in self.events()), self.folder)

    def _send_left(self, store: Store, sent: Sent) -> Sent:
        """Try the files again that were passed over."""
        problem, failures = "", 0
        for start in sent.left:
            event = next((event for _, event in self.events(start)), None)
            failed = ""
            if event is not None:
                failed = self._send_file(store, sent.run_id, event) if failures < PATIENCE else problem
            problem, failures = failed or problem, failures + 1 if failed else 0
            if not failed:
                left = tuple(other for other in sent.left if other != start)
                sent = self._remember(replace(sent, left=left))
                release(event or {}, self.folder)
        return replace(sent, problem=problem) if sent.left else sent

    def _send_file(self, store: Store, run_id: str, event: Mapping[str, Any]) -> str:
        """Send a file or model, or the settings of a start as a file: MLflow cuts its params to a length, and
        they never change. Returns why it was not taken, "" if it was."""
        if event["kind"] == "start":
            event = self._config_file(event["config"])
        found = event
        try:
            found = self._found(event) if "path" in event else event
            getattr(store, found["kind"])(run_id, found)
        except Exception as error:  # a store raises whatever its database, disk or HTTP client does
            return f"{found.get('path') or found['kind']}: not stored ({problem_of(error)})"
        return ""

    def _found(self, event: Mapping[str, Any]) -> dict[str, Any]:
        """The event of a file or model with where it is now (`path`, `content`), and `changed`: why that is
        not what was logged, "" where it is. A model is known by the ids in its folder."""
        found = located(event, self.folder)
        tags = event.get("tags", {})
        ids = event["kind"] == "model" and identified(tags)
        return {
            **found,
            "changed": other_model(Path(found["content"]), tags) if ids else changed(found),
        }

    def _config_file(self, config: Mapping[str, Any]) -> dict[str, Any]:
        path = self.folder / CONFIG
        with replacing(path) as partial:
            partial.write_text(json.dumps(config, indent=1))
        return {"kind": "artifact", "path": str(path.resolve()), "folder": ""}

    def _send_event(self, store: Store, run_id: str, event: Mapping[str, Any]) -> str:
        """Send one event; returns the run's id, which the first event creates."""
        if event["kind"] == "announce":
            return store.announce(self.key, event, run_id)
        if event["kind"] == "start":
            known = self._siblings(store.uri, set(event["parents"].values()))
            above = self._linked(store, {event["invocation"]}) if event.get("invocation") else {}
            return store.start(self.key, event, {**known, **above}, run_id)
        if event["kind"] == "note":
            store.note(run_id, event, self._linked(store, linked_runs(event["text"])))
            return run_id
        getattr(store, event["kind"])(run_id, event)
        return run_id

    def _send_batch(self, store: Store, sent: Sent, batch: list[Mapping[str, Any]], behind: int) -> Sent:
        if not batch:
            return sent
        store.metrics(sent.run_id, batch)
        return self._remember(replace(sent, offset=behind))

    def _remember(self, sent: Sent) -> Sent:
        # replaced atomically: a torn offset would send events twice or never
        with replacing(self.folder / SENT) as partial:
            partial.write_text(json.dumps(vars(sent)))
        return sent

    def _linked(self, store: Store, keys: set[str]) -> dict[str, str]:
        """Ids of other runs in this store; a run of this spool that it has not got yet is announced."""
        found = self._siblings(store.uri, keys)
        for key in [key for key, run_id in found.items() if not run_id]:
            run = SpooledRun(self.folder.parent / key)
            found[key] = store.find(key)
            if not found[key] and run.exists() and (event := run.start_event()):
                found[key] = store.announce(key, event)
        return found

    def _siblings(self, uri: str, keys: set[str]) -> dict[str, str]:
        """Run key -> id in this store."""
        spool = self.folder.parent
        return {key: SpooledRun(spool / key).run_id(uri) for key in keys}


def children(spool: Path, invocation: str) -> list[SpooledRun]:
    """The runs below an invocation, oldest first. One that several went on with is below the last of them."""
    return [run for run in spooled_runs(spool) if run.start_event().get("invocation") == invocation]


def linked_runs(text: str) -> set[str]:
    """Keys of the runs that a description links to."""
    return {match[1] for match in RUN_LINK.finditer(text)}


def problem_of(error: Exception) -> str:
    """What a store raised, in one line without secrets."""
    if "migrate-filestore" in str(error):  # MLflow's own words are several lines
        return FOLDER_REFUSED
    return f"{type(error).__name__}: {one_line(scrubbed(str(error)), 300)}"


def spooled_runs(spool: Path) -> list[SpooledRun]:
    """All runs of a spool that this user can read, oldest first."""
    return [SpooledRun(path.parent) for path in sorted(spool.glob(f"*/{EVENTS}")) if os.access(path, os.R_OK)]
