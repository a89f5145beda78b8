import os
from pathlib import Path

import pytest
from hypothesis import settings

# Before anything imports torch or MLflow: tests share a small machine and tell nobody about themselves.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# Rewards, scorers and objectives of tests are named in files as a user's own are, in any of the processes.
os.environ.setdefault(
    "NAVA_PLUGINS", ",".join(sorted(path.stem for path in Path(__file__).parent.glob("*.py")))
)

# A busy machine is slow, not wrong.
settings.register_profile("house", deadline=None)
settings.load_profile("house")


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database without runs, to be copied: MLflow makes its tables for seconds."""
    from mlflow_world import make_database

    return make_database(tmp_path_factory.mktemp("mlflow"))
