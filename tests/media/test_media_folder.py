"""A folder with thirty clips that are broken in thirty ways: the others are scored, each of these has a
reason, in `nava score` and through the reward service, killed as often as one likes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from broken import BROKEN, write_folder
from service_world import service

REWARD = "snr_estimate_db"
ROOT = Path(__file__).parent.parent.parent
COMMAND = [sys.executable, "-m", "experiments.cli", "score"]
SERVED = (".mp4", ".mov", ".mkv", ".webm", ".wav", ".flac")  # the service takes few formats from strangers
STATUSES = (413, 415, 422)  # too large, another kind, corrupt


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    scraps = tmp_path_factory.mktemp("scraps")
    folder = tmp_path_factory.mktemp("clips")
    return folder, write_folder(folder, scraps, good=12)


def rows_of(out: Path) -> dict[str, dict[str, Any]]:
    return {row["clip"]: row for row in map(json.loads, out.read_text().splitlines())}


def plain(rows: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Without seconds, which differ from run to run."""
    for row in rows.values():
        for score in row["scores"].values():
            score.pop("seconds", None)
    return rows


def score(folder: Path, out: Path) -> subprocess.Popen[str]:
    arguments = [str(folder), "--rewards", REWARD, "--out", str(out), "--batch", "8", "--json"]
    arguments += ["--max-unreadable", "1"]
    return subprocess.Popen(
        [*COMMAND, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def check(rows: dict[str, dict[str, Any]], good: list[str]) -> None:
    """Each good clip has a value, each broken one a reason of one line that names a file."""
    scored = {name for name, row in rows.items() if row["scores"][REWARD]["value"] is not None}
    assert scored == set(good)
    refused = {name: row["scores"][REWARD]["reason"] for name, row in rows.items() if name not in scored}
    assert len(refused) == len(BROKEN) == 30
    for name, reason in refused.items():
        assert reason and "\n" not in reason and "Traceback" not in reason, name
        assert "object has no attribute" not in reason, reason


def test_thirty_ways_are_thirty_contents(small: tuple[Path, list[str]]) -> None:
    folder, good = small
    contents = [path.read_bytes() for path in folder.glob("broken_*")]
    assert len(set(contents)) == len(contents) == 30 and len(good) == 12


def test_the_others_are_scored_and_each_broken_one_has_its_reason(
    small: tuple[Path, list[str]], tmp_path: Path
) -> None:
    folder, good = small
    process = score(folder, tmp_path / "scores.jsonl")
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    check(rows_of(tmp_path / "scores.jsonl"), good)


def test_the_service_scores_and_refuses_the_same_clips(small: tuple[Path, list[str]]) -> None:
    folder, good = small
    check_service(folder, good)


def check_service(folder: Path, good: list[str]) -> None:
    """A broken clip is answered with a status of its own, or, where it has no sound, with the reason."""
    with service(folder, REWARD) as (client, _):
        for path in sorted(folder.iterdir()):
            answer = client.post("/v1/score", json={"clip": path.name, "rewards": [REWARD]})
            if path.stem in good and path.suffix not in SERVED:
                assert answer.status_code == 415 and "send one of them" in answer.text
            elif path.stem in good:
                assert answer.status_code == 200, (path.name, answer.text)
                assert answer.json()["scores"][REWARD]["value"] is not None
            elif answer.status_code == 200:
                assert answer.json()["scores"][REWARD]["reason"], path.name
            else:
                assert answer.status_code in STATUSES and answer.json()["reason"], (path.name, answer.text)
                assert "\n" not in answer.json()["reason"] and str(folder) not in answer.text


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_three_hundred_clips_killed_ten_times_give_the_same_rows(tmp_path: Path) -> None:
    folder = tmp_path / "clips"
    good = write_folder(folder, tmp_path / "scraps", good=270)
    process = score(folder, tmp_path / "whole.jsonl")
    _, said = process.communicate(timeout=600)
    assert process.returncode == 0, said
    whole = plain(rows_of(tmp_path / "whole.jsonl"))
    check(whole, good)
    assert len(whole) == 300
    generator, out, kills = np.random.default_rng(5), tmp_path / "killed.jsonl", 0
    while kills < 10:
        process = score(folder, out)
        wait_for_more(process, out, generator)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.communicate()
        if process.returncode == 0:  # finished before it was killed: from the start
            out.unlink()
    process = score(folder, out)
    _, said = process.communicate(timeout=600)
    assert process.returncode == 0, said
    assert plain(rows_of(out)) == whole
    check_service(folder, good)


def wait_for_more(process: subprocess.Popen[str], out: Path, generator: np.random.Generator) -> None:
    """Until the process has written a little, and a random moment longer."""
    size = out.stat().st_size if out.is_file() else 0
    while process.poll() is None and (out.stat().st_size if out.is_file() else 0) <= size:
        time.sleep(0.02)
    time.sleep(float(generator.uniform(0, 0.3)))
