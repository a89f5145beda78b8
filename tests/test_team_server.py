"""A run on MLflow with login, on PostgreSQL, with artifacts in an S3-like store behind the server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from services import TeamServer, team_server

from experiments.runs import sender
from experiments.runs.sender import flush, quiet_mlflow
from experiments.runs.tracker import RunStart, SpoolTracker, new_run_key

pytestmark = [pytest.mark.services, pytest.mark.timeout(400)]
quiet_mlflow()


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TeamServer]:
    with team_server(tmp_path_factory.mktemp("team")) as server:
        yield server


@pytest.fixture(autouse=True)
def member(team, tmp_path, monkeypatch) -> TeamServer:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sender, "_store", None)
    for name, value in team.client_environment().items():
        monkeypatch.setenv(name, value)
    return team


def spooled_run(folder: Path) -> SpoolTracker:
    """A finished run with points, a file and a model."""
    tracker = SpoolTracker(folder / "spool" / new_run_key("train"))
    tracker.start(RunStart(name="train", config={"lr": 0.1}, inputs={"out/x": "0" * 32}))
    for step in range(30):
        tracker.log_metrics({"loss": step / 2, "up": float("inf")}, step)
    (folder / "page.html").write_text("a page")
    tracker.log_artifact(str(folder / "page.html"))
    (folder / "model").mkdir()
    (folder / "model" / "model.safetensors").write_bytes(b"weights")
    tracker.log_model(folder / "model", "nava", {})
    tracker.finish("FINISHED")
    return tracker


def test_a_run_arrives_whole_and_once(member, tmp_path):
    from mlflow import MlflowClient

    tracker = spooled_run(tmp_path)
    for _ in range(2):
        assert flush(tmp_path / "spool", tmp_path) == 0
        (tracker.folder / "sent.json").unlink()  # so that all of it is sent again
    client = MlflowClient()
    experiment = client.get_experiment_by_name("nava")
    assert experiment is not None and experiment.artifact_location.startswith("mlflow-artifacts:")
    (run,) = client.search_runs([experiment.experiment_id], f"tags.`nava.run` = '{tracker.key}'")
    points = [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, "loss")]
    assert sorted(points) == [(step, step / 2) for step in range(30)]
    assert run.info.status == "FINISHED" and run.data.params == {"lr": "0.1"}
    assert Path(client.download_artifacts(run.info.run_id, "page.html")).read_text() == "a page"
    models = client.search_logged_models([experiment.experiment_id], f"source_run_id = '{run.info.run_id}'")
    assert [str(model.status) for model in models] == ["READY"]


def test_a_refused_login_keeps_the_run_and_names_no_password(member, tmp_path, monkeypatch):
    spooled_run(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong-word-Q7x")
    with pytest.raises(sender.Unreachable) as error:
        flush(tmp_path / "spool", tmp_path)
    kept = "".join(path.read_text(errors="replace") for path in tmp_path.rglob("*") if path.is_file())
    assert "wrong-word-Q7x" not in str(error.value) + kept and "\n" not in str(error.value)
    monkeypatch.undo()
    for name, value in member.client_environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sender, "_store", None)
    assert flush(tmp_path / "spool", tmp_path) == 0


def test_a_login_in_the_address_is_printed_nowhere(member, tmp_path, monkeypatch, capfd):
    """MLflow's client prints the address of a run that ends, as it was given."""
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", member.client_environment(in_uri=True)["MLFLOW_TRACKING_URI"])
    spooled_run(tmp_path)
    assert flush(tmp_path / "spool", tmp_path) == 0
    said = capfd.readouterr()
    kept = "".join(path.read_text(errors="replace") for path in tmp_path.rglob("*") if path.is_file())
    assert member.login.password not in said.out + said.err + kept
