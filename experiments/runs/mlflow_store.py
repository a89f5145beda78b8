"""Send spooled events to MLflow.

The only module that imports MLflow, which takes seconds: import it lazily.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException

from experiments.runs.local_store import database_of
from experiments.runs.mlflow_datasets import datasets_of
from experiments.runs.mlflow_experiment import find_experiment, open_experiment
from experiments.runs.mlflow_models import LoggedModels
from experiments.runs.mlflow_names import (
    MAX_PARAM,
    MAX_TAG,
    distinct_name,
    flattened,
    taken_name,
    taken_text,
)
from experiments.runs.mlflow_versions import ABSENT
from experiments.runs.mlflow_view import EXPERIMENT_TAGS, VIEW, page_of, with_columns, with_links
from experiments.runs.resumed import CHANGED, changed_tags
from experiments.runs.store_uri import public_uri, scrubbed
from pretrain.config import one_line

KEY_TAG = "nava.run"
PARENT, NOTE = "mlflow.parentRunId", "mlflow.note.content"
ANNOUNCED = "nava.announced"
STARTS = "nava.starts_ms"  # times of the starts of which all has arrived
STARTED = "nava.started"  # set when all of a start has arrived: tags, params, inputs
# what MLflow did not take as it was: name in MLflow -> original name, or -> why
MAPPED, DROPPED, TRUNCATED = "nava.mapped.", "nava.dropped.", "nava.truncated."
CHANGED_ARTIFACT = "nava.changed_artifact."
MAX_METRICS = 1000
MAX_PARAMS = 100
MAX_STARTS = 300
_Entry = TypeVar("_Entry")
# MLflow answers 400 for whatever its database raises, also where only the connection is gone
_BROKEN = re.compile(r"(?i)InterfaceError|InternalError|Disconnect|ResourceClosed|PendingRollback|connection")


class MlflowStore:
    """One experiment of an MLflow server or database. Methods are idempotent, so they can be retried.

    A single value that MLflow refuses is dropped and named in the run's tags; anything else is raised.
    uri: may hold a login; `self.uri` does not.
    """

    def __init__(self, uri: str, experiment: str) -> None:
        for name in ("alembic", "mlflow.store.db.utils"):
            logging.getLogger(name).setLevel(logging.ERROR)
        self.uri = public_uri(uri)
        self.client = MlflowClient(tracking_uri=uri)
        self._mapped: dict[str, dict[str, str]] = {}  # run id -> name in MLflow -> original
        self._noted: set[tuple[str, str]] = set()
        self._experiment, self._database = experiment, database_of(uri)

    @cached_property
    def experiment_id(self) -> str:
        """The experiment, created where there is none."""
        return open_experiment(self.client, self._experiment, self._database)

    def open(self) -> str:
        """Id of the experiment. Raises what the store raises where it does not respond."""
        return self.experiment_id

    def front_page(self) -> str:
        """Path of the list of runs with its columns in MLflow's pages; "" where there is no experiment."""
        found = find_experiment(self.client, self._experiment)
        if found is None:
            return ""
        for tag, value in {**EXPERIMENT_TAGS, VIEW: with_columns(None, ())}.items():
            if tag not in found.tags:  # an experiment of an earlier version
                self.client.set_experiment_tag(found.experiment_id, tag, value)
        return page_of(found.experiment_id)

    def answers(self) -> bool:
        """True if the store responds at all."""
        try:
            self.client.get_experiment_by_name(self._experiment)
        except Exception:  # a store raises whatever its database or HTTP client does
            return False
        return True

    def announce(self, key: str, event: Mapping[str, Any], run_id: str = "") -> str:
        """Create or find a run that will start later; returns its MLflow id. run_id: as for `start`."""
        run_id = self._known(key, run_id)
        if not run_id:
            run_id = self._create(key, event, {ANNOUNCED: "true"})
            self._tags(run_id, {**event["tags"], **self._nested(event, {})})
        self.client.update_run(run_id, status="SCHEDULED")
        return run_id

    def start(self, key: str, event: Mapping[str, Any], run_ids: Mapping[str, str], run_id: str = "") -> str:
        """Create the run, or resume the one with this key; returns its MLflow id.

        run_id: that it was sent under before, "" = none. A start of which only a part has arrived is sent
        again as a whole. Raises ValueError where the run was deleted.
        """
        run_id = self._known(key, run_id) or self._create(key, event, {})
        run = self.client.get_run(run_id)
        self.client.update_run(run_id, status="RUNNING")
        parents = {
            name: run_ids.get(parent) or self.find(parent) for name, parent in event["parents"].items()
        }
        tags = {**event["tags"], **_parent_tags(event["parents"], parents)}
        tags |= {f"input.{path}": md5 for path, md5 in event["inputs"].items()}
        resumed = STARTED in run.data.tags
        starts = run.data.tags.get(STARTS, str(run.info.start_time)).split()
        if resumed and str(event["time_ms"]) in starts:  # as all events are sent again
            return run_id
        if resumed:
            self._resume(run, event, tags)
        self._tags(run_id, {**tags, **self._nested(event, run_ids)})
        if not resumed:
            params = event.get("params")
            self._log_params(run_id, event["config"] if params is None else params)
        self._log_inputs(run_id, event)
        starts = [*(starts if resumed else ()), str(event["time_ms"])][-MAX_STARTS:]
        self.client.set_tag(run_id, STARTS, " ".join(starts))
        self.client.set_tag(run_id, STARTED, "true")
        if ANNOUNCED in run.data.tags:
            self.client.delete_tag(run_id, ANNOUNCED)
        return run_id

    def _known(self, key: str, run_id: str) -> str:
        """The id that a run was sent under, where the store has it still, in whichever experiment; else that
        of the run with its key, "" without."""
        if run_id:
            try:
                self._check_active(run_id)
            except MlflowException as error:
                if error.error_code != ABSENT:
                    raise
            else:
                return run_id
        return self.find(key)

    def _nested(self, event: Mapping[str, Any], run_ids: Mapping[str, str]) -> dict[str, str]:
        """The tag by which MLflow shows a run below another, that of its invocation."""
        above = event.get("invocation", "")
        found = above and (run_ids.get(above) or self.find(above))
        return {PARENT: found} if found else {}

    def _create(self, key: str, event: Mapping[str, Any], tags: Mapping[str, str]) -> str:
        run = self.client.create_run(
            self.experiment_id,
            start_time=event["time_ms"],
            tags={KEY_TAG: key, **tags},
            run_name=taken_text(event["name"], 250),
        )
        return run.info.run_id

    def _resume(self, run: Run, event: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        """Say what a resumed run changed: params, which MLflow never changes, and the start's tags (commit,
        inputs, parents), which become those that it goes on with."""
        run_id, said = run.info.run_id, {"nava.resumed_at_ms": str(event["time_ms"])}
        for name, value in flattened(event["config"]):
            before, after = run.data.params.get(taken_name(name)), taken_text(value, MAX_PARAM)
            if before is not None and before != after:
                said[f"{CHANGED}{name}"] = f"{before} -> {after}"
        stored = self.read(run_id)["tags"]
        changes = changed_tags(stored, {name: taken_text(value, MAX_TAG) for name, value in tags.items()})
        # before the tags themselves, so that a try that breaks off in between is made again as a whole
        self._tags(run_id, {**said, **changes.said})
        for name in changes.gone:
            self.client.delete_tag(run_id, self._name(run_id, name))

    def find(self, key: str) -> str:
        """MLflow id of the run with this key; "" if there is none."""
        return next(iter(self.search(f"tags.`{KEY_TAG}` = '{key}'")), "")

    def search(self, condition: str) -> list[str]:
        """Ids of the runs that meet a condition of MLflow's search, newest first."""
        experiment = find_experiment(self.client, self._experiment)
        if experiment is None:
            return []
        order = ["attributes.start_time DESC"]
        found = self.client.search_runs([experiment.experiment_id], condition, max_results=20, order_by=order)
        return [run.info.run_id for run in found]

    def _log_params(self, run_id: str, config: Mapping[str, Any]) -> None:
        params = []
        for name, value in flattened(config):
            fitted, text = self._name(run_id, name), taken_text(value, MAX_PARAM)
            params.append(Param(fitted, text))
            if len(str(value)) > MAX_PARAM:
                self._note(run_id, f"{TRUNCATED}{fitted}", f"{len(str(value))} characters")
        self._send(
            run_id, params, MAX_PARAMS, lambda some: self.client.log_batch(run_id, params=some), _name_of
        )

    def _log_inputs(self, run_id: str, event: Mapping[str, Any]) -> None:
        self.models.log_inputs(run_id, event.get("models", {}))
        self._send(
            run_id,
            datasets_of(event),
            MAX_PARAMS,
            lambda some: self.client.log_inputs(run_id, some),
            lambda entry: f"input.{entry.dataset.name}",
        )

    def metrics(self, run_id: str, events: list[Mapping[str, Any]]) -> None:
        self._send_metrics(run_id, events)

    def _send_metrics(
        self, run_id: str, events: list[Mapping[str, Any]], model_id: str | None = None
    ) -> None:
        entries = [
            Metric(self._name(run_id, name), value, event["time_ms"], event["step"], model_id=model_id)
            for event in events
            for name, value in event["values"].items()
        ]
        self._send(
            run_id, entries, MAX_METRICS, lambda some: self.client.log_batch(run_id, metrics=some), _name_of
        )

    def tags(self, run_id: str, event: Mapping[str, Any]) -> None:
        self._tags(run_id, event["values"])

    def note(self, run_id: str, event: Mapping[str, Any], run_ids: Mapping[str, str]) -> None:
        """Set a run's description. run_ids: of the runs that it links to, "" = not in this store."""
        self._tags(run_id, {NOTE: with_links(event["text"], self.experiment_id, run_ids)})
        if event.get("columns"):
            before = self.client.get_experiment(self.experiment_id).tags.get(VIEW)
            if (view := with_columns(before, event["columns"])) != before:
                self.client.set_experiment_tag(self.experiment_id, VIEW, view)

    def _tags(self, run_id: str, tags: Mapping[str, Any]) -> None:
        entries = [
            RunTag(self._name(run_id, name), taken_text(value, MAX_TAG)) for name, value in tags.items()
        ]
        self._send(
            run_id, entries, MAX_PARAMS, lambda some: self.client.log_batch(run_id, tags=some), _name_of
        )

    def _send(
        self,
        run_id: str,
        entries: Sequence[_Entry],
        limit: int,
        send: Callable[[list[_Entry]], Any],
        name_of: Callable[[_Entry], str],
    ) -> None:
        """Send in pieces of `limit`; a piece that MLflow refuses is halved until the value at fault is
        found, which is dropped and named."""
        waiting = [list(entries[first : first + limit]) for first in range(0, len(entries), limit)]
        while waiting:
            piece = waiting.pop(0)
            try:
                send(piece)
            except MlflowException as error:
                if not _is_refusal(error):
                    raise
                self._check_active(run_id)
                if len(piece) == 1:
                    self._note(
                        run_id, f"{DROPPED}{taken_name(name_of(piece[0]))}", scrubbed(one_line(error, 300))
                    )
                else:
                    middle = len(piece) // 2
                    waiting[:0] = [piece[:middle], piece[middle:]]

    def _check_active(self, run_id: str) -> None:
        if self.client.get_run(run_id).info.lifecycle_stage != "active":
            raise ValueError(
                f"run {run_id} was deleted in MLflow; restore it there to send the rest of it, or give that "
                "up: `nava tracking flush --let-go` with the run's key"
            )

    def _name(self, run_id: str, name: str) -> str:
        """The name in MLflow; another one than the given is noted in the run's tags."""
        if taken_name(name) == name:
            return name
        if run_id not in self._mapped:
            tags = self.client.get_run(run_id).data.tags
            self._mapped[run_id] = {
                tag.removeprefix(MAPPED): original for tag, original in tags.items() if tag.startswith(MAPPED)
            }
        known = self._mapped[run_id]
        fitted = distinct_name(name, known)
        if fitted not in known:
            known[fitted] = name
            self._note(run_id, f"{MAPPED}{fitted}", name)
        return fitted

    def _note(self, run_id: str, tag: str, text: str) -> None:
        """A tag, and a line in the sender's log at the first time."""
        if (run_id, tag) not in self._noted:
            self._noted.add((run_id, tag))
            print(f"run {run_id}: {tag.removeprefix('nava.')} = {taken_text(text, 300)}", flush=True)
        self.client.set_tag(run_id, taken_name(tag), taken_text(text, MAX_TAG))

    def artifact(self, run_id: str, event: Mapping[str, Any]) -> None:
        """Store a file or folder. What is gone, or is not what was logged, is not stored; a tag says so."""
        path, content = Path(event["path"]), Path(event.get("content") or event["path"])
        tag = CHANGED_ARTIFACT + "/".join(filter(None, (event["folder"], path.name)))
        if not content.exists():
            self._tags(run_id, {f"nava.missing_artifact.{path.name}": str(path)})
        elif event.get("changed"):
            self._note(run_id, tag, f"not stored: {event['changed']}")
        else:
            self._store_artifact(run_id, content, event["folder"])
            if (run_id, tag) in self._noted:  # the run has logged it once more, as it is now
                self._noted.discard((run_id, tag))
                self.client.delete_tag(run_id, taken_name(tag))

    def _store_artifact(self, run_id: str, content: Path, folder: str) -> None:
        if content.is_dir():
            self.client.log_artifacts(run_id, str(content), folder or content.name)
        else:
            self.client.log_artifact(run_id, str(content), folder or None)

    @cached_property
    def models(self) -> LoggedModels:
        return LoggedModels(self.client, lambda: self.experiment_id, self._tags)

    def model(self, run_id: str, event: Mapping[str, Any]) -> None:
        self.models.log(run_id, event)

    def model_metrics(self, run_id: str, event: Mapping[str, Any]) -> None:
        """Metrics of a model, of which this run is the source."""
        if model_id := self.models.measured(run_id, event["checkpoint"]):
            self._send_metrics(run_id, [event], model_id)

    def model_alias(self, run_id: str, event: Mapping[str, Any]) -> None:
        self.models.move_alias(run_id, event)

    def read(self, run_id: str) -> dict[str, Any]:
        """{status, tags, params} of a stored run, tags under their original names."""
        run = self.client.get_run(run_id)
        tags = dict(run.data.tags)
        for tag, original in run.data.tags.items():
            if tag.startswith(MAPPED) and (fitted := tag.removeprefix(MAPPED)) in tags:
                tags[original] = tags.pop(fitted)
        return {"status": run.info.status, "tags": tags, "params": dict(run.data.params)}

    def finish(self, run_id: str, event: Mapping[str, Any]) -> None:
        self._check_active(run_id)
        self._tags(run_id, event.get("tags", {}))
        self.client.set_terminated(run_id, status=event["status"], end_time=event["time_ms"])


def _name_of(entry: Metric | Param | RunTag) -> str:
    return entry.key


def _is_refusal(error: MlflowException) -> bool:
    """True if MLflow will not take this value at any time; False for a missing right or a busy server."""
    broken = error.error_code == "BAD_REQUEST" and _BROKEN.search(str(error))
    return error.get_http_status_code() in (400, 413, 422) and not broken


def _parent_tags(parents: Mapping[str, str], run_ids: Mapping[str, str]) -> dict[str, str]:
    """parents: name -> run key; run_ids: name -> MLflow id, "" if unknown."""
    known = {name: run_id for name, run_id in run_ids.items() if run_id}
    return {f"parent.{name}": run_id for name, run_id in known.items()} | {
        f"parent_key.{name}": key for name, key in parents.items()
    }
