"""`nava plan --clips N --price P` and what a launch names: closed forms, and files that are there or not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from titan_world import config, write_latents

from experiments.cli import main
from experiments.jobs.named import missing
from experiments.jobs.request import Request
from experiments.recipes.load import load_recipe
from pretrain.data.stream.loader import Slice, StageLoader
from pretrain.data.stream.sample import Sample, pack
from pretrain.data.stream.sample_set import open_sets
from pretrain.model.flavors import flavor
from pretrain.model.flops import ClipShape
from pretrain.model.plan import clip_shape
from pretrain.model.plan_sizes import model_moments, sizes_of
from pretrain.plan_costs import clip_bytes, kept_states, plan_costs
from pretrain.plan_schedule import clips_per_batch
from pretrain.recipe import CheckpointConfig, PretrainConfig
from pretrain.titan.checkpoints import retain

ARGS = flavor("debug")
CLIP = ClipShape(video=12, audio=10, context=9)


def costs(**changes) -> dict:
    rates = {"clips": 240, "price": 2.5, "encode_pixels_per_s": 1000.0, "latent_bytes": 2, **changes}
    recipe = config(steps=60, checkpoint=CheckpointConfig(interval=20, keep_last=2))
    return plan_costs(ARGS, CLIP, 36_000, recipe, 4, 0.5, **rates)


def test_hours_storage_and_money_in_closed_form():
    found = costs()
    assert found["gpu_hours"] == pytest.approx({"encoding": 2.4, "training": 48.0, "total": 50.4})
    assert found["encoding_hours_on_all_gpus"] == pytest.approx(0.6)
    assert found["cost"] == pytest.approx(126.0) and found["times_each_clip_is_seen"] == 1.0
    assert found["storage_tb"]["latents"] == pytest.approx(240 * found["bytes_per_clip"] / 1e12)
    assert found["storage_tb"]["training_states"] == pytest.approx(3 * 16 * sizes_of(ARGS).total / 1e12)
    assert found["cost_leaves_out"] == []


def test_the_moments_of_the_recipe_and_the_batches_of_sound_alone_are_counted():
    recipe = config(steps=60, checkpoint=CheckpointConfig(interval=20, keep_last=2))
    recipe = replace(
        recipe,
        optimizer=replace(recipe.optimizer, moments="8bit"),
        stages={"stage1": replace(recipe.stage("stage1"), audio_only_batch_factor=3)},
    )
    rates = {"clips": 240, "price": 2.5, "encode_pixels_per_s": 1000.0, "latent_bytes": 2}
    found = plan_costs(ARGS, CLIP, 36_000, recipe, 4, 0.5, **rates)
    states = (4 + 4) * sizes_of(ARGS).total + model_moments(ARGS, "8bit")  # weights, their average, moments
    assert found["storage_tb"]["training_states"] == pytest.approx(3 * states / 1e12)
    # 60 steps of 4 clips; 1 of 2.5 is of sound alone, with three times the batch
    assert found["times_each_clip_is_seen"] == pytest.approx(60 * 4 * (1 + 2 * 1.0 / 2.5) / 240)


@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=3),
    st.integers(1, 20),
    st.integers(1, 4),
    st.integers(0, 9),
)
@settings(max_examples=25)
def test_the_states_are_those_that_retention_leaves(
    tmp_path_factory, lengths, interval, keep_last, keep_every
):
    saves = CheckpointConfig(interval=interval, keep_last=keep_last, keep_every=keep_every)
    stage = PretrainConfig().stage("stage1")
    stages = {
        f"s{place}": replace(stage, name=f"s{place}", steps=steps) for place, steps in enumerate(lengths)
    }
    left = 0
    for name, each in stages.items():
        folder = tmp_path_factory.mktemp(name)
        for step in range(1, each.steps + 1):
            if step % interval == 0 or step == each.steps:
                (folder / f"step-{step}").mkdir()
                (folder / f"step-{step}" / ".metadata").write_text("")
                retain(folder, keep_last, keep_every)
        left += len(list(folder.iterdir()))
    assert kept_states(replace(PretrainConfig(), checkpoint=saves, stages=stages)) == left


def test_a_long_training_keeps_more_than_its_newest_states():
    config = load_recipe("nava_6b").pretrain
    assert kept_states(config) == 20  # 9, 7 and 4 of its stages


def test_the_planned_draws_are_those_of_the_loader(tmp_path):
    stage = replace(config(steps=500).stage("stage1"), audio_only_batch_factor=3)
    sets = open_sets(write_latents(tmp_path), stage)
    loader = StageLoader(stage, sets, 0, 4, Slice(local_batch_size=4))
    drawn = sum(loader.clips_of_step(step) for step in range(1, stage.steps + 1))
    assert drawn / (4 * stage.steps) == pytest.approx(clips_per_batch(stage), rel=0.01)


def test_an_encoder_of_unknown_speed_is_left_out_and_said():
    found = costs(encode_pixels_per_s=0.0)
    assert found["gpu_hours"]["encoding"] is None and found["cost"] == pytest.approx(120.0)
    assert found["cost_leaves_out"] == ["encoding"]


@pytest.mark.parametrize("wrong", [{"clips": 0}, {"price": -1.0}, {"encode_pixels_per_s": float("inf")}])
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=r"^--clips must be[^\n]*$"):
        costs(**wrong)


def test_the_bytes_of_a_clip_are_those_that_the_encoder_packs():
    clip = clip_shape(ARGS, 25, 64, 96, 24.0, 9)
    latents = clip.video * 4
    video, audio = torch.zeros(48, latents // (4 * 6), 4, 6), torch.zeros(128, clip.audio)
    text = torch.zeros(9, ARGS.text_width)
    sample = Sample("a", video, audio, 6.0, text, torch.arange(1), torch.zeros(1, 192))
    packed = pack(sample, "bfloat16")
    stored = sum(tensor.nbytes for name, tensor in packed.items() if "position" not in name)
    assert clip_bytes(ARGS, clip, 2) == pytest.approx(stored, rel=0.02)


def test_the_plan_of_a_recipe_has_costs_and_a_flavor_has_none(capsys):
    asked = ["plan", "nava_6b", "--gpus", "128", "--clips", "1000000", "--price", "2", "--json"]
    main(asked)
    found = json.loads(capsys.readouterr().out)
    assert found["costs"]["cost"] == pytest.approx(2 * 128 * 24 * found["time"]["total"]["days"])
    with pytest.raises(SystemExit) as ended:
        main(["plan", "debug", "--clips", "10"])
    assert ended.value.code == 2 and "give a recipe" in capsys.readouterr().err


def request(**changes) -> Request:
    return Request(recipe="mini", **changes)


def test_what_a_launch_names_and_is_not_there_is_listed(tmp_path: Path):
    recipe = config(latents=str(tmp_path / "latents"))
    named = request(
        init_from=str(tmp_path / "warm"), workdir=str(tmp_path / "src"), out=str(tmp_path / "a" / "run")
    )
    found = missing(named, recipe, elsewhere=False, mounts=f"{tmp_path}/data:/data")
    assert [line.partition(":")[0] for line in found] == [
        "--mounts",
        "--workdir",
        "--from",
        "pretrain.latents of stage1",
        "--out",
    ]
    assert missing(named, recipe, elsewhere=True) == [], "paths of pods are not seen from here"
    write_latents(tmp_path / "latents")
    for name in ("warm", "src", "a", "data"):
        (tmp_path / name).mkdir()
    (tmp_path / "warm" / "config.json").write_text("{}")
    assert missing(named, recipe, elsewhere=False, mounts=f"{tmp_path}/data:/data") == []


def test_what_is_inside_of_a_container_or_a_registry_is_not_looked_for():
    named = request(init_from="/data/warm", out="/data/a/run")
    assert missing(named, PretrainConfig(latents="/data/l"), elsewhere=False, mounts="/:/data") == []
    assert missing(request(init_from="models:/nava@best"), PretrainConfig(), elsewhere=False) == []


def test_a_dry_run_ends_with_1_where_something_is_missing(tmp_path, capsys):
    asked = ["launch", "slurm", "mini", "--gpus-per-node", "2", "--dry-run"]
    assert main([*asked, "--from", str(tmp_path / "gone")]) == 1
    told = capsys.readouterr()
    assert "sbatch" in told.out.lower() and told.err.startswith("missing: --from:")
