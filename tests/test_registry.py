"""Models of an MLflow registry as folders."""

import json
from pathlib import Path

import pytest

from experiments.runs.registry import fetched
from experiments.runs.sender import quiet_mlflow


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A registry in a database; register(name, folder) makes a version of it."""
    quiet_mlflow()
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)

    def register(name: str, folder: Path) -> None:
        client.create_registered_model(name)
        client.create_model_version(name, str(folder))

    return register


def folder_with(folder: Path, name: str, content: dict) -> Path:
    folder.mkdir()
    (folder / name).write_text(json.dumps(content))
    return folder


def test_a_registered_model_is_a_folder(store, tmp_path):
    model = folder_with(tmp_path / "model", "config.json", {"checkpoint_id": "abc"})
    store("nava", model)
    found = fetched("models:/nava/1", tmp_path / "cache", tmp_path)
    assert json.loads((found / "config.json").read_text()) == {"checkpoint_id": "abc"}
    (model / "config.json").unlink()  # a version does not change, so it is not fetched again
    assert fetched("models:/nava/1", tmp_path / "cache", tmp_path) == found
    reference = {"nava.path": str(model), "nava.checkpoint_id": "abc"}
    store("large", folder_with(tmp_path / "reference", "reference.json", reference))
    with pytest.raises(ValueError, match="where now lies nothing instead of abc"):
        fetched("models:/large/1", tmp_path / "cache", tmp_path)
    (model / "config.json").write_text('{"checkpoint_id": "abc"}')
    assert fetched("models:/large/1", tmp_path / "cache", tmp_path) == model
    store("empty", folder_with(tmp_path / "other", "notes.json", {}))
    for uri, says in (
        ("models:/nava/2", "does not give it"),
        ("models:/nawa/1", "does not give it"),
        ("models:/empty/1", "no model folder"),
        ("models:/", "expected models:/NAME/VERSION"),
        ("models:/../1", "expected models:/NAME/VERSION"),
    ):
        with pytest.raises(ValueError, match=says) as error:
            fetched(uri, tmp_path / "cache", tmp_path)
        assert "\n" not in str(error.value)


def test_without_a_server_one_line_says_so(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ValueError, match=r"no MLflow here.*MLFLOW_TRACKING_URI"):
        fetched("models:/nava/1", tmp_path / "cache", tmp_path)
