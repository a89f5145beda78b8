"""RegisteredVersions and aliases of registered models in MLflow.

Imports MLflow, which takes seconds: import it lazily.
"""

from __future__ import annotations

import json
import time
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import LoggedModel, Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from experiments.runs.mlflow_names import MAX_TAG, taken_text
from experiments.runs.model_names import CHECKPOINT_TAG, CODEC_TAG, PARENT_TAG, TRAINED_ON_TAG
from experiments.runs.resumed import COMMITS, others_before, values_of

MODEL_VERSIONS = "mlflow.modelVersions"  # of a logged model: what MLflow's page of it lists
MODEL_ID = "nava.model_id"  # MLflow's databases do not keep the model of a version
MOVED_AT = "nava.alias_moved_at_ms"
AHEAD_S = 3600.0  # of this clock: no run of a right one has been then
EXISTS = "RESOURCE_ALREADY_EXISTS"
ABSENT = "RESOURCE_DOES_NOT_EXIST"


class RegisteredVersions:
    """The registry of a store. A checkpoint is one version of a name, however often it is sent.

    An alias follows the time of the events that move it, not the order in which they arrive.
    """

    def __init__(self, client: MlflowClient) -> None:
        self.client = client

    def register(self, name: str, model: LoggedModel, run: Run) -> str:
        """Number of the version that is this model; a new one where no version has its id."""
        tags = _tags(model, run)
        identity = CHECKPOINT_TAG if CHECKPOINT_TAG in tags else CODEC_TAG
        found = self._search(name, identity, tags[identity]) if identity in tags else None
        if found is None:
            self._ensure(name)
            found = self.client.create_model_version(
                name,
                source=model.artifact_location,
                run_id=model.source_run_id,
                tags=tags,
                description=_description(tags),
                model_id=model.model_id,
            )
        self._show_on_model(found, model)
        return str(found.version)

    def with_checkpoint(self, name: str, checkpoint: str) -> ModelVersion | None:
        return self._search(name, CHECKPOINT_TAG, checkpoint)

    def name_with(self, checkpoint: str, preferred: str) -> str:
        """The registered model that a checkpoint is a version of, the preferred one first; "" if none is."""
        found = self._all(f"tags.`{CHECKPOINT_TAG}` = '{checkpoint}'") if "'" not in checkpoint else []
        names = [version.name for version in found]
        return preferred if preferred in names else next(iter(names), "")

    def move_alias(self, name: str, alias: str, version: str, time_ms: int) -> bool:
        """Move an alias; False where an event of a later time has moved it."""
        key, tags = f"{MOVED_AT}.{alias}", self.client.get_registered_model(name).tags
        if int(tags.get(key, 0)) > time_ms:
            return False
        self.client.set_registered_model_alias(name, alias, version)
        self.client.set_registered_model_tag(name, key, str(time_ms))
        return True

    def why_not_moved(self, name: str, alias: str) -> str:
        """What `move_alias` answered False for, and what to do where a clock was wrong."""
        key = f"{MOVED_AT}.{alias}"
        moved_s = int(self.client.get_registered_model(name).tags.get(key, 0)) / 1000
        said = "not moved: a later run has moved it, at " + time.strftime(
            "%Y-%m-%d %H:%M UTC", time.gmtime(moved_s)
        )
        if moved_s - time.time() < AHEAD_S:
            return said
        return f"{said}, which lies ahead: delete the tag {key} of {name} in MLflow, then set the alias there"

    def _ensure(self, name: str) -> None:
        try:
            self.client.create_registered_model(name, description="Models of one recipe of NAVA Align.")
        except MlflowException as error:
            if error.error_code != EXISTS:
                raise

    def _search(self, name: str, tag: str, value: str) -> ModelVersion | None:
        if "'" in value:
            return None
        return next(iter(self._all(f"name = '{name}' AND tags.`{tag}` = '{value}'")), None)

    def _all(self, condition: str) -> list[ModelVersion]:
        """RegisteredVersions that meet a condition, the newest first."""
        found = self.client.search_model_versions(condition)
        return sorted(found, key=lambda version: version.creation_timestamp, reverse=True)

    def _show_on_model(self, version: ModelVersion, model: LoggedModel) -> None:
        """A server does this itself, a database does not."""
        listed = json.loads(model.tags.get(MODEL_VERSIONS, "[]"))
        entry = {"name": version.name, "version": int(version.version)}
        if not any((one["name"], int(one["version"])) == (entry["name"], entry["version"]) for one in listed):
            self.client.set_logged_model_tags(model.model_id, {MODEL_VERSIONS: json.dumps([*listed, entry])})


def _tags(model: LoggedModel, run: Run) -> dict[str, str]:
    """What a version says of itself: ids, run, parents, stage, recipe and commit."""
    of_run: dict[str, Any] = run.data.tags
    kept = (CHECKPOINT_TAG, CODEC_TAG, TRAINED_ON_TAG, PARENT_TAG, "nava.step", "nava.flavor")
    found = {MODEL_ID: model.model_id} | {name: model.tags[name] for name in kept if name in model.tags}
    copied = ("nava.run", "nava.stage", "nava.recipe", "mlflow.source.git.commit", "git.dirty")
    found |= {name.replace("mlflow.source.", ""): of_run[name] for name in copied if of_run.get(name)}
    if before := others_before(values_of(of_run.get(COMMITS, ""))):
        found["git.commits_before"] = ", ".join(before)
    keys = {name: key for name, key in of_run.items() if name.startswith("parent_key.")}
    if keys:
        found["nava.parents"] = ", ".join(keys.values())
    return {name: taken_text(value, MAX_TAG) for name, value in found.items()}


def _description(tags: dict[str, str]) -> str:
    """One sentence for the page of a version."""
    what = f"checkpoint {tags[CHECKPOINT_TAG]}" if CHECKPOINT_TAG in tags else "codec"
    if CHECKPOINT_TAG not in tags and CODEC_TAG in tags:
        what = f"codec {tags[CODEC_TAG]}"
    parts = [f"{what} of stage {tags['nava.stage']}" if "nava.stage" in tags else what]
    parts += [f"recipe {tags['nava.recipe']}"] if "nava.recipe" in tags else []
    parts += [f"from checkpoint {tags[PARENT_TAG]}"] if PARENT_TAG in tags else []
    parts += [f"run {tags['nava.run']}"] if "nava.run" in tags else []
    if "git.commit" in tags:
        changed = " with uncommitted changes" if tags.get("git.dirty") == "true" else ""
        parts.append(f"commit {tags['git.commit'][:12]}{changed}")
    if before := tags.get("git.commits_before"):
        parts.append(f"begun with commit {before[:12]}")
    return ", ".join(parts)
