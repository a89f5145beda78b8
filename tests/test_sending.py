"""Spooled runs in a real MLflow: what it refuses, what is lost on the way, and what is sent twice."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from experiments.cli import main
from experiments.runs import sender
from experiments.runs.mlflow_names import distinct_name, taken_name
from experiments.runs.sender import flush, give_up, quiet_mlflow, stuck, unsent
from experiments.runs.spool import SpooledRun
from experiments.runs.tracker import RunStart, SpoolTracker, new_run_key

quiet_mlflow()


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch, empty_database):
    """A default store in the current folder; returns what reads it."""
    from mlflow import MlflowClient

    shutil.copy(empty_database, tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(sender, "_store", None)
    return lambda: MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")


def run_with(spool: Path, name: str = "train", **start) -> SpoolTracker:
    tracker = SpoolTracker(spool / new_run_key(name))
    tracker.start(RunStart(name=name, **start))
    return tracker


def sent_run(client, tracker: SpoolTracker):
    return client.get_run(SpooledRun(tracker.folder).sent().run_id)


def history(client, tracker: SpoolTracker, metric: str) -> list[tuple[int, float]]:
    points = client.get_metric_history(SpooledRun(tracker.folder).sent().run_id, metric)
    return sorted((point.step, point.value) for point in points)


@pytest.mark.parametrize(
    "name", ["a@24fps", "a//b", "/a", "../a", ".", "", "x" * 400, "ä", "a\nb", "a(b)", "a:b c"]
)
def test_a_mapped_name_is_one_that_mlflow_takes(name):
    from mlflow.utils.validation import _validate_metric_name, _validate_param_name, _validate_tag_name

    for check in (_validate_metric_name, _validate_param_name, _validate_tag_name):
        check(taken_name(name))
    assert taken_name(taken_name(name)) == taken_name(name)


def test_two_names_that_become_one_stay_apart():
    taken: dict[str, str] = {}
    for name in ("a@b", "a#b", "a_b"):
        taken[distinct_name(name, taken)] = name
    assert list(taken.values()) == ["a@b", "a#b", "a_b"]
    assert distinct_name("a@b", taken) == "a_b"


def test_refused_values_are_mapped_or_cut_and_named_and_the_rest_arrives(tmp_path, store, capsys):
    config = {
        "sets": {"paired@24fps": 1.0, "good": 2},
        "long": "x" * 9000,
        "nul": "a\0b",
        "surrogate": "\udcff",
    }
    tracker = run_with(
        tmp_path / "s", config=config, tags={"a@b": "y" * 9000}, inputs={"my@data/x.jsonl": "0" * 32}
    )
    tracker.log_metrics({"loss@1": 1.0, "loss": 2.0}, 1)
    tracker.log_metrics({"loss": float("nan"), "up": float("inf")}, 2)
    tracker.finish("FINISHED")
    assert flush(tmp_path / "s", tmp_path) == 0
    run, client = sent_run(store(), tracker), store()
    assert run.info.status == "FINISHED"
    assert run.data.params["sets.paired_24fps"] == "1.0" and run.data.params["sets.good"] == "2"
    assert len(run.data.params["long"]) == 6000 and run.data.params["nul"] == "ab"
    assert run.data.tags["nava.mapped.sets.paired_24fps"] == "sets.paired@24fps"
    assert run.data.tags["nava.mapped.loss_1"] == "loss@1"
    assert run.data.tags["nava.truncated.long"] == "9000 characters"
    assert run.inputs.dataset_inputs[0].dataset.name == "my@data/x.jsonl"
    assert history(client, tracker, "loss_1") == [(1, 1.0)] and len(history(client, tracker, "loss")) == 2
    said = capsys.readouterr().out
    assert said.count("mapped.loss_1 = loss@1") == 1
    kept = json.loads(Path(client.download_artifacts(run.info.run_id, "config.json")).read_text())
    assert kept["long"] == config["long"]


def test_a_value_that_only_the_server_refuses_is_dropped_alone(tmp_path, store, monkeypatch):
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

    from experiments.runs.mlflow_store import MlflowClient

    real = MlflowClient.log_batch

    def picky(self, run_id, metrics=(), params=(), tags=()):
        if any(entry.key == "bad" for entry in (*metrics, *params, *tags)):
            raise MlflowException("bad is not for me", INVALID_PARAMETER_VALUE)
        return real(self, run_id, metrics=metrics, params=params, tags=tags)

    monkeypatch.setattr(MlflowClient, "log_batch", picky)
    tracker = run_with(tmp_path / "s", config={f"p{n}": n for n in range(150)} | {"bad": 1})
    for step in range(30):
        tracker.log_metrics({"bad": 1.0, "loss": float(step)}, step)
    tracker.finish("FINISHED")
    assert flush(tmp_path / "s", tmp_path) == 0
    run = sent_run(store(), tracker)
    assert len(run.data.params) == 150 and "not for me" in run.data.tags["nava.dropped.bad"]
    assert history(store(), tracker, "loss") == [(step, float(step)) for step in range(30)]


@pytest.mark.parametrize(
    ("call", "nth"),
    [
        ("log_batch", 1),
        ("log_batch", 3),
        ("log_inputs", 1),
        ("set_tag", 1),
        ("create_run", 1),
        ("update_run", 1),
    ],
)
def test_a_start_that_broke_off_is_sent_whole_by_the_next_try(tmp_path, store, monkeypatch, call, nth):
    from experiments.runs.mlflow_store import MlflowClient

    real, calls = getattr(MlflowClient, call), []

    def broken(self, *arguments, **options):
        calls.append(call)
        if len(calls) == nth:
            if call == "create_run":  # it arrives, but the answer is lost
                real(self, *arguments, **options)
            raise ConnectionError("gone")
        return real(self, *arguments, **options)

    config, inputs = {f"p{n}": n for n in range(120)}, {"out/x": "0" * 32, "out/y": "1" * 32}
    tracker = run_with(tmp_path / "s", config=config, inputs=inputs, tags={"nava.stage": "x"})
    tracker.log_metrics({"loss": 1.0}, 1)
    tracker.finish("FINISHED")
    monkeypatch.setattr(MlflowClient, call, broken)
    left = flush(tmp_path / "s", tmp_path)
    monkeypatch.setattr(MlflowClient, call, real)
    if len(calls) >= nth:
        assert left and "gone" in SpooledRun(tracker.folder).sent().problem
    assert flush(tmp_path / "s", tmp_path) == 0
    client = store()
    run = sent_run(client, tracker)
    assert len(run.data.params) == 120 and len(run.inputs.dataset_inputs) == 2
    assert run.data.tags["nava.stage"] == "x" and run.info.status == "FINISHED"
    assert len(client.search_runs([run.info.experiment_id])) == 1
    assert SpooledRun(tracker.folder).sent().problem == ""


def test_a_file_that_cannot_be_stored_holds_neither_its_run_nor_the_others(
    tmp_path, store, monkeypatch, capsys
):
    from experiments.runs.mlflow_store import MlflowClient

    first, second = (
        run_with(tmp_path / "out/tracking", "a", config={"n": 1}),
        run_with(tmp_path / "out/tracking", "b"),
    )
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    for tracker in (first, second):
        tracker.log_metrics({"loss": 1.0}, 1)
    first.log_model(model, "mini", {})
    for tracker in (first, second):
        tracker.finish("FINISHED")
    real = {name: getattr(MlflowClient, name) for name in ("log_artifact", "log_model_artifacts")}
    for name in real:
        monkeypatch.setattr(
            MlflowClient, name, lambda *_, **__: (_ for _ in ()).throw(OSError(28, "no space left"))
        )
    assert main(["tracking", "flush"]) == 1
    said = capsys.readouterr()
    assert f"{first.key}: 2 events not sent: " in said.err and "no space left" in said.err
    assert second.key not in said.err and "everything" not in said.out
    client = store()
    assert {sent_run(client, tracker).info.status for tracker in (first, second)} == {"FINISHED"}
    assert sent_run(client, first).data.params == {"n": "1"}
    assert "no space left" in stuck(first.folder, tmp_path) and stuck(second.folder, tmp_path) == ""
    for name, function in real.items():
        monkeypatch.setattr(MlflowClient, name, function)
    assert main(["tracking", "flush"]) == 0 and unsent(tmp_path / "out/tracking", tmp_path) == []
    run = sent_run(client, first)
    assert [item.path for item in client.list_artifacts(run.info.run_id)] == ["config.json"]
    models = client.search_logged_models([run.info.experiment_id])
    assert [str(each.status) for each in models] == ["READY"]


def test_a_run_deleted_in_mlflow_holds_no_other(tmp_path, store):
    deleted, other = run_with(tmp_path / "s", "a"), run_with(tmp_path / "s", "b")
    assert flush(tmp_path / "s", tmp_path) == 0
    store().delete_run(SpooledRun(deleted.folder).sent().run_id)
    for tracker in (deleted, other):
        tracker.log_metrics({"loss": 1.0}, 1)
        tracker.finish("FINISHED")
    assert flush(tmp_path / "s", tmp_path) == 2
    assert [run.key for run in unsent(tmp_path / "s", tmp_path)] == [deleted.key]
    assert "deleted in MLflow" in unsent(tmp_path / "s", tmp_path)[0].problem
    assert sent_run(store(), other).info.status == "FINISHED"


def test_what_was_deleted_in_mlflow_can_be_let_go(tmp_path, store, capsys):
    deleted, kept = run_with(tmp_path / "out/tracking", "a"), run_with(tmp_path / "out/tracking", "b")
    assert main(["tracking", "flush"]) == 0
    run_id = SpooledRun(deleted.folder).sent().run_id
    store().delete_run(run_id)
    deleted.finish("FINISHED")
    assert main(["tracking", "flush"]) == main(["tracking", "flush"]) == 1
    assert (
        f"{deleted.key}: 1 events not sent: ValueError: run {run_id} was deleted" in capsys.readouterr().err
    )
    for key, why in (("none", "no run in"), (kept.key, "has all of it")):
        with pytest.raises(ValueError, match=why):
            give_up(tmp_path / "out/tracking", tmp_path, key)
    kept.finish("FINISHED")
    with pytest.raises(ValueError, match="it waits"):
        give_up(tmp_path / "out/tracking", tmp_path, kept.key)
    assert main(["tracking", "flush", "--let-go", deleted.key]) == 0
    assert f"{deleted.key}: 1 events given up" in capsys.readouterr().out
    assert main(["tracking", "flush"]) == 0 and store().get_run(run_id).info.status == "RUNNING"
    assert sent_run(store(), kept).info.status == "FINISHED"
    assert SpooledRun(deleted.folder).last_end()[0] == "FINISHED"  # another store still gets all of it
    assert SpooledRun(deleted.folder).pending("sqlite:///another.db") == 2
    deleted.set_tags({"more": "1"})
    assert main(["tracking", "flush"]) == 1


def test_a_plain_folder_is_refused_in_one_line_with_what_to_do(tmp_path, monkeypatch):
    run_with(tmp_path / "s")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "file:mlruns")
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
    with pytest.raises(sender.Unreachable) as raised:
        flush(tmp_path / "s", tmp_path)
    said = str(raised.value)
    assert "does not answer" not in said and "\n" not in said and said.endswith("the runs stay in the spool")
    assert (
        "set MLFLOW_TRACKING_URI=sqlite:////PATH/mlflow.db" in said and "migrate-filestore --source" in said
    )


def test_everything_sent_twice_is_there_once(tmp_path, store):
    tracker = run_with(tmp_path / "s", config={"n": 1}, inputs={"out/x": "0" * 32})
    for step in range(20):
        tracker.log_metrics({"loss": 1 / (step + 1)}, step)
    tracker.finish("FINISHED")
    flush(tmp_path / "s", tmp_path)
    before = history(store(), tracker, "loss")
    (tracker.folder / "sent.json").write_text('{"uri": "cut sh')  # as a kill in the wrong moment might
    assert flush(tmp_path / "s", tmp_path) == 0
    run = sent_run(store(), tracker)
    assert history(store(), tracker, "loss") == before and len(before) == 20
    assert len(run.inputs.dataset_inputs) == 1 and run.info.status == "FINISHED"


def test_what_a_resumed_run_changed_is_a_tag(tmp_path, store):
    tracker = run_with(tmp_path / "s", config={"steps": 5, "lr": 1})
    flush(tmp_path / "s", tmp_path)
    tracker.start(RunStart(name="train", config={"steps": 9, "lr": 1}))
    tracker.finish("FINISHED")
    assert flush(tmp_path / "s", tmp_path) == 0
    run = sent_run(store(), tracker)
    assert run.data.params == {"steps": "5", "lr": "1"} and run.data.tags["nava.changed.steps"] == "5 -> 9"


@pytest.mark.slow
def test_a_server_that_is_gone_for_a_while_loses_and_doubles_nothing(tmp_path, monkeypatch):
    from mlflow import MlflowClient

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    tracker = run_with(tmp_path / "s", config={"a@b": 1, "long": "x" * 9000})
    server = start_server(tmp_path, port)
    try:
        for step in range(50):
            tracker.log_metrics({"loss": float(step), "odd@": float("nan")}, step)
        assert flush(tmp_path / "s", tmp_path) == 0
    finally:
        stop(server)
    tracker.log_metrics({"loss": 50.0}, 50)
    tracker.finish("FINISHED")
    with pytest.raises(sender.Unreachable, match="does not answer"):
        flush(tmp_path / "s", tmp_path)
    assert "does not answer" in stuck(tracker.folder, tmp_path)
    server = start_server(tmp_path, port)
    try:
        assert flush(tmp_path / "s", tmp_path) == 0 and stuck(tracker.folder, tmp_path) == ""
        client = MlflowClient(tracking_uri=uri)
        assert history(client, tracker, "loss") == [(step, float(step)) for step in range(51)]
        assert len(history(client, tracker, "odd_")) == 50
        assert sent_run(client, tracker).info.status == "FINISHED"
    finally:
        stop(server)


def start_server(folder: Path, port: int) -> subprocess.Popen[bytes]:
    """An MLflow server that answers."""
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
    where = [
        "--backend-store-uri",
        f"sqlite:///{folder}/server.db",
        "--artifacts-destination",
        str(folder / "art"),
    ]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    server = subprocess.Popen(
        [*command, *where], cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    for _ in range(600):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                return server
        except OSError:
            time.sleep(0.2)
    stop(server)
    raise TimeoutError("the MLflow server did not start")


def stop(server: subprocess.Popen[bytes]) -> None:
    import psutil

    below = psutil.Process(server.pid).children(recursive=True)
    for process in (server, *below):
        process.kill()
    server.wait()


@pytest.mark.parametrize(
    ("code", "text", "refused"),
    [
        ("INVALID_PARAMETER_VALUE", "bad is not for me", True),
        ("BAD_REQUEST", "(psycopg.DataError) value too long for type character varying(500)", True),
        ("BAD_REQUEST", "(psycopg2.InterfaceError) connection already closed", False),
        ("BAD_REQUEST", "This Session's transaction has been rolled back (PendingRollbackError)", False),
        ("TEMPORARILY_UNAVAILABLE", "(sqlite3.OperationalError) database is locked", False),
        ("PERMISSION_DENIED", "Permission denied", False),
    ],
)
def test_a_broken_connection_is_no_refusal_of_a_value(code, text, refused):
    from mlflow.exceptions import MlflowException
    from mlflow.protos import databricks_pb2

    from experiments.runs.mlflow_store import _is_refusal

    assert bool(_is_refusal(MlflowException(text, getattr(databricks_pb2, code)))) is refused
