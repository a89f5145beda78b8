"""Inputs of runs as MLflow's datasets.

Imports MLflow, which takes seconds: import it lazily.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from mlflow.entities import Dataset, DatasetInput, InputTag

from experiments.runs.inputs import is_code_input
from experiments.runs.mlflow_names import taken_text

CONTEXT = "mlflow.data.context"
MAX_DIGEST = 36  # characters, of MLflow


def datasets_of(event: Mapping[str, Any]) -> list[DatasetInput]:
    """The data among the inputs of a start: path, digest and, where the event has them, profile and schema.

    Code is in the run's tags, models are model inputs.
    """
    about, models = event.get("datasets", {}), event.get("models", {})
    return [
        _dataset(path, digest, about.get(path, {}))
        for path, digest in event["inputs"].items()
        if path not in models and not is_code_input(path)
    ]


def _dataset(path: str, digest: str, about: Mapping[str, Any]) -> DatasetInput:
    dataset = Dataset(
        name=taken_text(path, 500),
        digest=digest.rpartition(":")[2][:MAX_DIGEST],
        source_type="local",
        source=json.dumps({"uri": path, "md5": digest}),
        profile=json.dumps(about["profile"]) if about.get("profile") else None,
        schema=json.dumps({"mlflow_colspec": about["schema"]}) if about.get("schema") else None,
    )
    return DatasetInput(dataset, tags=[InputTag(CONTEXT, "input")])
