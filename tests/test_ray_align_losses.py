"""Alignment on Ray with processes that are killed, rewards that fail and signals: it ends as an undisturbed
one does."""

import fcntl
import json
import os
import signal
from pathlib import Path

import pytest
import torch
from align_world import align_run, config, metrics, run_align, write_world
from ray_world import Driver, ledger, no_driver_outlives_its_test  # noqa: F401
from safetensors.torch import load_file
from test_ray_align import assert_ledger_is_whole, both, distance

from finetune.align_run import AlignRun
from finetune.recipe import StopConfig
from pretrain.titan.checkpoints import complete_steps

pytestmark = [pytest.mark.slow, pytest.mark.distributed, pytest.mark.timeout(1200)]
VERSIONS = ["0-old", "1-old", "2-default", "3-default"]
TITLES = {
    "rollout": "ray::RolloutWorker.roll_out",
    "reward": "ray::RewardWorker.score",
    "rank": "ray::TrainerRank.learn",
}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def local(world) -> AlignRun:
    run = align_run(world, world / "local", both())
    assert run_align(run, world_size=2) == [0, 0]
    return run


def losses(run: AlignRun) -> list[tuple]:
    names = ("step", "nft/loss", "grpo/loss", "reward/warm", "held_out_total")
    return [tuple(row.get(name) for name in names) for row in metrics(run)]


def assert_as(run: AlignRun, other: AlignRun) -> None:
    assert distance(run, other) <= 1e-5
    for found, wanted in zip(losses(run), losses(other), strict=True):
        assert found == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("victim", ["rollout", "reward", "rank"])
def test_a_killed_worker_loses_nothing(world, local, tmp_path, victim):
    run = align_run(world, tmp_path, both())
    driver = Driver(run.out)
    driver.until(lambda: ledger(run.out))
    os.kill(next(iter(driver.until(lambda: driver.processes(TITLES[victim])))), signal.SIGKILL)
    assert driver.wait() == 0, driver.said()[-2000:]
    assert_as(run, local)
    assert_ledger_is_whole(run, VERSIONS)
    restarts = sum(row["restarts"] for row in ledger(run.out))
    assert restarts <= (
        victim != "rank"
    )  # seen where the fresh process has answered: the killed one may just have been done


def test_a_killed_driver_goes_on_and_leaves_nobody(world, local, tmp_path):
    run = align_run(world, tmp_path, both())
    driver = Driver(run.out)
    driver.until(lambda: ledger(run.out))
    driver.process.kill()
    assert driver.wait() == -signal.SIGKILL  # and its Ray is gone
    again = Driver(run.out)
    assert again.wait() == 0, again.said()[-2000:]
    assert_as(run, local)
    assert_ledger_is_whole(run, VERSIONS)


def test_sigterm_saves_and_the_same_command_goes_on(world, local, tmp_path):
    run = align_run(world, tmp_path, both())
    driver = Driver(run.out)
    driver.until(lambda: ledger(run.out))
    driver.process.send_signal(signal.SIGTERM)
    assert driver.wait() == 130, driver.said()[-2000:]
    state = json.loads((run.out / "state.json").read_text())
    assert (
        state["status"] == "interrupted" and complete_steps(run.out / "checkpoint")[-1] == state["step"] < 4
    )
    assert Driver(run.out).wait() == 0
    assert_as(run, local)
    assert_ledger_is_whole(run, VERSIONS)


def test_a_signal_ends_a_run_whose_ranks_do_not_come_up(world, tmp_path):
    """Here a rank of an earlier group that does not go away; on a cluster, a place for it that is never
    free."""
    run = align_run(world, tmp_path / "out", both())
    with run.out.with_name(".out.rank-1.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        driver = Driver(run.out)
        driver.until(lambda: len(driver.processes("ray::TrainerRank.join")) == 2)
        driver.process.send_signal(signal.SIGTERM)
        assert driver.wait(60) != 0
    assert "stopped before its first round; the same command goes on" in driver.said()


def test_stale_rounds_are_the_same_each_time_also_after_a_kill(world, tmp_path):
    made = config(
        rounds=4, phase={"rollout_batch": 3}, checkpoint_every=2, stop=StopConfig(prompts=2, every=4)
    )
    whole, killed = align_run(world, tmp_path / "whole", made), align_run(world, tmp_path / "killed", made)
    assert Driver(whole.out, staleness=1).wait() == 0
    driver = Driver(killed.out, staleness=1)
    driver.until(lambda: len(ledger(killed.out)) >= 3)
    driver.process.kill()
    driver.wait()
    assert complete_steps(killed.out / "checkpoint") == [2]
    assert Driver(killed.out, staleness=1).wait() == 0
    assert [(row["round"], row["version"]) for row in ledger(killed.out)] == [
        (1, "0-old"),
        (2, "0-old"),
        (3, "1-old"),
        (4, "2-old"),
    ]
    assert ledger(killed.out) == ledger(whole.out)
    first, second = (load_file(run.out / "adapter" / "adapter_model.safetensors") for run in (whole, killed))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert losses(whole) == losses(killed)
    fresh = Driver(killed.out)  # another staleness is another run
    assert fresh.wait() == 2 and "staleness 1, asked for 0" in fresh.said().splitlines()[-1]


def test_a_reward_that_raises_loses_the_round_and_says_so_in_one_line(world, local, tmp_path):
    run = align_run(world, tmp_path, both(), fail_at=2)
    driver = Driver(run.out)
    assert driver.wait() == 2
    line = driver.said().splitlines()[-1]
    assert (
        line
        == "error: round 1 is lost, the saved state is that of round 0: reward warm failed: its network is "
        "gone"
    )
    mended = align_run(world, tmp_path, both())
    (run.out / "run.json").unlink()  # the scorer's options are another run's
    assert Driver(run.out).wait() == 0
    assert_as(mended, local)


def test_what_is_wrong_is_said_in_one_line(world, tmp_path):
    run = align_run(world, tmp_path / "options", both(), names=["warm"], wrong=1)
    driver = Driver(run.out)
    assert driver.wait() == 2
    assert "unexpected keyword argument 'wrong'" in driver.said().splitlines()[-1]
    lost = align_run(world, tmp_path / "lost", both())
    driver = Driver(lost.out, trainers={"max_restarts": 0})
    driver.until(lambda: ledger(lost.out))
    os.kill(next(iter(driver.until(lambda: driver.processes(TITLES["rank"])))), signal.SIGKILL)
    assert driver.wait() == 2
    assert "a rank that trains was lost 1 times" in driver.said().splitlines()[-1]
    assert "run again to resume" in driver.said().splitlines()[-1]
