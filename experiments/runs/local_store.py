"""The default store, MLflow's SQLite database and the artifacts beside it, where their folder may move."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from experiments.runs.origin import origin_of
from experiments.runs.store_uri import SQLITE

ARTIFACTS = "mlartifacts"
MADE_AS = "nava.experiment"  # tag of an experiment: the name that it was made under
# columns with an address of artifacts, of those MLflow versions that have them
_COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
    ("trace_tags", "value"),
)


def database_of(uri: str) -> Path | None:
    """The SQLite file of a tracking URI; None for another kind of store."""
    if not uri.startswith(SQLITE) or ":memory:" in uri:
        return None
    return Path(uri.removeprefix(SQLITE).partition("?")[0])


def artifacts_of(database: Path) -> Path:
    return database.parent / ARTIFACTS


def follow_move(uri: str, root: Path, experiment: str) -> str:
    """Where the database was moved or copied with its checkout, point it to the artifacts beside it.

    MLflow keeps absolute addresses, so a copy would write into the first checkout. Returns a line that says
    so; "" where nothing was to do. A database of the user's own keeps artifacts that lie elsewhere.
    """
    database = database_of(uri)
    if database is None or not database.is_file():
        return ""
    new = artifacts_of(database).resolve()
    with closing(sqlite3.connect(database, timeout=30)) as connection, connection:
        old = _location(connection, experiment)
        if not old.endswith(f"/{ARTIFACTS}") or not old.startswith("file:///") or old == new.as_uri():
            return ""
        ours = database.resolve() == (origin_of(root) / "mlflow.db").resolve()
        if not ours and not new.is_dir() and Path(old.removeprefix("file://")).is_dir():
            return ""
        before = old.removesuffix(ARTIFACTS)
        after = new.as_uri().removesuffix(ARTIFACTS)
        for table, column in _COLUMNS:
            if _has(connection, table, column):
                change = f"{column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?"
                values = (after, len(before) + 1, len(before), before)
                connection.execute(f"UPDATE {table} SET {change}", values)
    return f"{database}: moved or copied with its checkout; artifacts are written to {new} from here on"


def _location(connection: sqlite3.Connection, experiment: str) -> str:
    if not _has(connection, "experiments", "artifact_location"):
        return ""
    found = connection.execute(
        "SELECT artifact_location FROM experiments WHERE name = ?", (experiment,)
    ).fetchone()
    if found is None and _has(connection, "experiment_tags", "value"):  # renamed
        found = connection.execute(
            "SELECT artifact_location FROM experiments JOIN experiment_tags USING (experiment_id)"
            " WHERE key = ? AND value = ? ORDER BY creation_time DESC",
            (MADE_AS, experiment),
        ).fetchone()
    return (found[0] or "") if found else ""


def _has(connection: sqlite3.Connection, table: str, column: str) -> bool:
    return any(row[1] == column for row in connection.execute(f"PRAGMA table_info({table})"))
