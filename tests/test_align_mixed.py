"""Alignment on prompts with and without first frames and voices, of mixed lengths and sizes."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from align_world import align_run, config, metrics, run_align, write_mixed, write_world
from ray_world import Driver, no_driver_outlives_its_test  # noqa: F401
from safetensors.torch import load_file
from test_align_pairs import dpo

from finetune.align_run import AlignRun
from finetune.gsb.pairs import PreferencePair, read_clips, write_pairs
from finetune.make_rollouts import RolloutsConfig, make_rollouts
from finetune.pair_batches import open_pairs
from finetune.prompts import prompts_of_round, read_prompt_set
from finetune.recipe import AlignConfig, RubricConfig, StopConfig
from finetune.rollout_store import open_store
from pretrain.clip_kind import kind_of
from pretrain.flow.guidance import GuidanceScales
from pretrain.sampling import SamplerConfig

ROUNDS = 4  # enough for all three kinds
VOICED = SamplerConfig(
    solver="euler", steps=4, shift=5.0, guidance=GuidanceScales(text_video=0.0, timbre_audio=1.0)
)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return write_mixed(write_world(tmp_path_factory.mktemp("world")))


def mixed(sequence: tuple[str, ...], rounds: int, **changes: Any) -> AlignConfig:
    """Held-out prompts are rolled out with guidance towards the voice, which only some of them have."""
    return config(
        sequence, rounds, {"steps_per_epoch": 2, "epochs": 1, "lr": 1e-3}, deployed=VOICED,
        stop=StopConfig(prompts=24, every=1), **changes,
    )  # fmt: skip


def mixed_run(world: Path, out: Path, recipe: AlignConfig, **options: Any) -> AlignRun:
    run = align_run(world, out, recipe, **options)
    run = dataclasses.replace(run, prompts=world / "mixed.jsonl", held_out=world / "held_out.jsonl")
    run.save()
    return run


def kinds_of_rounds(run: AlignRun) -> list[bool]:
    prompts = read_prompt_set(run.prompts, run.config, None, run.held_out)
    number = run.config.num_rounds
    drawn = [prompts_of_round(prompts, run.config, 4, index)[0] for index in range(number)]
    return [kind_of(row, run.config) for row in drawn]  # type: ignore[misc]


def adapter(run: AlignRun) -> dict[str, torch.Tensor]:
    return load_file(run.out / "adapter" / "adapter_model.safetensors")


def assert_same(run: AlignRun, expected: AlignRun) -> None:
    found = adapter(run)
    for name, value in adapter(expected).items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=5e-5)
    for row, other in zip(metrics(run), metrics(expected), strict=True):
        for name in ("reward/warm", "held_out/reward/warm", "held_out_total", "clips"):
            if name in other:
                assert row[name] == pytest.approx(other[name], rel=1e-3, abs=1e-5), name


@pytest.mark.distributed
@pytest.mark.parametrize("sequence", [("grpo",), pytest.param(("nft",), marks=pytest.mark.slow)])
def test_two_ranks_align_on_mixed_prompts_as_one_does_and_resume(world, tmp_path, sequence):
    made = mixed(sequence, rounds=ROUNDS)
    one, two = mixed_run(world, tmp_path / "one", made), mixed_run(world, tmp_path / "two", made)
    assert len(set(kinds_of_rounds(one))) == 3
    assert run_align(one) == [0], (one.out / "log.0").read_text()[-2000:]
    if sequence == ("nft",):
        run_align(two, world_size=2, mishap="kill@2")
        assert metrics(two)[-1]["step"] == 2
    assert run_align(two, world_size=2) == [0, 0], (two.out / "log.0").read_text()[-2000:]
    assert_same(two, one)
    assert max(float(value.abs().max()) for value in adapter(one).values()) > 1e-3


@pytest.mark.slow
@pytest.mark.distributed
def test_judges_and_best_are_the_same_where_a_run_goes_on_on_other_ranks(world, tmp_path):
    """Held-out prompts of three kinds come in another order on two ranks than on one."""
    made = mixed(("nft",), rounds=3, rubric=RubricConfig(audio={"warm": 1.0}, sync={}, watched=("ear",)))
    whole, other = (mixed_run(world, tmp_path / name, made, judge=-1.0) for name in ("whole", "other"))
    assert run_align(whole) == [0], (whole.out / "log.0").read_text()[-2000:]
    run_align(other, mishap="kill@1")
    assert run_align(other, world_size=2) == [0, 0], (other.out / "log.0").read_text()[-2000:]
    assert_same(other, whole)
    for row, same in zip(metrics(other), metrics(whole), strict=True):
        for name in ("held_out/judge_change/ear", "alarm/ear"):
            assert row[name] == pytest.approx(same[name], rel=1e-3, abs=1e-5), (row["step"], name)
    assert metrics(whole)[-1]["alarm/ear"] == 1.0


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.timeout(900)
def test_ray_aligns_on_mixed_prompts_as_local_ranks_do(world, tmp_path):
    made = mixed(("nft",), rounds=ROUNDS)
    local, remote = mixed_run(world, tmp_path / "local", made), mixed_run(world, tmp_path / "remote", made)
    driver = Driver(remote.out)
    assert run_align(local) == [0], (local.out / "log.0").read_text()[-2000:]
    assert driver.wait(900) == 0, driver.said()[-2000:]
    assert_same(remote, local)


@pytest.fixture(scope="module")
def voted(world) -> Path:
    """Two pairs of each prompt of mixed.jsonl, with clips that a model made."""
    made = RolloutsConfig(clips_per_prompt=3, bf16=False, sampler=config().phases["nft"].sampler)
    where = world / "base", world / "codec", world / "mixed.jsonl", world / "store"
    make_rollouts(made, config(stop=StopConfig(prompts=0)), *where)
    clips = {clip.clip_id: clip for clip in read_clips(world / "store")}
    pairs = []
    for name, clip in clips.items():
        if name.endswith("k0"):
            first, second, third = (clips[f"{name[:-1]}{k}"] for k in range(3))
            votes: dict[str, tuple[int, int, int]] = {"voice": (0, 1, 4), "picture": (3, 1, 1)}
            pairs.append(PreferencePair(clip.case_id, first, second, votes, simulated=True))
            pairs.append(PreferencePair(clip.case_id, second, third, votes, simulated=True))
    write_pairs(world / "pairs.jsonl", pairs)
    return world


def test_rounds_of_pairs_are_of_one_kind_and_all_kinds_come(voted, capsys):
    store = open_store(voted / "store")
    source = open_pairs(voted / "pairs.jsonl", store, 8)
    shapes = set()
    for index in range(9):
        batch = source.of_round(8, 2, 0, index, 0, 1)
        assert torch.equal(batch.first.first_frame, batch.second.first_frame)
        assert len(batch.first.first_frame.unique()) == 1
        shapes.add((batch.first.video.shape, bool(batch.first.first_frame[0])))
    assert len(shapes) == 3 and not capsys.readouterr().err
    with pytest.raises(ValueError, match=r"10 pairs of one kind of clips, but a round takes 12"):
        open_pairs(voted / "pairs.jsonl", store, 12)


@pytest.mark.slow
@pytest.mark.distributed
def test_two_ranks_learn_votes_on_mixed_clips_as_one_does(voted, tmp_path):
    recipe = mixed(("gsb_dpo",), rounds=2, phases={"gsb_dpo": dpo(rounds=6, lr=1e-3)})
    runs = []
    for name in ("one", "two"):
        run = mixed_run(voted, tmp_path / name, recipe)
        runs.append(dataclasses.replace(run, pairs=voted / "pairs.jsonl", clips=voted / "store"))
        runs[-1].save()
    assert run_align(runs[0]) == [0], (runs[0].out / "log.0").read_text()[-2000:]
    assert run_align(runs[1], world_size=2) == [0, 0]
    assert_same(runs[1], runs[0])
