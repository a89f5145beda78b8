"""Situations around runs that no other test has: DVC's own queue, permissions, checkouts without git."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from align_world import write_world
from pipeline_repository import commit, end_senders, git
from services import clean_environment
from titan_world import write_latents

from experiments import doctor
from experiments.runs import sender
from experiments.runs.provenance import git_state
from experiments.runs.sender import flush
from experiments.runs.spool import spooled_runs
from finetune.learner import Learner
from pretrain.files import write_json

STAGE = """
import json, yaml
from pathlib import Path
from experiments.layout import Layout
from experiments.runs.run import tracked
seed = yaml.safe_load(Path("params.yaml").read_text())["votes"]["seed"]
layout = Layout()
with tracked("votes", "mini", {"seed": seed}, layout, Path(), resume=False) as tracker:
    layout.votes.mkdir(parents=True, exist_ok=True)
    (layout.votes / "votes.jsonl").write_text(str(seed))
    Path("reports").mkdir(exist_ok=True)
    Path("reports/metrics.json").write_text(json.dumps({"score": seed / 2}))
    tracker.log_metrics({"score": seed / 2}, 0)
    tracker.log_artifact("reports/metrics.json")
"""
PIPELINE = """
stages:
  votes:
    cmd: {python} stage.py
    deps: [stage.py]
    params: [votes]
    metrics: [reports/metrics.json]
    outs: [out/votes, out/runs/votes.json]
"""


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A pipeline of one tracked stage, which has run."""
    folder = tmp_path / "repo"
    folder.mkdir()
    (folder / "stage.py").write_text(STAGE)
    (folder / "dvc.yaml").write_text(PIPELINE.format(python=sys.executable))
    (folder / "params.yaml").write_text("votes: {seed: 0}\n")
    (folder / ".gitignore").write_text("/out/\n/reports/\n/mlflow.db*\n/mlartifacts/\n")
    git(folder, "init", "-q")
    dvc(folder, "init", "-q")
    dvc(folder, "repro")
    commit(folder, "made")
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(sender, "_store", None)
    yield folder
    end_senders(folder)


def dvc(folder: Path, *arguments: str) -> str:
    names = {f"GIT_{who}_{what}": "a@b" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments],
        cwd=folder,
        env=clean_environment(**names, DVC_NO_ANALYTICS="1"),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def experiment_metrics(folder: Path) -> list[float]:
    """Scores of the experiments, as `dvc exp show` has them."""
    shown = json.loads(dvc(folder, "exp", "show", "--json"))
    found = []
    for row in shown:
        for experiment in row.get("experiments") or ():
            for revision in experiment["revs"]:
                assert not revision.get("error"), revision
                found.append(revision["data"]["metrics"]["reports/metrics.json"]["data"]["score"])
    return found


def assert_recorded(folder: Path, seeds: list[int]) -> None:
    """Each experiment's run is in the repository's spool and in its MLflow, with its file."""
    from mlflow import MlflowClient

    assert flush(folder / "out/tracking", folder) == 0
    client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("nava")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id])
    assert len(spooled_runs(folder / "out/tracking")) == len(found)
    runs = [
        run for run in found if "mlflow.parentRunId" in run.data.tags
    ]  # each below what DVC was asked for
    assert len(found) == 2 * len(runs)
    assert sorted(int(run.data.params["seed"]) for run in runs) == sorted([0, *seeds])
    for run in runs:
        assert run.info.status == "FINISHED"
        assert run.data.metrics["score"] == int(run.data.params["seed"]) / 2
        assert "metrics.json" in [item.path for item in client.list_artifacts(run.info.run_id)]


def send_to(folder: Path, database: Path) -> None:
    """The senders that the stages start end here, so that one process makes MLflow's tables."""
    end_senders(folder)
    for path in folder.glob("mlflow.db*"):
        path.unlink()
    shutil.copy(database, folder / "mlflow.db")


def test_an_experiment_in_a_temporary_workspace_loses_neither_run_nor_metrics(
    repository,
    empty_database,
):
    dvc(repository, "exp", "run", "--temp", "-S", "votes.seed=7")
    assert experiment_metrics(repository) == [3.5]
    assert (repository / "out/votes/votes.jsonl").read_text() == "0"
    send_to(repository, empty_database)
    assert_recorded(repository, [7])


@pytest.mark.slow
def test_queued_experiments_lose_neither_runs_nor_metrics(repository, empty_database):
    dvc(repository, "exp", "run", "--queue", "-S", "votes.seed=3,5")
    dvc(repository, "queue", "start")
    end = time.monotonic() + 200
    while len(spooled_runs(repository / "out/tracking")) < 3 or "Running" in dvc(
        repository, "queue", "status"
    ):
        assert time.monotonic() < end
        time.sleep(1)
    dvc(repository, "queue", "stop", "--kill")
    assert sorted(experiment_metrics(repository)) == [1.5, 2.5]
    send_to(repository, empty_database)
    assert_recorded(repository, [3, 5])


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640)])
def test_everything_that_is_written_takes_the_umask(tmp_path, mask, mode):
    """Codec, model, latents with their index, rows: a colleague can read all of it."""
    before = os.umask(mask)
    try:
        write_world(tmp_path / "world")
        write_latents(tmp_path / "latents")
        write_json(tmp_path / "record.json", {"a": 1})
    finally:
        os.umask(before)
    found = {path: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*") if path.is_file()}
    assert len([path for path in found if path.suffix == ".safetensors"]) > 4
    assert {str(path): oct(each) for path, each in found.items() if each != mode} == {}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_adapter_that_is_not_finite_is_not_exported(tmp_path, monkeypatch, value):
    learner = object.__new__(Learner)
    learner.run = SimpleNamespace(out=tmp_path)  # type: ignore[assignment]
    monkeypatch.setattr(learner, "take_best", lambda: None)
    good, bad = torch.ones(2), torch.tensor([1.0, value])
    monkeypatch.setattr(learner, "averaged", lambda: {"good": good, "bad": bad})
    with pytest.raises(ValueError, match=r"1 of 2 weights .* \(bad is the first\); nothing is exported"):
        learner.export(SimpleNamespace())  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_machine_without_git_is_told_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    line = doctor.repository_problem(tmp_path)
    assert "not installed" in line and "no_scm true" in line and "\n" not in line


def test_a_repository_without_a_commit_is_usable_and_has_none(tmp_path):
    git(tmp_path, "init", "-q")
    (tmp_path / "dvc.yaml").write_text("stages: {}")
    git(tmp_path, "add", "dvc.yaml")
    assert doctor.repository_problem(tmp_path) == ""
    assert git_state(tmp_path).commit == ""


def test_a_tarball_inside_another_repository_is_usable(tmp_path):
    """DVC works there; the other one's commit is nobody's."""
    git(tmp_path, "init", "-q")
    (tmp_path / "a.txt").write_text("theirs")
    commit(tmp_path, "theirs")
    copy = tmp_path / "nava"
    copy.mkdir()
    (copy / "dvc.yaml").write_text("stages: {}")
    assert git_state(copy).commit == ""
    assert doctor.repository_problem(copy) == ""
