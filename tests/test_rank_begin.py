"""A rank ends with its torchrun, and no two groups of ranks are at work in one folder."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pretrain.launch.torchrun import ATTEMPT, failure

ROOT = Path(__file__).parent.parent
RANK = """
import sys, time
from pathlib import Path
from pretrain.launch.rank import begin
begin(Path(sys.argv[1]), float(sys.argv[2]))
Path(sys.argv[1], f"at-work-{sys.argv[3]}").touch()
time.sleep(float(sys.argv[4]))
"""
TORCHRUN = "import subprocess, sys; subprocess.run([sys.executable, '-c', *sys.argv[1:]])"


def rank(
    out: Path, name: str, patience_s: float, work_s: float, parent: bool = False
) -> subprocess.Popen[bytes]:
    command = [RANK, str(out), str(patience_s), name, str(work_s)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RANK": "0"}
    first = [TORCHRUN] if parent else []
    return subprocess.Popen([sys.executable, "-c", *first, *command], env=environment)


def wait_for(path: Path) -> None:
    end = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.skipif(sys.platform != "linux", reason="asks the Linux kernel")
def test_a_rank_ends_when_its_torchrun_is_killed(tmp_path):
    (tmp_path / "log.txt").touch()
    torchrun = rank(tmp_path, "a", 1, 600, parent=True)
    wait_for(tmp_path / "at-work-a")
    (child,) = psutil.Process(torchrun.pid).children()
    torchrun.kill()
    torchrun.wait()
    psutil.wait_procs([child], timeout=20)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_ranks_wait_for_those_of_an_earlier_start_or_refuse(tmp_path):
    (tmp_path / "log.txt").touch()
    first = rank(tmp_path, "first", 1, 600)
    wait_for(tmp_path / "at-work-first")
    assert rank(tmp_path, "refused", 0.1, 0).wait(60) == 2
    line = (tmp_path / "error.txt.0").read_text()
    assert "still at work" in line and line.count("\n") == 1 and not (tmp_path / "at-work-refused").exists()
    second = rank(tmp_path, "second", 60, 0)
    time.sleep(1)
    assert not (tmp_path / "at-work-second").exists() and second.poll() is None
    first.kill()
    first.wait()
    assert second.wait(60) == 0 and (tmp_path / "at-work-second").exists()


def test_a_rank_whose_torchrun_died_before_it_began_ends(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    assert rank(tmp_path, "a", 0, 600).wait(60) == 3 and list(tmp_path.iterdir()) == []


def test_a_rank_without_a_log_begins(tmp_path):
    assert rank(tmp_path, "a", 0, 0).wait(60) == 0


def test_a_killed_torchrun_is_named_and_what_can_be_resumed(tmp_path):
    (tmp_path / "resolved.json").write_text("{}")
    (tmp_path / "log.txt").write_text(f"{ATTEMPT}\nWARNING - Error running lspci\n")
    error = failure(tmp_path, -9)
    assert str(error).startswith("torchrun was killed by SIGKILL; no checkpoint was complete; run again")
    assert "exit code 1" in str(failure(tmp_path, 1))
