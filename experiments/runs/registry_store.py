"""What an MLflow registry knows of a name; MLflow is imported when it is first asked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.runs.model_names import CODEC_TAG
from experiments.runs.model_uri import SCHEME, ModelUri
from experiments.runs.sender import open_default_store, quiet_mlflow
from experiments.runs.spool import problem_of
from experiments.runs.store_uri import connection_uri, store_uri
from pretrain.config import nearest

SHOWN = 10  # names and versions that a refusal lists
UNKNOWN = ("RESOURCE_DOES_NOT_EXIST", "NOT_FOUND", "INVALID_PARAMETER_VALUE")


class Unanswered(Exception):
    """The store did not answer; says why in one line."""


@dataclass(frozen=True)
class RegisteredModel:
    """A model of the registry. identity: apart from every other model that has had this name and version.
    tags: of the version, with the id of the checkpoint or codec that it is."""

    name: str
    version: str
    uri: str
    identity: str
    source: str
    tracking_uri: str  # may hold a password
    tags: Mapping[str, str] = field(default_factory=dict)

    def download(self, folder: Path) -> Path:
        """The files, in a folder below `folder`. Raises ValueError where the store does not give them."""
        from mlflow.artifacts import download_artifacts

        try:
            place = download_artifacts(
                artifact_uri=self.source,
                dst_path=str(folder),
                tracking_uri=self.tracking_uri,
                registry_uri=self.tracking_uri,
            )
        except Exception as error:  # a store raises whatever its disk or HTTP client does
            raise ValueError(f"{self.uri}: its files were not fetched ({problem_of(error)})") from None
        return Path(place)


class RegistryStore:
    """The registry of a repository, or of MLFLOW_TRACKING_URI. Every method raises Unanswered where the store
    does not answer, ValueError in one line where it does not know what is asked."""

    def __init__(self, root: Path) -> None:
        self.place, self._uri = store_uri(root), connection_uri(root)
        self._root, self._client = root, None

    @property
    def client(self) -> Any:
        if self._client is None:
            quiet_mlflow()
            from mlflow import MlflowClient

            open_default_store(self._root)
            self._client = MlflowClient(tracking_uri=self._uri, registry_uri=self._uri)
        return self._client

    def resolve(self, asked: ModelUri) -> RegisteredModel:
        """The model that a URI names at present."""
        if asked.model_id:
            return self._logged(asked)
        registered = self._ask(lambda: self.client.get_registered_model(asked.name))
        if registered is None:
            raise ValueError(
                f"{asked.text}: {self._refusal()}: no model {asked.name!r}; {self._names(asked)}"
            )
        version = str(asked.version)
        if asked.alias:
            version = str(registered.aliases.get(asked.alias, ""))
        elif asked.latest:
            version = str(max(self._versions(asked.name), default=""))
        found = self._ask(lambda: self.client.get_model_version(asked.name, version)) if version else None
        if found is None:
            raise ValueError(f"{asked.text}: {self._refusal()}: {self._known(asked, registered.aliases)}")
        source = self._ask(lambda: self.client.get_model_version_download_uri(asked.name, version))
        identity = f"{asked.name}/{version} {found.creation_timestamp} {found.source}"
        uri = f"{SCHEME}{asked.name}/{version}"
        return RegisteredModel(
            asked.name, version, uri, identity, source or found.source, self._uri, found.tags
        )

    def codec(self, codec_id: str) -> str:
        """URI of the newest version of a codec; "" if it is not registered."""
        if "'" in codec_id:
            return ""
        found = self._ask(lambda: self.client.search_model_versions(f"tags.`{CODEC_TAG}` = '{codec_id}'"))
        newest = max(found or (), key=lambda version: version.creation_timestamp, default=None)
        return f"{SCHEME}{newest.name}/{newest.version}" if newest else ""

    def _logged(self, asked: ModelUri) -> RegisteredModel:
        model = self._ask(lambda: self.client.get_logged_model(asked.model_id))
        if model is None:
            raise ValueError(f"{asked.text}: {self._refusal()}: no logged model of this id")
        if str(model.status) != "READY":
            raise ValueError(f"{asked.text}: {self._refusal()}: not all of its files are stored yet")
        place, uri = model.artifact_location, asked.model_id
        return RegisteredModel(asked.model_id, "model", asked.text, uri, place, self._uri, model.tags)

    def _ask(self, call: Any) -> Any:
        """The answer, None where the store does not know it."""
        try:
            return call()
        except Exception as error:  # MLflow's stores raise whatever their database or HTTP client does
            if getattr(error, "error_code", "") in UNKNOWN:
                return None
            raise Unanswered(f"{self.place} does not answer ({problem_of(error)})") from None

    def _refusal(self) -> str:
        return f"{self.place} does not give it"

    def _versions(self, name: str) -> list[int]:
        found = self._ask(lambda: self.client.search_model_versions(f"name = '{name}'"))
        return [int(version.version) for version in found or ()]

    def _names(self, asked: ModelUri) -> str:
        found = self._ask(lambda: self.client.search_registered_models(max_results=200))
        names = [model.name for model in found or ()]
        return nearest(asked.name, names) if names else "nothing is registered there"

    def _known(self, asked: ModelUri, aliases: dict[str, str]) -> str:
        """What a name has, where it does not have what is asked."""
        missing = f"alias {asked.alias!r}" if asked.alias else f"version {asked.version or ''}".rstrip()
        named = [f"{alias} (version {version})" for alias, version in sorted(aliases.items())]
        versions = [str(version) for version in sorted(self._versions(asked.name), reverse=True)]
        return f"{asked.name} has no {missing}; aliases: {_shown(named)}; versions: {_shown(versions)}"


def _shown(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    return (", ".join(listed[:SHOWN]) or "none") + more
