"""Where runs and artifacts are written, what is shown of a tracking URI, what a killed `nava ui` leaves."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from experiments.layout import Layout
from experiments.recipes.load import read_params
from experiments.runs import run as runs
from experiments.runs import sender
from experiments.runs.origin import is_temporary, origin_of, spool_of
from experiments.runs.run import tracked
from experiments.runs.sender import Unreachable, flush, quiet_mlflow
from experiments.runs.spool import SpooledRun, spooled_runs
from experiments.runs.store_uri import has_user_info, public_uri, scrubbed, store_uri
from experiments.runs.tracker import RunStart, SpoolTracker

quiet_mlflow()
ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(runs, "ensure_sender", lambda spool, root: None)
    monkeypatch.setattr(sender, "_store", None)


@pytest.mark.parametrize("below", ["tmpab12", "standalone/tmpab12"])
def test_an_experiment_in_a_temporary_workspace_is_recorded_where_it_came_from(tmp_path, monkeypatch, below):
    workspace = tmp_path / "repo" / ".dvc" / "tmp" / "exps" / below
    workspace.mkdir(parents=True)
    monkeypatch.chdir(workspace)
    assert origin_of(Path()) == tmp_path / "repo" and is_temporary(Path())
    assert store_uri(Path()) == f"sqlite:///{tmp_path / 'repo' / 'mlflow.db'}"
    layout = Layout()
    with tracked("votes", "mini", {"seed": 7}, layout, Path(), resume=False) as tracker:
        layout.votes.mkdir(parents=True)
        (layout.votes / "votes.jsonl").write_text("a vote")
        tracker.log_artifact(str(layout.votes / "votes.jsonl"))
        tracker.log_model(layout.votes, "mini", {})
    assert (workspace / "out/runs/votes.json").is_file() and not (workspace / "out/tracking").exists()
    monkeypatch.chdir(tmp_path)
    shutil.rmtree(workspace)  # as DVC does when the experiment has ended
    run = spooled_runs(tmp_path / "repo/out/tracking")[0]
    places = [Path(event["path"]) for _, event in run.events() if event["kind"] in ("artifact", "model")]
    assert len(places) == 2 and all(place.exists() for place in places)


def test_a_folder_that_is_no_temporary_workspace_is_its_own(tmp_path):
    for place in (tmp_path, tmp_path / ".dvc/tmp", tmp_path / "exps/tmp"):
        assert origin_of(place) == place and spool_of(Layout(), place) == Path("out/tracking")


@pytest.mark.parametrize("uri", ["sqlite:///runs.db", "mlruns", "file:mlruns"])
def test_a_relative_tracking_uri_is_one_in_the_repository(tmp_path, monkeypatch, uri):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    workspace = tmp_path / ".dvc/tmp/exps/tmp1"
    assert store_uri(workspace) == store_uri(tmp_path) and str(tmp_path) in store_uri(workspace)


def test_every_section_of_params_has_fields_that_dvc_can_change():
    sections = {name: value for name, value in read_params(ROOT / "params.yaml").items() if name != "recipe"}
    assert all(isinstance(value, dict) and value for value in sections.values())
    for name in (
        "corpus",
        "curate",
        "codec",
        "pretrain",
        "syncnet",
        "generate",
        "rollout",
        "align",
        "evaluate",
    ):
        assert "seed" in sections[name]


@pytest.mark.parametrize(
    "override", ["evaluate.seed=7", "votes.pairs_per_case=2", "generate.sampler.steps=4"]
)
def test_dvc_takes_an_override(tmp_path, override):
    from dvc.utils.hydra import apply_overrides

    from experiments.recipes.load import load_recipe

    copy = tmp_path / "params.yaml"
    shutil.copy(ROOT / "params.yaml", copy)
    apply_overrides(copy, [override])
    recipe, expected = load_recipe("mini", copy), load_recipe("mini", ROOT / "params.yaml", [override])
    assert recipe == expected != load_recipe("mini", ROOT / "params.yaml")


def send_one(root: Path) -> SpooledRun:
    tracker = SpoolTracker(root / "out/tracking" / f"run-{time.time_ns()}")
    tracker.start(RunStart(name="train", config={"n": 1}))
    (root / "a.txt").write_text("an artifact")
    tracker.log_artifact(str(root / "a.txt"))
    tracker.finish("FINISHED")
    assert flush(root / "out/tracking", root) == 0
    return SpooledRun(tracker.folder)


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_copied_or_moved_checkout_writes_beside_its_own_database(tmp_path, capsys, monkeypatch):
    from mlflow import MlflowClient

    first = tmp_path / "first"
    first.mkdir()
    old = send_one(first).sent().run_id
    before = files(first / "mlartifacts")
    for how, name in ((shutil.copytree, "copy"), (shutil.move, "moved with ä")):
        monkeypatch.setattr(sender, "_store", None)
        how(str(first), str(tmp_path / name))
        new = send_one(tmp_path / name).sent().run_id
        assert len(files(tmp_path / name / "mlartifacts")) == len(before) + 2
        assert not first.exists() or files(first / "mlartifacts") == before
        client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / name / 'mlflow.db'}")
        for run in (old, new):
            assert "an artifact" in Path(client.download_artifacts(run, "a.txt")).read_text()
        assert capsys.readouterr().out.count("moved or copied with its checkout") == 1


def test_a_file_that_moved_with_its_checkout_is_still_sent(tmp_path):
    taken = []
    tracker = SpoolTracker(tmp_path / "a/out/tracking/run")
    tracker.start(RunStart(name="train"))
    (tmp_path / "a/clip.mp4").write_text("x")
    tracker.log_artifact(str(tmp_path / "a/clip.mp4"))
    shutil.move(tmp_path / "a", tmp_path / "b")

    class Store:
        uri = "fake"

        def start(self, *_):
            return "1"

        def artifact(self, run_id, event):
            taken.append(event["path"])

    SpooledRun(tmp_path / "b/out/tracking/run").send(Store())  # type: ignore[arg-type]
    assert taken == [str(tmp_path / "b/clip.mp4")]


SECRET = "s3cr3t-w0rd"
URIS = [
    f"http://user:{SECRET}@127.0.0.1:9",
    f"http://{SECRET}@127.0.0.1:9/path",
    f"http://127.0.0.1:9/?token={SECRET}",
    pytest.param(
        f"postgresql://user:{SECRET}@127.0.0.1:9/db", marks=pytest.mark.slow
    ),  # MLflow tries for long
    f"nonsense+driver://user:{SECRET}@host/db?password={SECRET}",
]


@pytest.mark.parametrize("uri", URIS)
def test_no_secret_of_a_tracking_uri_is_shown_or_kept(tmp_path, monkeypatch, capfd, uri):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert SECRET not in store_uri(tmp_path) and has_user_info(uri)
    layout = Layout(out=tmp_path / "out")
    with tracked("votes", "mini", {"n": 1}, layout, tmp_path, resume=False):
        layout.votes.mkdir(parents=True)
        (layout.votes / "votes.jsonl").write_text("a vote")
    with pytest.raises(Unreachable) as error:
        flush(layout.tracking, tmp_path)
    said = capfd.readouterr()
    kept = "".join(path.read_text(errors="replace") for path in tmp_path.rglob("*") if path.is_file())
    assert SECRET not in str(error.value) + said.out + said.err + kept


def test_public_uris_lose_the_login_and_nothing_else():
    for uri in (
        "sqlite:////a/b.db",
        "http://host:5000/x",
        "file:///a/b",
        "databricks",
        "/a/b",
        "s3://bucket/a",
    ):
        assert public_uri(uri) == uri and not has_user_info(uri)
    assert public_uri("postgresql://u:p@h:5/d?sslmode=require") == "postgresql://h:5/d?sslmode=require"
    assert public_uri("https://u:p%40@[::1]:5/d") == "https://[::1]:5/d"


def test_secrets_in_a_librarys_words_are_hidden(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://me:p%40ss/w@host/db")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "t0ken")
    said = scrubbed("cannot parse 'postgresql://me:p%40ss@host/db', or http://x:y@h: Bearer t0ken")
    assert not {"p%40ss", "x:y", "t0ken"} & {word for word in ("p%40ss", "x:y", "t0ken") if word in said}


GUARDED = """
import subprocess, sys
from experiments.runs import ui

def server(port):
    below = "subprocess.Popen(['sleep', '600'], start_new_session=True)"
    tree = f"import subprocess, time; {below}; time.sleep(600)"
    return subprocess.Popen([sys.executable, "-c", tree])

ui._server = server
sys.exit(ui.guard(int(sys.argv[1]), "0"))
"""
PARENT = """
import os, subprocess, sys, time
subprocess.Popen([sys.executable, "-c", sys.argv[1], str(os.getpid())], start_new_session=True)
time.sleep(600)
"""


def below(process: subprocess.Popen[bytes], count: int) -> list[psutil.Process]:
    """All processes under one, once there are so many."""
    end = time.monotonic() + 90
    while len(found := psutil.Process(process.pid).children(recursive=True)) < count:
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.1)
    return found


def gone(processes: list[psutil.Process]) -> bool:
    end = time.monotonic() + 30
    while any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in processes):
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


@pytest.mark.skipif(sys.platform != "linux", reason="asks the Linux kernel")
def test_nothing_is_left_of_a_server_whose_parent_was_killed():
    parent = subprocess.Popen([sys.executable, "-c", PARENT, GUARDED], cwd=ROOT)
    found = below(parent, 3)
    parent.kill()
    parent.wait()
    assert gone(found)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="asks the Linux kernel")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
def test_nothing_is_left_of_a_killed_ui(tmp_path, number):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "experiments.cli", "ui", "--port", "5917"]
    ui = subprocess.Popen(command, cwd=tmp_path, env=environment)
    found = below(ui, 3)
    ui.send_signal(number)
    ui.wait(60)
    assert gone(found)


def test_a_server_is_not_started_for_runs_that_are_on_one(monkeypatch, capsys):
    from experiments.cli import main

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"https://me:{SECRET}@mlflow.example")
    assert main(["ui"]) == 0
    assert capsys.readouterr().out == "the runs are on a server: https://mlflow.example\n"
