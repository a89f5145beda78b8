"""Models of runs in MLflow: logged models, their files, and the runs that read or measure them.

Imports MLflow, which takes seconds: import it lazily.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelInput, LoggedModelOutput

from experiments.runs.logged_files import MAX_COPIED_BYTES
from experiments.runs.mlflow_versions import RegisteredVersions
from experiments.runs.model_names import ADAPTER, CHECKPOINT_TAG, TAG_OF, other_model

LOGGED_AT = "nava.logged_at_ms"  # tells the models of one name and run apart
READY, FAILED = "READY", "FAILED"


class LoggedModels:
    """The models of one experiment. Methods are idempotent, so they can be retried.

    experiment_id: called when it is first needed; set_tags: sets tags of a run.
    """

    def __init__(
        self,
        client: MlflowClient,
        experiment_id: Callable[[], str],
        set_tags: Callable[[str, Mapping[str, Any]], None],
    ) -> None:
        self.client, self._experiment, self._set_tags = client, experiment_id, set_tags
        self.versions = RegisteredVersions(client)

    @cached_property
    def experiment_id(self) -> str:
        return self._experiment()

    def log(self, run_id: str, event: Mapping[str, Any]) -> None:
        """Log a model folder, large ones by path and hash only, and register it where the event says so.

        What is gone, or is another model by now, is not stored; a tag of the run says so.
        """
        model = self._earlier_try(run_id, event)
        if model is None or str(model.status) != READY:
            if problem := self._unstorable(event):
                self._set_tags(run_id, problem)
                if model is not None and str(model.status) != FAILED:  # no more files will come
                    self.client.finalize_logged_model(model.model_id, FAILED)
                return
            model = model or self._create(run_id, event, Path(event["path"]))
            self._store_files(model, event)
            model = self.client.finalize_logged_model(model.model_id, READY)
        self._link_output(run_id, model.model_id)
        self._register(run_id, model, event)

    def _unstorable(self, event: Mapping[str, Any]) -> dict[str, str]:
        """The tag that says why a model cannot be stored; empty where it can."""
        if not _content(event).is_dir():
            return {f"nava.missing_model.{event['name']}": event["path"]}
        if event.get("changed"):
            said = f"not stored: {event['changed']}"
            print(f"{event['path']} ({event['name']}) was replaced before it was sent, {said}", flush=True)
            return {f"nava.changed_model.{event['name']}": said}
        return {}

    def _create(self, run_id: str, event: Mapping[str, Any], path: Path) -> LoggedModel:
        tags = {**event["tags"], "nava.path": str(path), LOGGED_AT: str(event["time_ms"])}
        return self.client.create_logged_model(
            self.experiment_id,
            name=event["name"],
            source_run_id=run_id,
            tags=tags,
            model_type="safetensors",
        )

    def _earlier_try(self, run_id: str, event: Mapping[str, Any]) -> LoggedModel | None:
        """The model that an earlier try at this event has made, with or without all its files."""
        found = self.client.search_logged_models(
            [self.experiment_id], f"source_run_id = '{run_id}' AND tags.`{LOGGED_AT}` = '{event['time_ms']}'"
        )
        mine = [model for model in found if model.name == event["name"]]
        return next((model for model in mine if str(model.status) == READY), mine[0] if mine else None)

    def _store_files(self, model: LoggedModel, event: Mapping[str, Any]) -> None:
        """Raises ValueError where another model takes the place of this one meanwhile."""
        path = _content(event)
        if sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) <= MAX_COPIED_BYTES:
            self.client.log_model_artifacts(model.model_id, str(path))
            if replaced := other_model(path, event["tags"]):
                raise ValueError(f"{path}: replaced while it was stored, by {replaced}")
            return
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "reference.json").write_text(json.dumps(dict(model.tags), indent=1))
            self.client.log_model_artifacts(model.model_id, folder)

    def _link_output(self, run_id: str, model_id: str) -> None:
        outputs = self.client.get_run(run_id).outputs
        if model_id not in {output.model_id for output in (outputs.model_outputs if outputs else ())}:
            self.client.log_outputs(run_id, [LoggedModelOutput(model_id, step=0)])

    def _register(self, run_id: str, model: LoggedModel, event: Mapping[str, Any]) -> None:
        name, start = event.get("registered", ""), event.get("version_of", "")
        if start:
            name = self.versions.name_with(start, name) or name
        if name:
            version = self.versions.register(name, model, self.client.get_run(run_id))
            alias = event.get("alias", "")
            if alias and not self.versions.move_alias(name, alias, version, event["time_ms"]):
                self._set_tags(run_id, {f"nava.alias.{alias}": self.versions.why_not_moved(name, alias)})
        elif start:
            why = f"started from checkpoint {start}, which is no version of a registered model"
            self._set_tags(run_id, {"nava.not_registered": why})

    def move_alias(self, run_id: str, event: Mapping[str, Any]) -> None:
        """Move an alias to the version of a checkpoint; the run's tag nava.alias.ALIAS says what happened.

        Raises ValueError where the checkpoint's model waits for its files, without which it is no version.
        """
        name, alias, checkpoint = event["registered"], event["alias"], event["checkpoint"]
        version = self.versions.with_checkpoint(name, checkpoint)
        if version is None:
            model = self.with_digest(f"checkpoint:{checkpoint}")
            if model is not None and str(model.status) not in (READY, FAILED):
                raise ValueError(f"alias {alias} of {name}: model {model.model_id} is not stored whole yet")
            said = f"not moved: no version of {name} is checkpoint {checkpoint}"
        elif self.versions.move_alias(name, alias, version.version, event["time_ms"]):
            said = f"{name} version {version.version}"
        else:
            said = self.versions.why_not_moved(name, alias)
        self._set_tags(run_id, {f"nava.alias.{alias}": said})

    def measured(self, run_id: str, checkpoint: str) -> str:
        """Id of the model with a checkpoint id, as an input of the run that measured it; "" if it is not in
        the store, which a tag says."""
        model = self.with_digest(f"checkpoint:{checkpoint}")
        if model is None:
            self._set_tags(run_id, {f"nava.unknown_model.{checkpoint}": "its metrics are those of this run"})
            return ""
        self.client.log_inputs(run_id, models=[LoggedModelInput(model.model_id)])
        return model.model_id

    def log_inputs(self, run_id: str, read: Mapping[str, str]) -> None:
        """Log the models that a run reads. read: path -> KIND:ID; those not in the store are left out."""
        found = (self.with_digest(digest) for digest in dict.fromkeys(read.values()))
        models = [LoggedModelInput(model.model_id) for model in found if model is not None]
        if models:
            self.client.log_inputs(run_id, models=models)

    def with_digest(self, digest: str) -> LoggedModel | None:
        """The newest model with this digest, KIND:ID, those with all their files first."""
        kind, _, value = digest.partition(":")
        if kind not in TAG_OF or not value or "'" in value:
            return None
        order = [{"field_name": "creation_timestamp", "ascending": False}]
        found = self.client.search_logged_models(
            [self.experiment_id], f"tags.`{TAG_OF[kind]}` = '{value}'", order_by=order
        )
        # adapters of stores of earlier versions have the id of the model that they were merged into
        models = [
            model
            for model in found
            if kind == ADAPTER or CHECKPOINT_TAG not in model.tags or not model.name.endswith("-adapter")
        ]
        return next((model for model in models if str(model.status) == READY), models[0] if models else None)


def _content(event: Mapping[str, Any]) -> Path:
    """Where the files of a model event are read from."""
    return Path(event.get("content") or event["path"])
