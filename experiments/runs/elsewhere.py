"""Runs of other machines, looked up in MLflow where nothing is known of them here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.runs.local_store import database_of
from experiments.runs.sender import EXPERIMENT, open_default_store, quiet_mlflow
from experiments.runs.spool import problem_of
from experiments.runs.store_uri import connection_uri, store_uri

RUN_TAG = "nava.run"


class Elsewhere:
    """The MLflow store of a repository, opened when it is first asked, which takes seconds."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.problem = ""
        self._store: Any = None

    def with_tag(self, tag: str, value: str) -> str:
        """Key of the newest run with a tag; "" if there is none, or no store that answers."""
        store = self._open()
        if store is None or "'" in value:
            return ""
        try:
            found = store.search(f"tags.`{tag}` = '{value}'")
            return store.read(found[0])["tags"].get(RUN_TAG, found[0]) if found else ""
        except Exception as error:  # a store raises whatever its database or HTTP client does
            self.problem = problem_of(error)
            return ""

    def id_of(self, key: str) -> str:
        """MLflow's id of a run; "" if the store does not have it, or does not answer."""
        store = self._open()
        try:
            return store.find(key) if store is not None else ""
        except Exception as error:  # as above
            self.problem = problem_of(error)
            return ""

    def read(self, key: str, required: bool) -> dict[str, Any] | None:
        """{run_id, status, tags, params} of a run key or MLflow id, None if the store does not have it.

        Raises ValueError instead where it is required.
        """
        try:
            store = self._open()
            run_id = store and (store.find(key) or key)
            if run_id:
                return {"run_id": run_id, **store.read(run_id)}
        except Exception as error:  # as above
            self.problem = problem_of(error)
        if required:
            why = self.problem or "there is no such database"
            raise ValueError(f"{key}: neither in the spool nor in {store_uri(self.root)} ({why})")
        return None

    def asked(self) -> str:
        """For a message: that MLflow does not know it either, or was not there to be asked."""
        place = store_uri(self.root)
        if self.problem:
            return f", and {place} does not answer ({self.problem})"
        return f", nor is it in {place}" if self._store is not None else ""

    def _open(self) -> Any:
        database = database_of(connection_uri(self.root))
        if self.problem or (database is not None and not database.is_file()):
            return None
        if self._store is None:
            quiet_mlflow()
            try:
                from experiments.runs.mlflow_store import MlflowStore

                open_default_store(self.root)
                self._store = MlflowStore(connection_uri(self.root), EXPERIMENT)
            except Exception as error:  # as above
                self.problem = problem_of(error)
        return self._store
