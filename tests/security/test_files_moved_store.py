"""A copied checkout writes its artifacts beside its own database, never into the first one's folder."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from experiments.runs.local_store import follow_move

pytestmark = pytest.mark.security
EXPERIMENT = "nava"


def checkout(folder: Path) -> Path:
    """A checkout with MLflow's database as it keeps addresses: absolute ones."""
    (folder / "mlartifacts").mkdir(parents=True)
    artifacts = (folder / "mlartifacts").as_uri()
    with closing(sqlite3.connect(folder / "mlflow.db")) as connection, connection:
        connection.execute("CREATE TABLE experiments (name TEXT, artifact_location TEXT)")
        connection.execute("CREATE TABLE runs (artifact_uri TEXT)")
        connection.execute("INSERT INTO experiments VALUES (?, ?)", (EXPERIMENT, artifacts))
        for name in ("one", "two"):
            connection.execute("INSERT INTO runs VALUES (?)", (f"{artifacts}/{name}/artifacts",))
    return folder


def addresses(folder: Path) -> list[str]:
    with closing(sqlite3.connect(folder / "mlflow.db")) as connection:
        rows = [*connection.execute("SELECT artifact_location FROM experiments")]
        rows += [*connection.execute("SELECT artifact_uri FROM runs")]
    return [row[0] for row in rows]


@pytest.mark.parametrize("with_artifacts", [True, False])
def test_a_copy_leaves_the_first_checkouts_folder_alone(tmp_path, with_artifacts):
    first, copy = checkout(tmp_path / "first"), tmp_path / "copy"
    shutil.copytree(first, copy)
    if not with_artifacts:
        (copy / "mlartifacts").rmdir()
    said = follow_move(f"sqlite:///{copy / 'mlflow.db'}", copy, EXPERIMENT)
    assert "moved or copied with its checkout" in said
    assert all(one.startswith((copy / "mlartifacts").as_uri()) for one in addresses(copy))
    assert all(one.startswith((first / "mlartifacts").as_uri()) for one in addresses(first))
    assert follow_move(f"sqlite:///{copy / 'mlflow.db'}", copy, EXPERIMENT) == ""
