"""A run is ended for its process only by who can see that process, or after hours without a sign of it."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from experiments.commands.look import tracking_flush
from experiments.layout import Layout
from experiments.runs import owner as owners
from experiments.runs.invocation import current
from experiments.runs.owner import BETWEEN_LOOKS_S, LOOK, OWNER, SILENT_S, runs_here
from experiments.runs.spool import ABANDONED, SpooledRun
from experiments.runs.tracker import RunStart, SpoolTracker

HERE = {"host": "here", "boot": "b1", "space": "pid:[1]"}
OTHERS = [{"host": "there"}, {"boot": "b2"}, {"space": "pid:[2]"}]  # machine, boot of it, container on it


@pytest.fixture(autouse=True)
def here(monkeypatch):
    monkeypatch.setattr(owners, "_place", lambda: HERE)


def started(folder: Path, **owner) -> SpooledRun:
    """A run at work, with other values in its owner.json."""
    SpoolTracker(folder).start(RunStart(name="train"))
    path = folder / OWNER
    path.write_text(json.dumps({**json.loads(path.read_text()), **owner}))
    return SpooledRun(folder)


def age(run: SpooledRun, seconds: float, *names: str) -> None:
    for name in names or owners.SIGNS:
        os.utime(run.folder / name, (time.time() - seconds, time.time() - seconds))


@pytest.mark.parametrize("other", OTHERS)
def test_a_run_of_another_machine_is_not_ended_for_its_number(tmp_path, other):
    run = started(tmp_path / "run", pid=2**22 + 1, **other)
    assert run.alive() and runs_here(run.owner()) is None
    age(run, SILENT_S - 60)
    assert not run.end_if_abandoned() and not run.end_if_abandoned()
    assert run.alive() and run.last_end() == ("", 0) and (run.folder / OWNER).is_file()


def test_a_run_of_another_machine_ends_after_two_looks_at_hours_of_silence(tmp_path):
    run = started(tmp_path / "run", pid=7, host="there")
    age(run, SILENT_S + 60)
    assert not run.end_if_abandoned() and not run.end_if_abandoned()  # a disk may just have come back
    assert "process 7 of there has given no sign since 20" in owners.silence(run.folder)
    age(run, BETWEEN_LOOKS_S + 1, LOOK)
    assert run.end_if_abandoned() and not run.end_if_abandoned()
    [finish] = [event for _, event in run.events() if event["kind"] == "finish"]
    assert finish["status"] == "KILLED"
    assert finish["tags"][ABANDONED].startswith("no sign of process 7 of there since 20")
    assert {path.name for path in run.folder.iterdir()} == {"events.jsonl"}


@pytest.mark.parametrize("sign", owners.SIGNS)
def test_a_sign_between_two_looks_keeps_a_run_open(tmp_path, sign):
    run = started(tmp_path / "run", host="there")
    age(run, 5 * SILENT_S)
    assert not run.end_if_abandoned()
    age(run, BETWEEN_LOOKS_S + 1, LOOK)
    age(run, 2 * SILENT_S, sign)  # later than before, by a clock that is behind
    assert owners.silence(run.folder) == ""
    assert not run.end_if_abandoned() and run.alive()


def test_a_sign_of_a_clock_that_is_ahead_does_not_keep_a_run_for_ever(tmp_path):
    run = started(tmp_path / "run", host="there")
    age(run, -365 * 86400.0)
    assert not run.end_if_abandoned()
    age(run, BETWEEN_LOOKS_S + 1, LOOK)
    assert run.end_if_abandoned()


def test_no_clock_ends_a_run_and_no_reused_number_keeps_one(tmp_path, monkeypatch):
    run = started(tmp_path / "run", time_s=1.0)  # as the clock said before it was set
    with monkeypatch.context() as context:
        context.setattr(psutil.Process, "create_time", lambda self: time.time() + 3600)
        assert run.alive() and not run.end_if_abandoned()
    run = started(tmp_path / "run", began=json.loads((run.folder / OWNER).read_text())["began"] - 1)
    assert not run.alive() and run.end_if_abandoned() and run.last_end()[0] == "KILLED"


def test_a_process_that_nobody_waits_for_is_gone(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    tracker = SpoolTracker(tmp_path / "run")
    tracker.start(RunStart(name="dvc-repro"), child.pid)
    assert SpooledRun(tracker.folder).alive()
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # dead, and still in the list of processes
    assert psutil.pid_exists(child.pid) and not SpooledRun(tracker.folder).alive()
    child.wait()


def test_a_run_that_ends_while_it_is_looked_at_stays_as_it_ended(tmp_path, monkeypatch):
    tracker = SpoolTracker(tmp_path / "run")
    tracker.start(RunStart(name="train"))
    run = SpooledRun(tracker.folder)

    def ends(owner) -> bool:
        tracker.finish("FINISHED")
        return False

    monkeypatch.setattr("experiments.runs.spool.runs_here", ends)
    assert not run.end_if_abandoned() and run.last_end()[0] == "FINISHED"


def test_a_run_gives_signs_of_itself_and_of_what_it_is_below_until_it_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(owners, "BEAT_S", 0.01)
    above = SpoolTracker(tmp_path / "above")
    above.start(RunStart(name="dvc-repro"), os.getppid())  # a process that gives no signs itself
    tracker = SpoolTracker(tmp_path / "run")
    tracker.start(RunStart(name="train", invocation="above"))
    files = [tracker.folder / OWNER, above.folder / OWNER]
    for path in files:
        os.utime(path, (1, 1))
    end = time.monotonic() + 10
    while min(path.stat().st_mtime for path in files) < 2 and time.monotonic() < end:
        time.sleep(0.01)
    assert min(path.stat().st_mtime for path in files) > time.time() - 60
    tracker.finish("FINISHED")
    time.sleep(0.05)
    os.utime(files[1], (1, 1))
    time.sleep(0.05)
    assert files[1].stat().st_mtime == 1 and not files[0].exists()


def test_a_dvc_of_another_machine_with_the_same_number_is_not_ones_own(tmp_path, monkeypatch):
    layout = Layout(out=tmp_path / "out")
    monkeypatch.setattr("experiments.runs.invocation._dvc_process", lambda: psutil.Process(os.getppid()))
    theirs = SpoolTracker(layout.tracking / "theirs")
    with monkeypatch.context() as there:
        there.setattr(owners, "_place", lambda: {**HERE, "host": "there"})
        theirs.start(RunStart(name="dvc-repro"), os.getppid())
    ours = current(layout, tmp_path)
    again = current(layout, tmp_path)
    assert ours and again and ours.key == again.key != "theirs"


def test_flush_tells_of_a_silent_run_of_another_machine(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("experiments.runs.sender.flush", lambda spool, root: run.end_if_abandoned())
    monkeypatch.setattr("experiments.runs.sender.unsent", lambda spool, root: [])
    run = started(tmp_path / "out" / "tracking" / "run", pid=7, host="there")
    assert tracking_flush(tmp_path / "out") == 0 and capsys.readouterr().err == ""
    age(run, SILENT_S + 60)
    assert tracking_flush(tmp_path / "out") == 0
    assert "run: process 7 of there has given no sign since" in capsys.readouterr().err
