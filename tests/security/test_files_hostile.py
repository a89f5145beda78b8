"""Hostile files from stored seeds: nothing runs, nothing outside is read or changed, memory holds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from canary import Canary, unchanged

pytestmark = pytest.mark.security
ROOT = Path(__file__).resolve().parents[2]
PEAK_BYTES = 2**30  # of all files of a process together
QUICK, ALL, AT_ONCE = 300, 7_000, 500  # inputs; seeds are 0 and up


def attack(folder: Path, first: int, count: int) -> dict:
    """What a process finds that reads the inputs of these seeds, with a canary beside them."""
    canary = Canary(folder / "of_others")
    private = folder / "private"
    private.mkdir()
    (private / "secret.txt").write_text("SECRET")
    environment = {name: value for name, value in os.environ.items() if name != "NAVA_PLUGINS"}
    path = os.pathsep.join([str(ROOT), str(Path(__file__).parent), str(canary.folder)])
    script = str(Path(__file__).with_name("hostile_run.py"))
    with unchanged(private), unchanged(canary.folder):
        done = subprocess.run(
            [sys.executable, "-W", "ignore", script, str(folder), str(first), str(count)],
            env={**environment, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
            cwd=folder,
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    assert canary.silent and "SECRET" not in done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def check(found: dict, count: int) -> None:
    assert found["findings"] == [] and found["opened"] == []
    assert sum(found["counts"].values()) == count and found["peak"] < PEAK_BYTES


def test_three_hundred_hostile_files(tmp_path):
    found = attack(tmp_path, 0, QUICK)
    check(found, QUICK)
    assert len(found["counts"]) == 11


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("first", range(QUICK, ALL, AT_ONCE))
def test_seven_thousand_hostile_files(tmp_path, first):
    count = min(AT_ONCE, ALL - first)
    check(attack(tmp_path, first, count), count)
