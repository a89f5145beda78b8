"""Two `nava pretrain` on one folder, and one that is killed between its training's end and its record."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kill_world import start, write_world
from pipeline_repository import end_senders

pytestmark = [pytest.mark.slow, pytest.mark.distributed, pytest.mark.timeout(900)]


@pytest.fixture
def work(tmp_path) -> Iterator[Path]:
    (tmp_path / "work").mkdir()
    try:
        yield tmp_path / "work"
    finally:
        end_senders(tmp_path)


def wait(job: subprocess.Popen[bytes], until: Callable[[], bool]) -> None:
    end = time.monotonic() + 300
    while not until():
        assert job.poll() is None and time.monotonic() < end
        time.sleep(0.05)


def status(folder: Path) -> str:
    path = folder / "state.json"
    return json.loads(path.read_text())["status"] if path.is_file() else ""


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_second_is_refused_and_what_a_kill_left_undone_is_done(work):
    uri = f"sqlite:///{work.parent / 'mlflow.db'}"
    command, folder = write_world(work.parent / "world")["out/pretrain/stage1"], work / "out/pretrain/stage1"
    command = [*command, "--set", "pretrain.checkpoint.interval=50"]
    first = start(work, command, uri)
    wait(first, lambda: (folder / "metrics.jsonl").is_file())
    first.send_signal(signal.SIGSTOP)  # so that its end waits for what is asked here; its ranks go on
    for other in (["--set", "pretrain.stages.stage1.lr=1e-5"], ["--no-resume"]):
        said = len((work / "said.txt").read_text())
        assert start(work, [*command, *other], uri).wait(120) == 2
        line = (work / "said.txt").read_text()[said:]
        assert f"another training is at work here (process {first.pid} on" in line and "Traceback" not in line
    assert not (work / "out/.trash").exists()
    wait(first, lambda: status(folder) == "finished")
    first.kill()
    first.wait()
    steps = [row["step"] for row in rows(folder) if "lr" in row]
    assert steps == list(range(1, 61)) and {row["lr"] for row in rows(folder) if "lr" in row} != {1e-5}
    runs = work / "out/runs"
    assert (runs / "pretrain_stage1.running.json").is_file() and not (runs / "pretrain_stage1.json").exists()
    key = json.loads((runs / "pretrain_stage1.running.json").read_text())["key"]
    model = (folder / "model" / "model.safetensors").read_bytes()
    assert start(work, command, uri).wait(300) == 0, (work / "said.txt").read_text()[-2000:]
    assert json.loads((runs / "pretrain_stage1.json").read_text())["key"] == key
    assert not (runs / "pretrain_stage1.running.json").exists()
    assert (folder / "model" / "model.safetensors").read_bytes() == model
    events = (work / "out/tracking" / key / "events.jsonl").read_text().splitlines()
    assert "model" in [json.loads(line)["kind"] for line in events]
    assert json.loads(events[-1])["status"] == "FINISHED"
    shutil.rmtree(work / "out")
