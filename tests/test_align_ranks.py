import json
from pathlib import Path

import pytest
import torch
from align_world import align_run, config, error, metrics, run_align, write_world
from safetensors.torch import load_file

from finetune.align_run import AlignRun

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"))


def adapter(run: AlignRun) -> dict[str, torch.Tensor]:
    return load_file(run.out / "adapter" / "adapter_model.safetensors")


@pytest.mark.parametrize("algorithm", ["nft", "rwr", "awm", "grpo"])
def test_two_ranks_align_as_one_does(world, tmp_path, algorithm):
    made = config((algorithm,), rounds=1, phase={"steps_per_epoch": 2, "epochs": 1, "lr": 1e-3})
    one, two = align_run(world, tmp_path / "one", made), align_run(world, tmp_path / "two", made)
    assert run_align(one) == [0], (one.out / "log.0").read_text()[-2000:]
    assert run_align(two, world_size=2) == [0, 0], (two.out / "log.0").read_text()[-2000:]
    found, expected = adapter(two), adapter(one)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=2e-5)
    first, second = (metrics(run)[1] for run in (one, two))
    for name in ("reward/warm", "contrast", "clips", "grad_norm", f"{algorithm}/loss"):
        assert second[name] == pytest.approx(first[name], rel=1e-3, abs=1e-6), name


def test_a_reward_that_fails_on_one_rank_fails_on_all(world, tmp_path):
    run = align_run(world, tmp_path, config(), fail_at=2)
    assert run_align(run, world_size=2) == [2, 2]
    assert "round 1 is lost, the saved state is that of round 0: reward warm failed" in error(run)


def test_a_signal_to_one_rank_stops_all(world, tmp_path):
    run = align_run(world, tmp_path, config())
    assert run_align(run, world_size=2, mishap="term@2") == [0, 0]
    assert json.loads((run.out / "state.json").read_text())["status"] == "interrupted"
    assert run_align(run, world_size=2) == [0, 0]
    assert [row["step"] for row in metrics(run)] == [0, 1, 2]
