"""Alignment whose clips are shared by the ranks of a context group: two ranks with context 2 are one rank."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from align_world import align_run, config, metrics, run_align, write_world
from own_alignment import prompts, row
from ray_world import Driver, ledger, no_driver_outlives_its_test  # noqa: F401
from safetensors.torch import load_file
from torch import Tensor

from experiments.alignment.checks import check_context
from finetune.align_run import AlignRun
from finetune.prompts import PromptSet
from finetune.recipe import AlignConfig
from pretrain.model.checkpoint import read_model_folder
from pretrain.prompt import read_prompts
from pretrain.titan.ranks import GroupRanks, Ranks

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"))


def shared(made: AlignConfig, context: int = 2) -> AlignConfig:
    return dataclasses.replace(made, parallel=dataclasses.replace(made.parallel, context=context))


def equal(one: AlignRun, other: AlignRun, algorithm: str) -> None:
    files = [load_file(run.out / "adapter" / "adapter_model.safetensors") for run in (one, other)]
    assert files[0].keys() == files[1].keys()
    for name, value in files[0].items():
        # as a whole: Adam steps as far on a gradient of rounding errors as on any other
        assert (files[1][name] - value).norm() <= 1e-2 * value.norm(), name
    before, after = (metrics(run) for run in (one, other))
    assert before[0]["held_out/reward/warm"] == pytest.approx(after[0]["held_out/reward/warm"], rel=1e-4)
    for name in ("reward/warm", "contrast", "clips", "grad_norm", f"{algorithm}/loss", "optimizer_steps"):
        assert after[1][name] == pytest.approx(before[1][name], rel=1e-3, abs=1e-6), name


@pytest.mark.distributed
@pytest.mark.parametrize("algorithm", ["nft", "grpo"])
def test_two_ranks_that_share_their_clips_align_as_one_does(world, tmp_path, algorithm):
    changes = {"steps_per_epoch": 2, "epochs": 1, "lr": 1e-3}
    made = config((algorithm,), rounds=1, phase=changes, height=64)
    one, two = align_run(world, tmp_path / "one", made), align_run(world, tmp_path / "two", shared(made))
    assert run_align(one) == [0], (one.out / "log.0").read_text()[-2000:]
    assert run_align(two, world_size=2) == [0, 0], (two.out / "log.0").read_text()[-2000:]
    equal(one, two, algorithm)


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("algorithm", ["rwr", "awm"])
def test_two_groups_of_two_ranks_align_as_one_rank_does(world, tmp_path, algorithm):
    made = config((algorithm,), rounds=1, phase={"epochs": 1, "lr": 1e-3}, height=64)
    one, four = align_run(world, tmp_path / "one", made), align_run(world, tmp_path / "four", shared(made))
    assert run_align(one) == [0]
    assert run_align(four, world_size=4) == [0] * 4, (four.out / "log.0").read_text()[-2000:]
    equal(one, four, algorithm)


@dataclass(frozen=True)
class Told(Ranks):
    """Ranks whose values are known: 10 times their rank, and a second one higher by 1."""

    def gathered(self, values: Tensor) -> Tensor:
        return torch.cat([values + 10 * (rank - self.rank) for rank in range(self.world_size)])

    def summed(self, values: Tensor) -> Tensor:
        return values + 100

    def gathered_texts(self, text: str) -> list[str]:
        return [f"{text}{rank}" for rank in range(self.world_size)]


def test_a_group_counts_once():
    of_rank = [Told(rank, 6, CPU).in_groups(2) for rank in range(6)]
    assert [(each.rank, each.world_size) for each in of_rank] == [(rank // 2, 3) for rank in range(6)]
    assert all(isinstance(each, GroupRanks) for each in of_rank)
    fourth = of_rank[4]
    assert fourth.gathered(torch.tensor([40, 41])).tolist() == [0, 1, 20, 21, 40, 41]
    assert [int(each.summed(torch.tensor(7))) for each in of_rank] == [107, 100] * 3
    assert fourth.gathered_texts("r") == ["r0", "r2", "r4"]
    alone = Told(3, 6, CPU)
    assert alone.in_groups(1) is alone


def test_what_does_not_split_is_refused_before_work(world, tmp_path):
    run = align_run(world, tmp_path, shared(config(height=64)))
    described = read_model_folder(world / "base")

    def asked(**changes: int) -> PromptSet:
        rows = [row("a", "nothing", height=64), row("b", "word", **changes)]
        return PromptSet((tuple(read_prompts(prompts(tmp_path / "p.jsonl", rows))),), ())

    check_context(run, asked(height=64), described)
    with pytest.raises(ValueError, match=r"p\.jsonl:2: a frame of 1 x 1 tokens does not split over 2"):
        check_context(run, asked(height=32), described)
    three = dataclasses.replace(run, config=shared(config(), 3))
    with pytest.raises(ValueError, match=r"parallel\.context 3 does not divide the model's \d+ heads"):
        check_context(three, asked(height=64), described)
    with pytest.raises(ValueError, match=r"parallel\.context 2 does not divide 3 ranks"):
        shared(config()).check_ranks(3)
    shared(config()).check_ranks(8)  # 4 prompts over 4 groups
    with pytest.raises(ValueError, match=r"prompts_per_round 4 does not divide into 8"):
        shared(config()).check_ranks(16)


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("ranks", "algorithm"), [(2, "nft"), (4, "grpo")])
def test_on_ray_groups_of_two_ranks_align_as_one_rank_does(world, tmp_path, ranks, algorithm):
    made = config((algorithm,), rounds=1, phase={"steps_per_epoch": 2, "epochs": 1, "lr": 1e-3}, height=64)
    one, remote = align_run(world, tmp_path / "one", made), align_run(world, tmp_path / "ray", shared(made))
    driver = Driver(remote.out, ranks)
    assert run_align(one) == [0], (one.out / "log.0").read_text()[-2000:]
    assert driver.wait(600.0) == 0, driver.said()[-2000:]
    equal(one, remote, algorithm)
    samples = ledger(remote.out)[0]["samples"]
    assert len(samples) == len(set(samples)) == metrics(remote)[1]["clips"]
