"""Spools that cannot be written, full disks, and two users of one spool: tracking fails no command."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from experiments.layout import Layout
from experiments.runs import run, sender
from experiments.runs.owner import OWNER
from experiments.runs.run import single_run, stuck_shown
from experiments.runs.sender import (
    LOCK,
    NOT_OURS,
    is_sending,
    sender_lock,
    unsent,
    wait_for_end,
    wait_until_sent,
)
from experiments.runs.spool import SpooledRun
from experiments.runs.tracker import EVENTS, RunStart, SpoolTracker, ensure_sender, failure_marked

two_users = pytest.mark.skipif(os.geteuid() != 0, reason="needs the right to become another user")
NOBODY = 65534


def test_a_command_ends_well_where_the_spool_is_no_folder(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "LONG_S", -1.0)  # as after hours: the sender is looked for
    Path("out").mkdir()
    Path("out/tracking").write_text("")
    notes = {"nava.output": "out/clips"}
    with single_run("generate", {}, notes, Layout(), Path(), made=[Path("out/clips")]) as tracker:
        Path("out/clips").mkdir()
        Path("out/clips/a.mp4").write_text("a clip")
        tracker.log_metrics({"loss": 1.0}, 1)
        tracker.log_artifact("out/clips/a.mp4")
    said = [record.getMessage() for record in caplog.records]
    assert any("this run goes on without it" in line for line in said)
    assert any("the sender did not start" in line for line in said)


def full_disk(folder: Path) -> Callable[[], None]:
    """Let no file of this process grow beyond the events of a run; returns what takes that back."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((folder / EVENTS).stat().st_size, hard))
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_run_that_ends_on_a_full_disk_is_ended_later_and_loses_no_point(tmp_path):
    tracker = SpoolTracker(tmp_path / "run")
    tracker.start(RunStart(name="train"))
    tracker.log_metrics({"loss": 1.0}, 1)
    (tmp_path / "clip.mp4").write_text("x")
    free = full_disk(tracker.folder)
    try:
        tracker.log_metrics({"loss": 0.5}, 2)
        tracker.log_artifact(str(tmp_path / "clip.mp4"))
        with pytest.raises(OSError, match="checkpoint"), failure_marked(tracker):
            raise OSError("the checkpoint could not be written")
    finally:
        free()
    spooled = SpooledRun(tracker.folder)
    assert spooled.alive() and spooled.last_end() == ("", 0) and not list(tracker.folder.glob("files/*"))
    tracker.log_metrics({"loss": 0.5}, 2)
    tracker.log_metrics({"loss": 0.4}, 2)  # a point stays as it was first written
    owner = json.loads((tracker.folder / OWNER).read_text())
    (tracker.folder / OWNER).write_text(json.dumps({**owner, "began": -1}))  # its process has ended
    assert spooled.end_if_abandoned() and spooled.last_end()[0] == "KILLED"
    values = [event["values"] for _, event in spooled.events() if event["kind"] == "metrics"]
    assert values == [{"loss": 1.0}, {"loss": 0.5}]


def test_an_end_that_cannot_be_written_yet_is_tried_again(tmp_path):
    tracker = SpoolTracker(tmp_path / "run")
    tracker.start(RunStart(name="train"))
    (tracker.folder / OWNER).write_text(json.dumps({"pid": os.getpid(), "time_s": 1.0}))
    spooled, free = SpooledRun(tracker.folder), full_disk(tracker.folder)
    try:
        assert not spooled.end_if_abandoned()
    finally:
        free()
    assert spooled.end_if_abandoned() and spooled.last_end()[0] == "KILLED"


@pytest.mark.parametrize(
    ("folder", "lock"), [(0o775, 0o664), (0o755, 0o644), (0o2770, 0o660), (0o777, 0o666)]
)
def test_who_can_write_the_spool_can_take_its_lock_and_write_the_log(tmp_path, monkeypatch, folder, lock):
    spool = tmp_path / "spool"
    spool.mkdir()
    spool.chmod(folder)
    with sender_lock(spool).acquire(blocking=False):
        assert (spool / LOCK).stat().st_mode & 0o777 == lock
    monkeypatch.setattr(sys, "executable", "/bin/true")
    process = ensure_sender(spool, tmp_path)
    assert process is not None and process.wait() == 0
    assert (spool / "sender.log").stat().st_mode & 0o777 == lock


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that all users can write."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


def as_nobody(folder: Path, work: Callable[[], object]) -> object:
    """What another user gets in that folder."""
    results = multiprocessing.get_context("fork").SimpleQueue()

    def body() -> None:
        os.chdir(folder)
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        try:
            results.put(work())
        except BaseException as error:
            results.put(repr(error))

    process = multiprocessing.get_context("fork").Process(target=body)
    process.start()
    found = results.get()
    process.join()
    return found


@two_users
def test_another_users_lock_of_earlier_versions_gives_way_unless_it_is_held(shared):
    def take() -> tuple[bool, int]:
        with sender_lock(Path()).acquire(blocking=False):
            return is_sending(Path()), Path(LOCK).stat().st_uid

    (shared / LOCK).touch(0o644)
    with (shared / LOCK).open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert as_nobody(shared, lambda: is_sending(Path())) is True
        assert "Timeout" in str(as_nobody(shared, take))
    assert as_nobody(shared, lambda: is_sending(Path())) is False
    assert as_nobody(shared, take) == (True, NOBODY)
    shared.chmod(0o755)
    (shared / LOCK).unlink()
    assert as_nobody(shared, lambda: is_sending(Path())) is False
    assert "PermissionError" in str(as_nobody(shared, take))


@two_users
def test_a_command_ends_well_in_a_spool_of_another_user_who_sends_his_own(shared, monkeypatch):
    monkeypatch.setattr(run, "LONG_S", -1.0)
    monkeypatch.setattr(run, "END_PATIENCE_S", 0.0)
    monkeypatch.setattr(run, "ensure_sender", lambda *_: None)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    theirs = SpoolTracker(shared / "20261130-theirs")
    theirs.start(RunStart(name="train"))
    (theirs.folder / OWNER).write_text(json.dumps({"pid": os.getpid(), "time_s": 1.0}))
    (shared / LOCK).touch(0o644)

    def command() -> str:
        tracker = SpoolTracker(Path("mine").resolve())
        tracker.start(RunStart(name="generate"))
        with stuck_shown(tracker, Path()), failure_marked(tracker):
            pass
        wait_for_end(tracker.folder, Path(), 0.0)
        tracker.finish("FINISHED")
        return SpooledRun(tracker.folder).last_end()[0]

    assert as_nobody(shared, command) == "FINISHED"
    said = as_nobody(shared, lambda: {each.key: each.problem for each in unsent(Path(), Path())})
    assert said == {theirs.key: NOT_OURS, "mine": ""}

    def flushed() -> tuple[list[str], bool]:
        sent: list[str] = []
        sender._connect = lambda root: None
        sender._send = lambda store, one: sent.append(one.key)
        sender.flush(Path(), Path())
        shutil.rmtree("mine")
        return sent, wait_until_sent(Path(), Path(), 0.0)

    assert as_nobody(shared, flushed) == (["mine"], True)
    assert SpooledRun(theirs.folder).last_end() == ("", 0)
    for mode in (0o700, 0o755):  # of a spool that can only be looked at, or not even that
        shared.chmod(mode)
        assert as_nobody(Path("/"), lambda: stuck_at(shared)) == "the work is done"


def stuck_at(spool: Path) -> str:
    tracker = SpoolTracker(spool / "mine")
    tracker.start(RunStart(name="generate"))
    with stuck_shown(tracker, Path()), failure_marked(tracker):
        tracker.log_artifact("/etc/hostname")
        said = "the work is done"
    tracker.finish("FINISHED")
    return said
