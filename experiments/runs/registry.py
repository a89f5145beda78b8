"""Models of an MLflow registry as local folders."""

from __future__ import annotations

import json
from pathlib import Path

from experiments.runs.local_store import database_of
from experiments.runs.sender import open_default_store, quiet_mlflow
from experiments.runs.store_uri import connection_uri, scrubbed, store_uri
from pretrain.config import one_line

SCHEME = "models:/"
REFERENCE = "reference.json"  # what a run stores of a model that is too large to copy


def is_registered(text: str) -> bool:
    return text.startswith(SCHEME)


def fetched(uri: str, cache: Path, root: Path) -> Path:
    """Folder of the model `models:/NAME/VERSION` (or `models:/ID`), downloaded into `cache` once.

    A model that was stored by its path is that path. Raises ValueError in one line for a name that is none,
    for an unknown model, and where MLflow does not answer.
    """
    name, _, version = uri.removeprefix(SCHEME).partition("/")
    if not name or "/" in version or {name, version} & {".", ".."}:
        raise ValueError(f"{uri}: expected models:/NAME/VERSION, or models:/ID of a logged model")
    folder = cache / name / version
    # a number never changes its model, an alias or a stage may
    if not (version.isdigit() and _is_complete(folder)):
        _download(uri, folder, root)
    if (reference := folder / REFERENCE).is_file():
        return _referenced(uri, json.loads(reference.read_text()))
    if not (folder / "config.json").is_file():
        raise ValueError(f"{uri}: what is registered there is no model folder (no config.json)")
    return folder


def _is_complete(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("config.json", REFERENCE))


def _download(uri: str, folder: Path, root: Path) -> None:
    quiet_mlflow()
    from mlflow.artifacts import download_artifacts

    store, uri_of_client = store_uri(root), connection_uri(root)
    database = database_of(uri_of_client)
    if database is not None and not database.is_file():
        raise ValueError(f"{uri}: no MLflow here ({store}); set MLFLOW_TRACKING_URI, or give a model folder")
    try:
        open_default_store(root)
        folder.mkdir(parents=True, exist_ok=True)
        download_artifacts(
            artifact_uri=uri, dst_path=str(folder), tracking_uri=uri_of_client, registry_uri=uri_of_client
        )
    except Exception as error:  # MLflow's stores raise whatever their database or HTTP client does
        raise ValueError(f"{uri}: {store} does not give it ({one_line(scrubbed(str(error)), 300)})") from None


def _referenced(uri: str, tags: dict[str, str]) -> Path:
    path, expected = Path(tags.get("nava.path", "")), tags.get("nava.checkpoint_id", "")
    config = path / "config.json"
    found = json.loads(config.read_text()).get("checkpoint_id", "") if config.is_file() else "nothing"
    if found != expected:
        raise ValueError(
            f"{uri}: stored by its path {path}, where now lies {found} instead of {expected}; give its folder"
        )
    return path
