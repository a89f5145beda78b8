"""A feature cache in what uses a sampler: generation, rollouts, an alignment, the identity of each."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from align_world import align_run, config, metrics, run_align
from align_world import write_world as write_alignment
from cache_ranks import CACHED as TIMES
from cache_ranks import Counted, sampled
from generation_world import QUICK, mixed_rows, write_model_and_codec, write_prompts
from model_cases import debug_model, present
from safetensors.torch import load_file

from experiments.benchmarks.feature_cache import EXACT, SCORED, arms_of, compared, latent_errors, table
from finetune.lora import LoraConfig, inject
from finetune.make_rollouts import BasePolicy
from finetune.objectives.base import RolloutPlan
from finetune.policy import LoraPolicy
from finetune.prompts import read_prompt_set
from finetune.recipe import AlignConfig, StopConfig
from finetune.rollout import PromptBatch, encode_prompts, roll_out
from finetune.types import Role, Rollout
from orchestration.generation_service.making import BatchWatch
from pretrain.codecs.load import load_codecs
from pretrain.config import to_json
from pretrain.flow.reuse import FeatureCacheConfig
from pretrain.generate import generate
from pretrain.generation.conditions import reference_voices
from pretrain.generation.config import GenerateConfig
from pretrain.generation.diffusers_pipeline import NavaTransformerModel
from pretrain.generation.request import request_id
from pretrain.launch.identity import difference
from pretrain.owned import MARKER

CPU = torch.device("cpu")
STEPS = replace(QUICK, sampler=replace(QUICK.sampler, steps=5))
CACHED = replace(STEPS, sampler=replace(STEPS.sampler, cache=FeatureCacheConfig(sigma_drop=0.5)))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_model_and_codec(tmp_path_factory.mktemp("world"))
    write_prompts(folder / "p.jsonl", mixed_rows(4))
    for name, chosen in (("exact", STEPS), ("cached", CACHED)):
        make(folder, folder / name, chosen)
    return folder


@pytest.fixture(scope="module")
def alignment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_alignment(tmp_path_factory.mktemp("alignment"))


def make(world: Path, out: Path, chosen: GenerateConfig) -> dict[str, Any]:
    return generate(chosen, world / "model", world / "codec", world / "p.jsonl", out)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "index.jsonl").read_text().splitlines()]


def test_a_clip_s_row_says_how_many_steps_were_reused(world: Path) -> None:
    assert CACHED.sampler.computed_steps() == [True, False, False, True, True]
    assert [row["reused_steps"] for row in rows_of(world / "cached")] == [2] * 4
    assert all("reused_steps" not in row for row in rows_of(world / "exact"))
    exact, cached = (load_file(world / name / "c000.safetensors") for name in ("exact", "cached"))
    for name, latents in exact.items():
        assert latents.isfinite().all() and not torch.equal(latents, cached[name])


def test_a_cached_clip_is_repeatable_and_does_not_depend_on_the_batch(world: Path, tmp_path: Path) -> None:
    make(world, tmp_path / "out", replace(CACHED, batch_size=1))
    for file in sorted((world / "cached").glob("*.safetensors")):
        found, wanted = load_file(tmp_path / "out" / file.name), load_file(file)
        for name, latents in wanted.items():
            torch.testing.assert_close(found[name], latents, rtol=0, atol=1e-4)


def test_a_folder_knows_its_cache_and_one_without_is_what_it_was(world: Path) -> None:
    marks = [json.loads((world / name / MARKER).read_text()) for name in ("exact", "cached")]
    assert "cache" not in marks[0]["made_with"]["settings"]["sampler"]  # so an older folder's id is unchanged
    assert marks[1]["made_with"]["settings"]["sampler"]["cache"] == {"sigma_drop": 0.5}
    assert [request_id(mark["made_with"]) for mark in marks] == [mark["id"] for mark in marks]
    assert marks[0]["id"] != marks[1]["id"] and make(world, world / "cached", CACHED)["made"] == 0


def test_a_served_model_and_a_component_of_diffusers_take_a_cache() -> None:
    model, watch = debug_model().eval(), BatchWatch(steps=TIMES.steps)
    component = NavaTransformerModel(to_json(model.args)).eval()
    component.network.load_state_dict(model.state_dict())
    wanted = sampled(model)
    for other in (watch.watched(model), component):
        made = sampled(other)
        assert torch.equal(present(made.video), present(wanted.video))
        assert torch.equal(present(made.audio), present(wanted.audio))
    assert watch.begun == TIMES.steps  # reused steps count for the progress too


def policy() -> LoraPolicy:
    made = LoraPolicy(inject(debug_model(), LoraConfig(rank=2, alpha=4)))
    for value in made.adapters["default"].values():
        torch.nn.init.normal_(value, std=0.05, generator=torch.Generator().manual_seed(1))
    return made


def asked(folder: Path, places: list[int]) -> PromptBatch:
    codecs, chosen = load_codecs(folder / "codec"), config(stop=StopConfig(prompts=0))
    rows = read_prompt_set(folder / "prompts.jsonl", chosen).train[0]
    rows = sorted(rows, key=lambda row: row.line)
    voices = reference_voices(rows, folder / "prompts.jsonl", codecs)
    return encode_prompts([rows[place] for place in places], 2, codecs, voices, chosen)


def rolled(made: Any, prompts: PromptBatch, drop: float, batch: int = 8, role: Role = "default") -> Rollout:
    sampler = replace(config().phases["rwr"].sampler, steps=5, guidance=QUICK.sampler.guidance)
    sampler = replace(sampler, cache=FeatureCacheConfig(sigma_drop=drop))
    return roll_out(made, RolloutPlan(role, len(prompts.rows), 2, sampler, batch), prompts, (0, 1), CPU)


def test_rollouts_reuse_features_whatever_the_batch_and_whoever_rolls_out(alignment: Path) -> None:
    made = policy()
    counted, together, alone = Counted(made.model), asked(alignment, [0, 1, 2]), asked(alignment, [2])
    exact, cached = rolled(made, together, 0.0), rolled(made, together, 0.4)
    blocks = counted.blocks
    assert not torch.allclose(exact.audio, cached.audio, atol=1e-3)
    one = rolled(made, alone, 0.4, batch=1)
    assert counted.blocks > blocks
    torch.testing.assert_close(one.video, cached.video[4:6], rtol=0, atol=1e-4)
    torch.testing.assert_close(one.audio, cached.audio[4:6], rtol=0, atol=1e-4)
    base = rolled(BasePolicy(debug_model()), together, 0.4, role="reference")
    torch.testing.assert_close(rolled(made, together, 0.4, role="old").audio, base.audio)


def cached_recipe(drop: float = 0.5) -> AlignConfig:
    recipe = config(rounds=1)
    sampler = replace(recipe.phases["nft"].sampler, cache=FeatureCacheConfig(sigma_drop=drop))
    return recipe.with_phase("nft", sampler=sampler)


def test_an_alignment_with_a_cache_is_another_alignment(alignment: Path, tmp_path: Path) -> None:
    exact, cached, other = (
        align_run(alignment, tmp_path / str(drop), cached_recipe(drop)) for drop in (0.0, 0.5, 0.4)
    )
    name = "nft.sampler.cache.sigma_drop"
    assert difference(exact.depends(), cached.depends()) == [(name, None, 0.5)]
    assert difference(cached.depends(), other.depends()) == [(name, 0.5, 0.4)]
    plain = align_run(alignment, tmp_path / "plain", config(rounds=1))
    assert difference(plain.depends(), exact.depends()) == []
    assert plain.recipe_hash() == exact.recipe_hash() != cached.recipe_hash()


@pytest.mark.slow
@pytest.mark.distributed
def test_an_alignment_learns_from_cached_rollouts_on_one_rank_and_on_two(
    alignment: Path, tmp_path: Path
) -> None:
    runs = {ranks: align_run(alignment, tmp_path / str(ranks), cached_recipe()) for ranks in (1, 2)}
    for ranks, run in runs.items():
        assert run_align(run, ranks) == [0] * ranks, (run.out / "log.0").read_text()[-2000:]
    one, two = (metrics(run)[-1] for run in runs.values())
    reused = cached_recipe().phases["nft"].sampler.reused_steps
    assert one["reused_steps"] == two["reused_steps"] == reused > 0
    assert one["reward/warm"] == pytest.approx(two["reward/warm"], abs=1e-4)


def test_the_benchmark_pairs_each_arm_with_the_exact_clips(world: Path) -> None:
    arms = arms_of(STEPS, [0.5], [3])
    assert list(arms) == [EXACT, "sigma_drop 0.5", "3 steps"]
    assert [one.sampler.reused_steps for one in arms.values()] == [0, 2, 0]
    errors = latent_errors(world / "exact", world / "cached")
    assert set(errors) == {"video", "audio"} and min(errors.values()) > 0
    assert set(latent_errors(world / "exact", world / "exact").values()) == {0.0}
    columns = {"a": 1.0, "b": 11.0, "c": float("nan")}
    scores = {
        arm: {name: {clip: value + gain for clip, value in columns.items()} for name in SCORED}
        for arm, gain in zip(arms, (0.0, -0.5, 0.25), strict=True)
    }
    found = compared(scores, list(columns))
    gap = found[SCORED[0]]["sigma_drop 0.5"]["less_exact"]
    assert (gap["mean"], gap["low"], gap["high"], gap["n"]) == (
        -0.5,
        None,
        None,
        2,
    )  # too few clips for an interval
    fast = {"ratio": 2.0, "low": 1.9, "high": 2.1}
    facts = {"computed_steps": 3, "steps": 5, "times_as_fast": fast, "latents": errors}
    lines = table({"arms": dict.fromkeys(arms, facts), "metrics": found}).splitlines()
    assert "3 of 5" in lines[2] and "2.000 (1.900 to 2.100)" in lines[3]
    assert "6.000" in lines[5] and "| -0.500 |" in lines[5]
