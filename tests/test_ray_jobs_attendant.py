import json
import os
import signal
import sys
import threading
import time

import psutil
import pytest
from test_ray_jobs import FakeJobs, spec

from experiments.jobs import attend as submitted
from experiments.runs.spool import SpooledRun
from experiments.runs.tracker import RunStart, SpoolTracker
from orchestration import launch

# a command that starts one worker and ends as that one ended; SIGTERM kills it and not its worker, as DVC
MANAGER = (
    "import subprocess, sys; sys.exit(255 * bool(subprocess.Popen([sys.executable, '-c', "
    "sys.argv[1]]).wait()))"
)
WORKER = """import pathlib, signal, sys, time
def stop(number, frame):
    time.sleep(0.5); pathlib.Path('checkpoint').write_text('saved'); sys.exit(130)
signal.signal(signal.SIGTERM, stop)
pathlib.Path('working').write_text('')
time.sleep(60)"""


@pytest.mark.parametrize("whom", ["attendant", "manager", "worker", "all"])
def test_the_attendant_waits_until_what_was_started_has_saved(tmp_path, whom):
    attended = submitted._Command([sys.executable, "-c", MANAGER, WORKER], tmp_path)

    def stop():
        while not (tmp_path / "working").exists():
            time.sleep(0.05)
        time.sleep(0.5)
        (worker,) = attended.started
        if whom in ("attendant", "all"):
            attended.stop()
        if whom in ("manager", "all"):
            attended.process.terminate()
        if whom in ("worker", "all"):
            worker.send_signal(signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    code = attended.wait()
    thread.join()
    assert (tmp_path / "checkpoint").read_text() == "saved"
    assert code == (-signal.SIGTERM if whom in ("manager", "all") else 255)
    assert attended.stopping is (whom != "worker")  # then the stage's run says that it was stopped


def test_a_command_has_time_to_write_down_how_its_worker_ended(tmp_path):
    """As DVC has to, which takes longer than the attendant to look again; one that does nothing else is told
    in the end."""
    slow = (
        MANAGER.replace("sys.exit(", "code = ").removesuffix(")")
        + "; import time; time.sleep(1.0); sys.exit(code)"
    )
    worker = "import time; time.sleep(60)"
    for command, code in ((["-c", slow, worker], 255), (["-c", worker], -signal.SIGTERM)):
        attended = submitted._Command([sys.executable, *command], tmp_path)
        threading.Timer(1.0, attended.stop).start()
        assert attended.wait() == code


def test_what_ends_just_before_it_is_told_to_stop_disturbs_nobody(tmp_path):
    """Its own end and the signal for all of them come together."""
    attended = submitted._Command([sys.executable, "-c", "import time; time.sleep(0.5)"], tmp_path)
    gone = psutil.Process(attended.process.pid)
    assert attended.wait() == 0
    attended._terminate([gone])
    assert gone in attended.signalled


def test_an_attempt_that_is_told_to_stop_while_it_waits_is_submitted_again(tmp_path, monkeypatch):
    """Its machine is taken away before the attempt before it has ended on another."""
    jobs = FakeJobs()
    waiting = launch.requeue(jobs, launch.submit(jobs, spec(max_requeues=2), "/place"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NAVA_JOB", waiting)
    monkeypatch.setattr(launch, "connect", lambda insecure: launch.Cluster(jobs, "http://h:8265"))
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
    threading.Timer(3.0, setattr, (jobs.jobs["abc"], "status", "STOPPED")).start()  # so that the test ends
    try:
        with pytest.raises(KeyboardInterrupt, match="interrupted; submitted again as abc-3"):
            submitted.attend("align")
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)
    assert list(jobs.jobs) == ["abc", "abc-2", "abc-3"] and jobs.stopped == []


def test_only_a_run_of_the_job_that_was_stopped_since_counts_as_interrupted(tmp_path):
    spool, start = tmp_path / "spool", RunStart(name="align", tags={"nava.job": "abc"})
    tracker, now = SpoolTracker(spool / "run"), int(time.time() * 1000)
    tracker.start(RunStart(name="align", tags={"nava.job": "the-attempt-before"}))
    tracker.start(start)
    tracker.finish("KILLED")
    assert submitted.stopped_since(now - 60_000, spool, "abc")
    assert not submitted.stopped_since(now + 60_000, spool, "abc")
    tracker.start(start)
    assert not submitted.stopped_since(0, spool, "abc")
    tracker.finish("FAILED")
    assert not submitted.stopped_since(0, spool, "abc")
    for key, tags in (("by-hand", {}), ("of-another-job", {"nava.job": "abc-2"})):
        other = SpoolTracker(spool / key)
        other.start(RunStart(name="score", tags=tags))
        other.finish("KILLED")  # by Ctrl-C, while the job's own stage failed
    assert not submitted.stopped_since(0, spool, "abc")


def test_a_stage_that_died_without_a_word_has_failed(tmp_path):
    """For want of memory, or by a broken library: again it would end the same way."""
    tracker = SpoolTracker(tmp_path / "run")
    tracker.start(RunStart(name="score", tags={"nava.job": "abc"}))
    owner = {"pid": 2**22 + 1, "time_s": time.time()}  # no such process
    (tracker.folder / "owner.json").write_text(json.dumps(owner))
    assert SpooledRun(tracker.folder).end_if_abandoned()
    assert SpooledRun(tracker.folder).last_end()[0] == "KILLED"  # as MLflow shows it
    assert not submitted.stopped_since(0, tmp_path, "abc")


def test_an_announced_run_that_never_began_gets_an_end(tmp_path, monkeypatch):
    tracker = SpoolTracker(tmp_path / "run")
    tracker.announce(RunStart(name="align"))
    monkeypatch.setenv("NAVA_RUN", "align=run")
    submitted.end_unstarted(tmp_path, "FINISHED")
    submitted.end_unstarted(tmp_path, "FAILED")
    assert SpooledRun(tmp_path / "run").last_end()[0] == "FINISHED"
    begun = SpoolTracker(tmp_path / "begun")
    begun.start(RunStart(name="align"))
    monkeypatch.setenv("NAVA_RUN", "align=begun")
    submitted.end_unstarted(tmp_path, "FAILED")
    assert SpooledRun(tmp_path / "begun").last_end()[0] == ""
