"""`nava pretrain` and `nava align` by two ranks, their sender and an MLflow server, killed at random.

Nothing finished goes, MLflow has every point once, and the weights are those of trainings without a kill.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kill_world import Killer, rows, run, start, write_world
from pipeline_repository import end_senders
from services import Service, mlflow_server, running

pytestmark = [pytest.mark.slow, pytest.mark.distributed, pytest.mark.timeout(1500)]
SEED = 16


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Iterator[tuple[Path, dict[str, list[str]]]]:
    """Where the commands ran without a kill, and the commands by the folder that they make."""
    folder = tmp_path_factory.mktemp("kills")
    commands = write_world(folder / "world")
    whole = folder / "whole"
    whole.mkdir()
    try:
        for command in commands.values():
            assert run(whole, command, f"sqlite:///{folder / 'whole.db'}") == 0, (
                whole / "said.txt"
            ).read_text()
        yield whole, commands
    finally:
        end_senders(folder)


@pytest.fixture
def server(tmp_path) -> Iterator[Service]:
    with running(mlflow_server(tmp_path)) as server:
        yield server


def flush(work: Path, server: Service) -> None:
    """`nava tracking flush` until everything is sent."""
    end = time.monotonic() + 240
    while run(work, ["tracking", "flush"], server.url):
        assert time.monotonic() < end, (work / "said.txt").read_text()[-3000:]
        time.sleep(1)


def same_weights(one: Path, other: Path) -> None:
    names = [
        path.relative_to(one) for part in ("model", "adapter") for path in one.glob(f"{part}/*.safetensors")
    ]
    assert names
    for name in names:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def points_are_those_of(server: Service, logged: dict[str, list[dict[str, Any]]]) -> None:
    """MLflow has one run of each training, with the points of its rows (name of the run -> rows), once."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=server.url)
    experiment = client.get_experiment_by_name("nava")
    assert experiment is not None
    runs = {str(run.info.run_name): run for run in client.search_runs([experiment.experiment_id])}
    assert runs.keys() == logged.keys() and len(client.search_runs([experiment.experiment_id])) == len(runs)
    for name, stored in runs.items():
        assert stored.info.status == "FINISHED"
        metrics = {metric for row in logged[name] for metric in row if metric in stored.data.metrics}
        assert len(metrics) > 5
        for metric in stored.data.metrics:
            history = client.get_metric_history(stored.info.run_id, metric)
            points = sorted((point.step, point.value) for point in history)
            assert len({step for step, _ in points}) == len(points), (name, metric)
            if metric in metrics:
                assert points == [(row["step"], row[metric]) for row in logged[name] if metric in row]


@pytest.mark.parametrize("kills", [4, 40])
def test_nothing_is_lost_or_doubled_and_the_weights_are_the_same(tmp_path, world, server, kills):
    whole, commands = world
    work = tmp_path / "work"
    work.mkdir()
    draw, killers = random.Random(SEED), []
    try:
        for number, (output, command) in enumerate(commands.items()):
            share = kills * (number + 1) // len(commands) - sum(len(each.killed) for each in killers)
            killers.append(Killer(work, work / output, draw, server, share))
            killers[-1].finish(command)
        while killers[-1].left > 0:  # the trainings have ended: sender and server are left
            job = start(work, ["tracking", "flush"], server.url)
            killers[-1].kill_one(job)
            job.wait(100)
        server.wait()
        flush(work, server)
    finally:
        end_senders(work)
    killed = [name for killer in killers for name in killer.killed]
    print(Counter(killed), [killer.attempts for killer in killers])
    assert len(killed) == kills
    assert not [killer.lost for killer in killers if killer.lost], killed
    assert not (work / "out/.trash").exists()
    for output in commands:
        same_weights(whole / output, work / output)
        steps = [[row["step"] for row in rows(folder / output)] for folder in (whole, work)]
        assert steps[0] == steps[1]
    names = {"pretrain_stage1": "out/pretrain/stage1", "align": "align"}
    points_are_those_of(server, {name: rows(work / output) for name, output in names.items()})
