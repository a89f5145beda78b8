"""Send spooled events to MLflow.

The only module that imports MLflow, which takes seconds: import it lazily.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag

KEY_TAG = "nava.run"
ANNOUNCED = "nava.announced"
MAX_METRICS = 1000
MAX_PARAMS = 100
MAX_COPIED_BYTES = 256 << 20


class MlflowStore:
    """One experiment of an MLflow server or database. Methods are idempotent, so they can be retried."""

    def __init__(self, uri: str, experiment: str, root: Path) -> None:
        for name in ("alembic", "mlflow.store.db.utils"):
            logging.getLogger(name).setLevel(logging.ERROR)
        self.uri = uri
        self.client = MlflowClient(tracking_uri=uri)
        self.experiment_id = self._experiment(experiment, root)

    def _experiment(self, name: str, root: Path) -> str:
        found = self.client.get_experiment_by_name(name)
        if found:
            return found.experiment_id
        # a database stores no files, so artifacts go beside it; a server has its own artifact store
        local = (root / "mlartifacts").resolve().as_uri() if self.uri.startswith("sqlite:") else None
        return self.client.create_experiment(name, artifact_location=local)

    def announce(self, key: str, event: Mapping[str, Any]) -> str:
        """Create or find a run that will start later; returns its MLflow id."""
        run_id = self.find(key)
        if not run_id:
            tags = {KEY_TAG: key, ANNOUNCED: "true", **event["tags"]}
            run_id = self.client.create_run(self.experiment_id, tags=tags, run_name=event["name"]).info.run_id
        self.client.update_run(run_id, status="SCHEDULED")
        return run_id

    def start(self, key: str, event: Mapping[str, Any], run_ids: Mapping[str, str]) -> str:
        """Create the run, or resume the one with this key; returns its MLflow id."""
        run_id = self.find(key)
        announced = bool(run_id) and ANNOUNCED in self.client.get_run(run_id).data.tags
        if run_id:
            self.client.update_run(run_id, status="RUNNING")
        if run_id and not announced:
            self.client.set_tag(run_id, "nava.resumed_at_ms", str(event["time_ms"]))
            return run_id
        tags = {KEY_TAG: key, **event["tags"], **_parent_tags(event["parents"], run_ids)}
        tags |= {f"input.{path}": md5 for path, md5 in event["inputs"].items()}
        if announced:
            self.client.log_batch(run_id, tags=[RunTag(name, value) for name, value in tags.items()])
        else:
            run = self.client.create_run(
                self.experiment_id, start_time=event["time_ms"], tags=tags, run_name=event["name"]
            )
            run_id = run.info.run_id
        self._log_config(run_id, event["config"])
        self._log_inputs(run_id, event["inputs"])
        if announced:
            self.client.delete_tag(run_id, ANNOUNCED)
        return run_id

    def find(self, key: str) -> str:
        """MLflow id of the run with this key; "" if there is none."""
        found = self.client.search_runs([self.experiment_id], f"tags.`{KEY_TAG}` = '{key}'", max_results=1)
        return found[0].info.run_id if found else ""

    def _log_config(self, run_id: str, config: Mapping[str, Any]) -> None:
        if not config:
            return
        self.client.log_dict(run_id, dict(config), "config.json")
        params = [Param(name, str(value)[:6000]) for name, value in flattened(config)]
        for first in range(0, len(params), MAX_PARAMS):
            self.client.log_batch(run_id, params=params[first : first + MAX_PARAMS])

    def _log_inputs(self, run_id: str, inputs: Mapping[str, str]) -> None:
        datasets = [
            DatasetInput(
                Dataset(
                    name=path,
                    digest=md5[:36],
                    source_type="local",
                    source=json.dumps({"uri": path, "md5": md5}),
                ),
                tags=[InputTag("mlflow.data.context", "input")],
            )
            for path, md5 in inputs.items()
            if not path.endswith(".py")
        ]
        if datasets:
            self.client.log_inputs(run_id, datasets)

    def metrics(self, run_id: str, events: list[Mapping[str, Any]]) -> None:
        entries = [
            Metric(name, value, event["time_ms"], event["step"])
            for event in events
            for name, value in event["values"].items()
        ]
        for first in range(0, len(entries), MAX_METRICS):
            self.client.log_batch(run_id, metrics=entries[first : first + MAX_METRICS])

    def tags(self, run_id: str, event: Mapping[str, Any]) -> None:
        self.client.log_batch(run_id, tags=[RunTag(name, value) for name, value in event["values"].items()])

    def artifact(self, run_id: str, event: Mapping[str, Any]) -> None:
        path = Path(event["path"])
        if path.is_dir():
            self.client.log_artifacts(run_id, str(path), event["folder"] or path.name)
        elif path.is_file():
            self.client.log_artifact(run_id, str(path), event["folder"] or None)
        else:
            self.client.set_tag(run_id, f"nava.missing_artifact.{path.name}", str(path))

    def model(self, run_id: str, event: Mapping[str, Any]) -> None:
        """Log a model folder; large ones by path and hash only."""
        path = Path(event["path"])
        if not path.is_dir():
            self.client.set_tag(run_id, f"nava.missing_model.{event['name']}", str(path))
            return
        tags = {**event["tags"], "nava.path": str(path)}
        model = self.client.create_logged_model(
            self.experiment_id, name=event["name"], source_run_id=run_id, tags=tags, model_type="safetensors"
        )
        if sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) <= MAX_COPIED_BYTES:
            self.client.log_model_artifacts(model.model_id, str(path))
        else:
            self._log_reference(model.model_id, tags)
        self.client.finalize_logged_model(model.model_id, "READY")

    def _log_reference(self, model_id: str, tags: Mapping[str, str]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "reference.json").write_text(json.dumps(dict(tags), indent=1))
            self.client.log_model_artifacts(model_id, folder)

    def read(self, run_id: str) -> dict[str, Any]:
        """{status, tags, params} of a stored run."""
        run = self.client.get_run(run_id)
        return {"status": run.info.status, "tags": dict(run.data.tags), "params": dict(run.data.params)}

    def finish(self, run_id: str, event: Mapping[str, Any]) -> None:
        self.client.set_terminated(run_id, status=event["status"], end_time=event["time_ms"])


def _parent_tags(parents: Mapping[str, str], run_ids: Mapping[str, str]) -> dict[str, str]:
    known = {name: run_ids[key] for name, key in parents.items() if run_ids.get(key)}
    tags = {f"parent.{name}": run_id for name, run_id in known.items()} | {
        f"parent_key.{name}": key for name, key in parents.items()
    }
    first = next(iter(parents), None)
    return tags | ({"mlflow.parentRunId": known[first]} if first in known else {})


def flattened(config: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of a nested mapping as (dotted name, value)."""
    for name, value in config.items():
        path = f"{where}.{name}" if where else str(name)
        if isinstance(value, Mapping) and value:
            yield from flattened(value, path)
        else:
            yield path, value
