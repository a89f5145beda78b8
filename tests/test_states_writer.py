"""Two trainings with one place for their states: one writes, the other is told who, a dead one is passed."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from titan_world import config, stage_run, write_latents

from pretrain.files import write_json
from pretrain.launch import launch, states_writer
from pretrain.launch.states_writer import WRITER, wait_for_writer, writing_states
from pretrain.launch.training_lock import alone
from pretrain.recipe import CheckpointConfig
from pretrain.storage import create, is_file, list_folder, place, remove_folder, writing

ROOT = Path(__file__).parent.parent
STORE = "memory://states-writer/run"
OTHER = {"out": "/data/run", "host": "node7", "process": "41", "since": "2026-11-30 16:00 UTC", "token": "x"}


@pytest.fixture
def store(monkeypatch) -> Path:
    for name, seconds in (("BEAT_S", 0.05), ("POLL_S", 0.02), ("DEAD_S", 0.4)):
        monkeypatch.setattr(states_writer, name, seconds)
    remove_folder(place(STORE))
    return place(STORE) / "stage1"


def written(where: Path, **changes) -> None:
    write_json(where / WRITER, {**OTHER, "beat": 0, **changes}, through=writing)


@contextmanager
def at_work(where: Path) -> Iterator[None]:
    """Another training that lives."""
    stop = threading.Event()

    def beat() -> None:
        number = 0
        while not stop.wait(0.03):
            number += 1
            written(where, beat=number)

    going = threading.Thread(target=beat)
    going.start()
    try:
        yield
    finally:
        stop.set()
        going.join()


def read(where: Path) -> dict:
    return json.loads((where / WRITER).read_text())


def test_a_writer_names_itself_counts_and_lets_go(store, tmp_path):
    with writing_states(store, tmp_path / "run"):
        first = read(store)
        assert (first["out"], first["host"]) == (str(tmp_path / "run"), socket.gethostname())
        deadline = time.monotonic() + 20
        while read(store)["beat"] == first["beat"]:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert not is_file(store / WRITER)
    with writing_states(tmp_path / "run" / "checkpoint", tmp_path / "run"):  # its own folder is locked anyway
        assert not (tmp_path / "run").exists()


def test_one_that_is_at_work_is_named_and_nothing_of_it_changes(store, tmp_path, monkeypatch):
    monkeypatch.setattr(states_writer, "DEAD_S", 60.0)
    written(store)
    create(store / "step-3" / "__0_0.distcp", "being uploaded")
    said = (
        rf"^{STORE}/stage1: another training is at work here \(of --out /data/run, process 41 on node7, "
        r"since 2026-11-30 16:00 UTC\); wait for it, or give another checkpoint.folder$"
    )
    with at_work(store), pytest.raises(ValueError, match=said), writing_states(store, tmp_path / "run"):
        raise AssertionError("both at once")
    assert read(store)["token"] == "x" and is_file(store / "step-3" / "__0_0.distcp")


def test_a_dead_one_is_passed_after_a_while_and_its_own_restart_at_once(store, tmp_path, capsys):
    written(store)
    begun_s = time.monotonic()
    with writing_states(store, tmp_path / "run"):
        assert time.monotonic() - begun_s > 0.3 and read(store)["out"] == str(tmp_path / "run")
    said = capsys.readouterr().err
    assert f"remove {STORE}/stage1/{WRITER}" in said and "of --out /data/run, process 41 on node7" in said
    written(store, out=str(tmp_path / "run"), host=socket.gethostname())
    with writing_states(store, tmp_path / "run"):
        assert read(store)["token"] != "x"
    assert not capsys.readouterr().err
    written(store)
    threading.Timer(0.1, remove_folder, [store]).start()  # as the line says
    with writing_states(store, tmp_path / "run"):
        pass


def test_a_place_without_a_word_of_a_writer_goes_on(store, tmp_path):
    """As earlier versions left it."""
    create(store / "run.json", "{}")
    create(store / "step-3" / ".metadata", "x")
    with writing_states(store, tmp_path / "run"):
        pass
    assert sorted(path.name for path in list_folder(store)) == ["run.json", "step-3"]


def test_one_whose_place_was_taken_stops(store, tmp_path):
    told: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
    try:
        with (
            pytest.raises(
                ValueError, match=r"taken over by another training \(of --out /data/run, process 41"
            ),
            writing_states(store, tmp_path / "run"),
        ):
            deadline = time.monotonic() + 20
            while not told and time.monotonic() < deadline:
                written(store)  # again, where a beat came between
                time.sleep(0.1)
        assert told == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)
    assert read(store)["token"] == "x"  # the other's


HOLDER = """
import sys, time
from pathlib import Path
from pretrain.launch.states_writer import writing_states
with writing_states(Path(sys.argv[1]), Path(sys.argv[2])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_local_place_is_locked_whatever_out_is(tmp_path, monkeypatch):
    states, out = tmp_path / "states" / "stage1", tmp_path / "a" / "stage1"
    command = [sys.executable, "-c", HOLDER, str(states), str(out)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout and other.stdout.readline() == "held\n"
        monkeypatch.setattr(states_writer, "PATIENCE_S", 0.1)
        said = rf"at work here \(of --out {out}, process {other.pid} on .*give another checkpoint.folder$"
        for hold in (writing_states, lambda *places: alone(places[0], training=places[1])):
            with pytest.raises(ValueError, match="at work here"), hold(states, tmp_path / "b"):
                raise AssertionError("both at once")
        with pytest.raises(ValueError, match=said):
            wait_for_writer(states, tmp_path / "b")
        other.kill()
    waited: list[Path] = []
    monkeypatch.setattr("pretrain.launch.training_lock.wait_for_ranks", waited.append)
    with writing_states(states, tmp_path / "b"):
        assert waited == [out, states], "ranks of the killed one end first"


def test_a_second_training_is_refused_before_anything_is_claimed(store, tmp_path, monkeypatch):
    monkeypatch.setattr(states_writer, "DEAD_S", 60.0)
    made = dataclasses.replace(config(steps=5), checkpoint=CheckpointConfig(folder=STORE))
    run = stage_run(tmp_path / "out", write_latents(tmp_path / "latents"), made)
    written(store)
    with at_work(store):
        for work in (launch.train_run, launch.set_states_aside):
            with pytest.raises(ValueError, match="another training is at work here"):
                work(run)
    assert [path.name for path in list_folder(store)] == [WRITER]
