"""A real MLflow in a database of its own, runs that log models into it, and model folders with their ids."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from experiments.runs import sender
from experiments.runs.sender import EXPERIMENT, flush, quiet_mlflow
from experiments.runs.spool import SENT, SpooledRun
from experiments.runs.tracker import RunStart, SpoolTracker, new_run_key

quiet_mlflow()


def make_database(folder: Path) -> Path:
    """A database with MLflow's tables and no runs."""
    from mlflow import MlflowClient

    path = folder / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


def open_store(place: Path, monkeypatch: pytest.MonkeyPatch, database: Path):
    """The default store of `place`, which becomes the current folder; returns a client of it."""
    from mlflow import MlflowClient

    shutil.copy(database, place / "mlflow.db")
    monkeypatch.chdir(place)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(sender, "_store", None)
    uri = f"sqlite:///{place / 'mlflow.db'}"
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def model_folder_of(folder: Path, weights: bytes, codec: str = "c0dec", **facts: object) -> str:
    """A model folder whose id is the digest of its weights, as exports have it; returns the id."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ema.safetensors").write_bytes(weights)
    checkpoint = hashlib.sha256(weights).hexdigest()[:16]
    content = {"checkpoint_id": checkpoint, "codec_id": codec, "flavor": "debug", **facts}
    (folder / "config.json").write_text(json.dumps(content))
    return checkpoint


def started(name: str = "train", **start) -> SpoolTracker:
    """A run in the spool of the current folder."""
    tracker = SpoolTracker(Path("out/tracking") / new_run_key(name))
    tracker.start(RunStart(name=name, **start))
    return tracker


def send() -> int:
    return flush(Path("out/tracking"), Path())


def send_all_again() -> int:
    """As after a kill that lost how far every run was."""
    for path in Path("out/tracking").glob(f"*/{SENT}"):
        path.unlink()
    return send()


def run_of(client, tracker: SpoolTracker):
    return client.get_run(SpooledRun(tracker.folder).sent().run_id)


def logged_models(client) -> list:
    return client.search_logged_models([client.get_experiment_by_name(EXPERIMENT).experiment_id])
