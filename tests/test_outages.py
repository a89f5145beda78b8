"""MLflow gone, its database locked, its artifact store full: nothing is lost or doubled, other runs go on."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from pipeline_repository import end_senders
from services import mlflow_server, running

from experiments.runs import sender
from experiments.runs.sender import flush, quiet_mlflow, stuck, unsent, wait_until_sent
from experiments.runs.spool import SpooledRun
from experiments.runs.tracker import RunStart, SpoolTracker, ensure_sender, new_run_key

quiet_mlflow()
KIB = 1024
needs_mounts = pytest.mark.skipif(
    os.getuid() != 0, reason="mounts a small file system, for which one is root"
)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sender, "_store", None)
    yield tmp_path
    end_senders(tmp_path)


@pytest.fixture
def database(root: Path, monkeypatch: pytest.MonkeyPatch, empty_database: Path) -> Path:
    """The default store of a repository."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Path(shutil.copy(empty_database, root / "mlflow.db"))


def begin(root: Path, name: str) -> SpoolTracker:
    tracker = SpoolTracker(root / "spool" / new_run_key(name))
    tracker.start(RunStart(name=name, config={"n": 1}, inputs={"out/x": "0" * 32}))
    return tracker


def file_of(root: Path, name: str, kib: int) -> Path:
    path = root / "made" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(name.encode().ljust(kib * KIB, b"."))
    return path


def model_of(root: Path, name: str, kib: int) -> Path:
    folder = root / "models" / name
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(name.encode().ljust(kib * KIB, b"."))
    return folder


def assert_points(uri: str, tracker: SpoolTracker, steps: int) -> Any:
    """The run is finished in MLflow with every point, once; returns it."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("nava")
    assert experiment is not None
    where = f"tags.`nava.run` = '{tracker.key}'"
    (run,) = client.search_runs([experiment.experiment_id], where)
    points = client.get_metric_history(run.info.run_id, "loss")
    assert sorted((point.step, point.value) for point in points) == [(n, float(n)) for n in range(steps)]
    assert run.info.status == "FINISHED" and run.data.params == {"n": "1"}
    assert run.inputs is not None and len(run.inputs.dataset_inputs) == 1
    return run


def assert_whole(
    uri: str, tracker: SpoolTracker, steps: int, files: dict[str, Path], models: int = 0
) -> None:
    """So is every file and model of it."""
    from mlflow import MlflowClient

    client, run = MlflowClient(tracking_uri=uri), assert_points(uri, tracker, steps)
    assert {item.path for item in client.list_artifacts(run.info.run_id)} == {"config.json", *files}
    for name, path in files.items():
        assert Path(client.download_artifacts(run.info.run_id, name)).read_bytes() == path.read_bytes()
    found = client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run.info.run_id}'")
    assert [str(model.status) for model in found] == ["READY"] * models


@contextmanager
def locked(path: Path, seconds: float, pause_s: float = 0.0, times: int = 1) -> Iterator[None]:
    """Another connection has the database for itself, from now on for `seconds`, `times` times."""
    held = threading.Event()

    def hold() -> None:
        for _ in range(times):
            with closing(sqlite3.connect(path, timeout=60, isolation_level=None)) as connection:
                connection.execute("BEGIN EXCLUSIVE")
                held.set()
                time.sleep(seconds)
                connection.execute("ROLLBACK")
            time.sleep(pause_s)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    try:
        yield
    finally:
        thread.join()


def work_through(root: Path, trackers: list[SpoolTracker], steps: range) -> None:
    for step in steps:
        for tracker in trackers:
            tracker.log_metrics({"loss": float(step)}, step)


def test_a_database_that_is_locked_now_and_then_loses_and_doubles_nothing(root, database):
    first, second = begin(root, "a"), begin(root, "b")
    files = {"a.txt": file_of(root, "a.txt", 1)}
    with locked(database, 0.4, pause_s=0.05, times=4):
        work_through(root, [first, second], range(40))
        first.log_artifact(str(files["a.txt"]))
        first.log_model(model_of(root, "m", 1), "m", {})
        for tracker in (first, second):
            tracker.finish("FINISHED")
        assert flush(root / "spool", root) == 0
    assert_whole(f"sqlite:///{database}", first, 40, files, models=1)
    assert_whole(f"sqlite:///{database}", second, 40, {})


@pytest.mark.slow
def test_a_database_that_stays_locked_is_named_and_gets_everything_afterwards(root, database):
    tracker = begin(root, "a")
    work_through(root, [tracker], range(10))
    assert flush(root / "spool", root) == 0
    work_through(root, [tracker], range(10, 20))
    tracker.finish("FINISHED")
    with locked(database, 60):
        with pytest.raises(sender.Unreachable, match="locked"):
            flush(root / "spool", root)
        assert "locked" in stuck(tracker.folder, root)
    assert flush(root / "spool", root) == 0 and stuck(tracker.folder, root) == ""
    assert_whole(f"sqlite:///{database}", tracker, 20, {})


def test_who_waits_for_the_sender_wakes_it(root, database, monkeypatch):
    """After an outage the sender sleeps for up to a minute."""
    tracker = begin(root, "a")
    tracker.finish("FINISHED")
    failed = []

    def not_at_first(spool: Path, where: Path) -> int:
        failed.append(time.monotonic())
        if len(failed) == 1:
            raise sender.Unreachable("gone")
        return flush(spool, where)

    monkeypatch.setattr(sender, "flush", not_at_first)
    monkeypatch.setattr(sender, "POLL_S", 60.0)
    monkeypatch.setattr(sender, "IDLE_S", 0.1)
    at_work = threading.Thread(target=sender.follow, args=(root / "spool", root), daemon=True)
    at_work.start()
    assert wait_until_sent(root / "spool", root, 50)
    assert len(failed) > 1


@contextmanager
def small_disk(folder: Path, kib: int) -> Iterator[Path]:
    """A file system of a size."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def grow(folder: Path, kib: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={kib}k", str(folder)], check=True)


def through_a_full_disk(root: Path, uri: str, disk: Path) -> None:
    """Two runs while the artifact store is full, of which numbers and ends arrive, and after it has grown."""
    full, other = begin(root, "full"), begin(root, "other")
    files = {name: file_of(root, name, kib) for name, kib in (("1.bin", 400), ("2.bin", 700), ("3.txt", 1))}
    for name in ("1.bin", "2.bin"):
        full.log_artifact(str(files[name]))
    full.log_model(model_of(root, "m", 700), "m", {})
    full.log_artifact(str(files["3.txt"]))
    work_through(root, [full, other], range(20))
    for tracker in (full, other):
        tracker.finish("FINISHED")
    for _ in range(2):
        assert flush(root / "spool", root) > 0
        assert full.key in [run.key for run in unsent(root / "spool", root)]
        assert "not stored" in stuck(full.folder, root)
        assert_points(uri, full, 20)
        assert_points(uri, other, 20)
    grow(disk, 8 * KIB)
    assert flush(root / "spool", root) == 0 and stuck(full.folder, root) == ""
    assert_whole(uri, full, 20, files, models=1)
    assert_whole(uri, other, 20, {})


@needs_mounts
def test_a_full_artifact_store_holds_back_what_it_cannot_take_and_nothing_else(root, database):
    with small_disk(root / "mlartifacts", 1024) as disk:
        through_a_full_disk(root, f"sqlite:///{database}", disk)


@pytest.mark.slow
@needs_mounts
def test_a_full_artifact_store_behind_a_server(root, monkeypatch):
    with small_disk(root / "art", 1024) as disk, running(mlflow_server(root)) as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
        through_a_full_disk(root, server.url, disk)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("gone_s", [5, 60])
def test_a_server_that_is_gone_is_caught_up_by_the_sender_at_work(root, monkeypatch, gone_s):
    """The sender beside the runs meets the outage in the middle of its work, and goes on by itself."""
    with running(mlflow_server(root)) as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
        runs = [begin(root, name) for name in ("a", "b")]
        process = ensure_sender(root / "spool", root)
        assert process is not None
        files: dict[str, Path] = {}
        step, end = 0, time.monotonic() + gone_s + 12
        while time.monotonic() < end:
            if step == 40:
                server.kill()
                back = time.monotonic() + gone_s
            if step > 40 and not server.processes() and time.monotonic() > back:
                server.launch()
            work_through(root, runs, range(step, step + 1))
            if step % 25 == 0:
                name = f"{step}.txt"
                files[name] = file_of(root, name, 1)
                runs[0].log_artifact(str(files[name]))
            step += 1
            time.sleep(0.1)
        runs[0].log_model(model_of(root, "m", 1), "m", {})
        for tracker in runs:
            tracker.finish("FINISHED")
        server.wait()
        # at the lowest priority, so long on a busy machine
        assert wait_until_sent(root / "spool", root, 500), (root / "spool/sender.log").read_text()
        assert process.poll() is None
        assert_whole(server.url, runs[0], step, files, models=1)
        assert_whole(server.url, runs[1], step, {})
        assert {run.sent().problem for run in (SpooledRun(each.folder) for each in runs)} == {""}
