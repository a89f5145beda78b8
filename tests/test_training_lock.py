"""Two commands on one folder: the second is refused by name, or waits, and takes nothing from the first."""

from __future__ import annotations

import dataclasses
import errno
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import FileLock
from titan_world import config, write_latents

from experiments.alignment.inputs import AlignInputs
from experiments.commands import align as align_command
from experiments.commands import pretrain as command
from experiments.continuing import Decision, Wish
from experiments.job import StageJob
from experiments.layout import Layout
from experiments.runs.trackers import TrackingConfig
from experiments.stages import run_where_needed
from experiments.studies.harness import Study
from finetune.align_run import AlignRun
from finetune.launch import alone as one_alignment
from finetune.recipe import AlignConfig
from finetune.sft.launch import alone as one_fine_tuning
from pretrain.launch import launch
from pretrain.launch.nodes import Nodes
from pretrain.launch.rank import wait_for_ranks
from pretrain.launch.training_lock import alone

ROOT = Path(__file__).parent.parent
HOLDER = """
import fcntl, sys, time
from pathlib import Path
place = Path(sys.argv[2])
if sys.argv[1] == "ranks":
    log = (place / "log.txt").open()
    fcntl.flock(log, fcntl.LOCK_EX)
    print("held", flush=True)
    time.sleep(float(sys.argv[3]))
else:
    from pretrain.launch.training_lock import alone
    with alone(place):
        print("held", flush=True)
        time.sleep(float(sys.argv[3]))
"""
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def holding() -> Iterator[Start]:
    """Another process that holds a folder: as a command, or as ranks of a killed one."""
    started: list[subprocess.Popen[str]] = []

    def start(place: Path, what: str = "command", seconds: float = 600) -> subprocess.Popen[str]:
        arguments = [sys.executable, "-c", HOLDER, what, str(place), str(seconds)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        started.append(subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, text=True))
        assert started[-1].stdout and started[-1].stdout.readline() == "held\n"
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_second_command_is_refused_by_the_name_of_the_first_until_that_ends(holding, tmp_path):
    other = holding(tmp_path / "run")
    named = rf"another .* is at work here \(process {other.pid} on {socket.gethostname()}, since 20[^\n]*\)"
    for refused, way in ((one_alignment, "folder"), (one_fine_tuning, "--to"), (alone, "folder")):
        with (
            pytest.raises(ValueError, match=rf"^[^\n]*{named}; wait for it, or give another {way}$"),
            refused(tmp_path / "run"),
        ):
            raise AssertionError("both at once")
    other.kill()
    other.wait()
    with alone(tmp_path / "run"):  # a killed one has let go, although its name is still there
        pass
    assert [path.name for path in tmp_path.iterdir()] == [".run.lock"]


def test_nested_calls_of_a_process_are_one_and_the_outer_one_lets_go(holding, tmp_path):
    with alone(tmp_path / "run"):
        with alone(tmp_path / "x" / ".." / "run"):
            pass
        with pytest.raises(AssertionError):
            holding(tmp_path / "run")
    holding(tmp_path / "run")


def test_one_that_ends_in_time_is_waited_for(holding, tmp_path, capsys):
    other, begun_s = holding(tmp_path / "run", seconds=1.5), time.monotonic()
    with alone(tmp_path / "run", patience_s=60):
        assert time.monotonic() - begun_s > 1
    assert f"waits for another training (process {other.pid} on" in capsys.readouterr().err
    holding(tmp_path / "run")
    with pytest.raises(ValueError, match="at work here"), alone(tmp_path / "run", patience_s=0.2):
        pass


def test_ranks_of_a_killed_command_end_before_anything_is_looked_at(holding, tmp_path, capsys):
    (tmp_path / "log.txt").touch()
    ranks, begun_s = holding(tmp_path, "ranks", 1.5), time.monotonic()
    with alone(tmp_path):
        assert time.monotonic() - begun_s > 1 and ranks.wait(20) == 0
    assert "waits for the ranks of an earlier start" in capsys.readouterr().err
    holding(tmp_path, "ranks")
    with pytest.raises(ValueError, match=r"^[^\n]*ranks of an earlier start are still at work here[^\n]*$"):
        wait_for_ranks(tmp_path, patience_s=0.2)


@pytest.mark.parametrize("error", [OSError(errno.ENOLCK, "No locks available"), NotImplementedError("flock")])
def test_a_file_system_without_locks_is_said_and_trained_on(tmp_path, monkeypatch, caplog, error):
    def no_lock(self, *args, **options):
        raise error

    monkeypatch.setattr(FileLock, "acquire", no_lock)
    with alone(tmp_path / "run"):
        pass
    assert "no lock can be held" in caplog.text


@pytest.fixture
def job(tmp_path, monkeypatch) -> StageJob:
    latents = write_latents(tmp_path / "latents")
    pretraining = dataclasses.replace(config(steps=5), latents=str(latents))
    recipe = SimpleNamespace(name="own", pretrain=pretraining, tracking=TrackingConfig())
    monkeypatch.setattr("experiments.pipeline.pretrain.code_digests", lambda stage, root: {})
    return StageJob(recipe=recipe, layout=Layout(out=tmp_path / "out"), root=tmp_path)


def test_pretraining_and_the_stage_of_dvc_leave_a_folder_that_is_trained_in(job, holding):
    folder = job.layout.pretrain("stage1")
    folder.mkdir(parents=True)
    (folder / "log.txt").write_text("-- torchrun starts --")
    holding(folder)
    for wish in (Wish(), Wish(resume=False), Wish(aside=True)):
        with pytest.raises(
            ValueError, match=r"^[^\n]*another training is at work here \(process [^\n]*--out$"
        ):
            command._train_stages(job, "all", wish)
    with pytest.raises(ValueError, match="another training is at work here"):
        run_where_needed("pretrain_stage1", job)
    assert (folder / "log.txt").is_file() and not job.layout.trash.exists() and not job.layout.runs.exists()


def test_what_is_refused_for_other_reasons_leaves_no_lock(job, tmp_path):
    stage = dataclasses.replace(job.recipe.pretrain.stages["stage1"], sets={"missing": 1.0})
    job.recipe.pretrain = dataclasses.replace(job.recipe.pretrain, stages={"stage1": stage})
    with pytest.raises((ValueError, FileNotFoundError), match="missing"):
        command._train_stages(job, "stage1", Wish())
    assert not job.layout.out.exists()


def test_the_other_nodes_of_a_training_join_it_without_the_lock(job, holding, monkeypatch):
    holding(job.layout.pretrain("stage1"))
    joined: list[Path] = []

    def join(out: Path, *args) -> launch.StageResult:
        joined.append(out)
        return launch.StageResult("finished", 5, None, "")

    monkeypatch.setattr(launch, "join_stage", join)
    node = dataclasses.replace(job, nproc=1, nodes=Nodes(count=2, rank=1, rendezvous="127.0.0.1:29500"))
    command._train_stages(node, "stage1", Wish())
    assert joined == [job.layout.pretrain("stage1")]


def test_an_alignment_is_held_while_it_is_decided_what_becomes_of_its_folder(tmp_path, holding, monkeypatch):
    layout = Layout(out=tmp_path)
    given = {name: tmp_path for name in ("base", "codec", "prompts", "out")}
    run = AlignRun(config=AlignConfig(), scorer=("x:y", {}), **given)
    decided: list[Path] = []

    def decide(run: AlignRun, job: StageJob, wish: Wish) -> Decision:
        with pytest.raises(AssertionError):  # it has ended without the lock
            holding(layout.align)
        decided.append(layout.align)
        return Decision(False)

    monkeypatch.setattr("experiments.stages.config_of", lambda stage, recipe: {})
    monkeypatch.setattr("experiments.pipeline.align.alignment_of", lambda job, inputs: run)
    monkeypatch.setattr("experiments.continuing.decide", decide)
    with ExitStack() as opened:
        job = StageJob(recipe=SimpleNamespace(), layout=layout, root=tmp_path)
        align_command._align(job, AlignInputs(), "", Wish(), opened, False)
    assert decided == [layout.align]


def test_a_study_is_of_one_command(holding, tmp_path):
    study = Study("claims", tmp_path / "study" / "claims", Layout(out=tmp_path), None, None, {})
    holding(tmp_path / "study" / "claims")
    with (
        pytest.raises(ValueError, match=r"another `nava study claims` is at work here \(process"),
        study.alone(),
    ):
        pass
