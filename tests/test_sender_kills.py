"""Training and sender are killed hard at any moment: no point is lost, none is there twice.

metrics.jsonl, the spool and MLflow have the same points.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments.runs import sender
from experiments.runs.sender import flush, quiet_mlflow
from experiments.runs.spool import SpooledRun
from experiments.runs.tracker import RunStart, SpoolTracker
from pretrain.tracking import JsonlTracker, Trackers

quiet_mlflow()

STEPS, CHECKPOINT = 200, 20


def killed_after(seconds: float, work: Callable[[], object]) -> bool:
    """Run the work in a process of its own and kill it; True if it had ended by then."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if os.waitpid(child, os.WNOHANG)[0]:
            return True
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    return bool(os.waitpid(child, 0)[1] == 0)


def train(folder: Path, spool: Path, pause_s: float = 0.0) -> None:
    """Steps from the last checkpoint on; the loss depends on the step alone, the time does not."""
    state = folder / "checkpoint"
    begun = int(state.read_text()) if state.is_file() else 0
    spooled = SpoolTracker(spool / "1-run")
    spooled.start(RunStart(name="train", config={"steps": STEPS}))
    trackers = Trackers(JsonlTracker(folder / "metrics.jsonl", begun), [spooled])
    for step in range(begun + 1, STEPS + 1):
        row = {"loss": 1 / step, "seconds_per_step": time.perf_counter(), "skipped": 0, "task": "T2AV"}
        trackers.log_metrics(row, step)
        if step % 50 == 0:
            trackers.log_metrics({"validation/loss": 2 / step}, step)
        if step % CHECKPOINT == 0:
            partial = folder / "checkpoint.tmp"
            partial.write_text(str(step))
            partial.replace(state)
        time.sleep(pause_s)
    spooled.finish("FINISHED")


def points_of_rows(path: Path) -> dict[str, list[tuple[int, float]]]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    names = {name for row in rows for name, value in row.items() if isinstance(value, (int, float))} - {
        "step"
    }
    return {name: [(row["step"], float(row[name])) for row in rows if name in row] for name in names}


def points_of_spool(run: SpooledRun) -> dict[str, list[tuple[int, float]]]:
    found: dict[str, list[tuple[int, float]]] = {}
    for _, event in run.events():
        for name, value in event["values"].items() if event["kind"] == "metrics" else ():
            found.setdefault(name, []).append((event["step"], value))
    return {name: sorted(points) for name, points in found.items()}


@pytest.mark.parametrize("kills", [10, pytest.param(40, marks=pytest.mark.slow)])
def test_points_are_unique_and_whole_after_kills(tmp_path, monkeypatch, kills):
    from mlflow import MlflowClient

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(sender, "_store", None)
    uri, spool, draw = f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path / "spool", random.Random(kills)
    killed_after(120, lambda: MlflowClient(tracking_uri=uri).search_experiments())  # makes the tables

    def send() -> None:
        flush(spool, tmp_path)

    for _ in range(kills):
        if draw.random() < 0.5:
            killed_after(draw.uniform(0.0, 0.5), lambda: train(tmp_path, spool, 0.002))
        if spool.is_dir():
            killed_after(draw.uniform(0.0, 0.5), send)
    train(tmp_path, spool)
    assert flush(spool, tmp_path) == 0
    run = SpooledRun(spool / "1-run")
    rows, spooled = points_of_rows(tmp_path / "metrics.jsonl"), points_of_spool(run)
    assert rows == spooled and [step for step, _ in rows["loss"]] == list(range(1, STEPS + 1))
    client = MlflowClient(tracking_uri=uri)
    for name, points in rows.items():
        history = client.get_metric_history(run.sent().run_id, name)
        assert sorted((point.step, point.value) for point in history) == points
    stored = client.get_run(run.sent().run_id)
    assert stored.info.status == "FINISHED" and stored.data.params == {"steps": str(STEPS)}
    assert len(client.search_runs([stored.info.experiment_id])) == 1


def test_a_repeated_step_keeps_its_first_numbers_unless_they_differ(tmp_path):
    spooled = SpoolTracker(tmp_path / "run")
    spooled.log_metrics({"loss": 0.5, "seconds_per_step": 1.0}, 7)
    spooled.log_metrics({"loss": 0.25, "seconds_per_step": 1.0}, 8)
    again = SpoolTracker(tmp_path / "run")
    trackers = Trackers(JsonlTracker(tmp_path / "m.jsonl", 6), [again])
    trackers.log_metrics({"loss": 0.5, "seconds_per_step": 9.0, "new": 1, "task": "T2A"}, 7)
    trackers.log_metrics({"loss": 0.75, "seconds_per_step": 9.0}, 8)  # what other settings may make of it
    rows = [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    assert rows[0] == {"step": 7, "loss": 0.5, "seconds_per_step": 1.0, "new": 1, "task": "T2A"}
    assert rows[1]["loss"] == 0.75
    assert points_of_spool(SpooledRun(tmp_path / "run")) == {
        "loss": [(7, 0.5), (8, 0.25)],
        "seconds_per_step": [(7, 1.0), (8, 1.0)],
        "new": [(7, 1.0)],
    }
    assert again.tags == {"repeated_differently": "from step 8 on"}


@pytest.mark.parametrize("torn", [b'{"kind": "metr', b"\0\0\0", b'{"kind": "metrics", "step": 1'])
def test_a_line_that_a_kill_cut_short_hides_no_other(tmp_path, torn):
    SpoolTracker(tmp_path / "run").log_metrics({"loss": 1.0}, 1)
    with (tmp_path / "run" / "events.jsonl").open("ab") as file:
        file.write(torn)
    SpoolTracker(tmp_path / "run").log_metrics({"loss": 2.0}, 2)
    assert points_of_spool(SpooledRun(tmp_path / "run")) == {"loss": [(1, 1.0), (2, 2.0)]}
