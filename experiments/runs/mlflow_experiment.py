"""The experiment of a store in MLflow, also where it was renamed there.

Imports MLflow, which takes seconds: import it lazily.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Experiment
from mlflow.exceptions import MlflowException

from experiments.runs.local_store import MADE_AS, artifacts_of
from experiments.runs.mlflow_view import EXPERIMENT_TAGS


def find_experiment(client: MlflowClient, name: str) -> Experiment | None:
    """The experiment of that name; where there is none, the newest that was made under it and renamed."""
    found = client.get_experiment_by_name(name)
    if found is not None:
        return found
    condition, order = f"tags.`{MADE_AS}` = '{name}'", ["creation_time DESC"]
    return next(iter(client.search_experiments(filter_string=condition, order_by=order, max_results=1)), None)


def open_experiment(client: MlflowClient, name: str, database: Path | None) -> str:
    """Id of the experiment, made where there is none. database: SQLite's file, of a store that is one."""
    found = find_experiment(client, name)
    if found is None:
        # a database stores no files, so artifacts go beside it; a server has its own artifact store
        local = artifacts_of(database).resolve().as_uri() if database else None
        return client.create_experiment(
            name, artifact_location=local, tags={**EXPERIMENT_TAGS, MADE_AS: name}
        )
    if MADE_AS not in found.tags:  # of an earlier version
        with suppress(MlflowException):  # who may add runs may not always change the experiment
            client.set_experiment_tag(found.experiment_id, MADE_AS, name)
    return found.experiment_id
