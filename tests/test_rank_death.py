"""A rank that is killed under torchrun, as a user meets it: one line, elastic restarts, exact resumption."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from titan_world import config, rows, write_latents

from pretrain.launch.launch import pretrain_stage
from pretrain.launch.nodes import Nodes
from pretrain.launch.stage_run import StageRun
from pretrain.launch.torchrun import ATTEMPT, dead_rank, newest_state
from pretrain.recipe import PretrainConfig

STEPS = 16


def record(rank: int, code: str) -> str:
    """As torchrun prints it."""
    return (
        f"[{rank}]:\n  time      : 2026-01-01_00:00:00\n  host      : node7\n  rank      : {rank} "
        f"(local_rank: {rank})\n"
        f"  exitcode  : {code}\n  error_file: <N/A>\n"
    )


@pytest.mark.parametrize(
    ("records", "line"),
    [
        (
            [(0, "3 (pid: 11)"), (1, "-9 (pid: 12) SIGKILL")],
            "rank 1 on node7 was killed by SIGKILL (by the system",
        ),
        (
            [(5, "-11 (pid: 12) SIGSEGV"), (0, "3 (pid: 11)")],
            "rank 5 on node7 was killed by SIGSEGV (by a fault",
        ),
        ([(5, "-99 (pid: 12) ")], "rank 5 on node7 was killed by signal 99"),
        ([(0, "2 (pid: 11)"), (1, "3 (pid: 12)")], ""),
        ([(0, "-15 (pid: 77) SIGTERM"), (1, "3 (pid: 12)")], ""),
        ([(0, "-9 (pid: 77) SIGKILL"), (1, "-9 (pid: 12) SIGKILL")], "rank 1 on"),
        ([], ""),
    ],
)
def test_the_killed_rank_is_found_among_those_that_lost_it(records, line):
    table = "======\nx FAILED\n------\nFailures:\n" + "".join(record(*each) for each in records) + "======\n"
    noise = "W1122 api.py:1028] Sending process 77 closing signal SIGTERM"
    assert dead_rank(f"{ATTEMPT}\n{noise}\n{table}").startswith(line)
    assert bool(dead_rank(f"{noise}\n{table}")) == bool(line)
    assert dead_rank(f"{ATTEMPT}\n{table}{ATTEMPT}\nValueError: other\n") == ""  # of the attempt before


def test_what_can_be_resumed_is_said(tmp_path):
    assert newest_state(tmp_path / "resolved.json").endswith("could not be listed")
    (tmp_path / "resolved.json").write_text("{}")
    assert newest_state(tmp_path / "resolved.json") == "no checkpoint was complete"
    (tmp_path / "elsewhere" / "step-12").mkdir(parents=True)
    (tmp_path / "elsewhere" / "step-12" / ".metadata").touch()
    (tmp_path / "resolved.json").write_text(json.dumps({"checkpoints": str(tmp_path / "elsewhere")}))
    assert newest_state(tmp_path / "resolved.json") == "the checkpoint of step 12 is intact"


@pytest.fixture(scope="module")
def latents(tmp_path_factory) -> Path:
    return write_latents(tmp_path_factory.mktemp("latents"))


def kill_rank_1_after(out: Path, steps: int) -> threading.Thread:
    """SIGKILL to that rank of this run, once its metrics have so many rows."""

    def rank_1() -> int | None:
        for process in Path("/proc").iterdir():
            try:
                ours = str(out / "resolved.json").encode() in (process / "cmdline").read_bytes()
                if ours and b"\0RANK=1\0" in (process / "environ").read_bytes():
                    return int(process.name)
            except (OSError, ValueError):
                continue
        return None

    def watch() -> None:
        metrics = out / "metrics.jsonl"
        while not metrics.is_file() or len(metrics.read_text().splitlines()) < steps:
            time.sleep(0.02)
        if pid := rank_1():
            os.kill(pid, signal.SIGKILL)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def recipe() -> PretrainConfig:
    return config(steps=STEPS, interval=3)


@pytest.fixture(scope="module")
def uninterrupted(latents, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    assert pretrain_stage(recipe(), "stage1", latents, out, nproc=2).status == "finished"
    return out


def assert_same_training(out: Path, other: Path) -> None:
    for name in ("model.safetensors", "ema.safetensors"):
        assert (out / "model" / name).read_bytes() == (other / "model" / name).read_bytes(), name
    runs = [StageRun.load(folder / "resolved.json") for folder in (out, other)]
    losses = [[(row["step"], row["loss"]) for row in rows(run) if "loss" in row] for run in runs]
    assert losses[0] == losses[1] and len(losses[0]) == STEPS


@pytest.mark.slow
@pytest.mark.distributed
def test_a_killed_rank_is_named_and_the_run_goes_on_exactly(latents, uninterrupted, tmp_path):
    killer = kill_rank_1_after(tmp_path, 5)
    with pytest.raises(
        OSError,
        match=r"rank 1 on \S+ was killed by SIGKILL .*; the checkpoint of step \d+ is intact; run again",
    ) as caught:
        pretrain_stage(recipe(), "stage1", latents, tmp_path, nproc=2)
    killer.join()
    assert "\n" not in str(caught.value)
    assert pretrain_stage(recipe(), "stage1", latents, tmp_path, nproc=2).status == "finished"
    assert_same_training(tmp_path, uninterrupted)


@pytest.mark.slow
@pytest.mark.distributed
def test_an_elastic_restart_goes_on_exactly(latents, uninterrupted, tmp_path):
    killer = kill_rank_1_after(tmp_path, 5)
    result = pretrain_stage(recipe(), "stage1", latents, tmp_path, nproc=2, nodes=Nodes(max_restarts=1))
    killer.join()
    assert result.status == "finished"
    printed = (tmp_path / "log.txt").read_text()
    assert (
        printed.count("Starting job") == 4 and printed.count("loading the checkpoint of step") == 2
    )  # each rank twice
    assert_same_training(tmp_path, uninterrupted)
