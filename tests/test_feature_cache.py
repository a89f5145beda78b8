"""A feature cache: which steps compute, what a reused step answers, what it saves, where it is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from cache_ranks import CACHED, RATES, SCALES, Counted, noise, rank, sampled
from context_ranks import filled_model
from hypothesis import given, settings
from hypothesis import strategies as st
from model_cases import conditioning, debug_model
from rank_processes import run_processes
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from finetune.objectives.base import RolloutPlan
from finetune.objectives.grpo import GrpoPhase
from finetune.objectives.nft import NftPhase
from finetune.plan_round import cached_passes, sampling_flops
from finetune.recipe import AlignConfig
from finetune.sde import Kernel, StochasticSteps
from pretrain.config import from_json, override, to_json
from pretrain.flow.guidance import NO_GUIDANCE, GuidanceScales
from pretrain.flow.reuse import FeatureCacheConfig, computed_steps
from pretrain.flow.solvers import Latents, SolverName, sampling_sigmas
from pretrain.memory_meter import PRECISION, MemoryMeter, tensors_of
from pretrain.model import scaled_attention
from pretrain.model.feature_cache import FeatureCache
from pretrain.model.flavors import build_model, flavor
from pretrain.model.flops import ClipShape, adapter_flops
from pretrain.model.plan_memory import memory_parts
from pretrain.model.plan_setup import Setup
from pretrain.model.quantised import halve
from pretrain.sampling import SamplerConfig, sample, streams
from pretrain.types import Conditioning, Stream, cache_flags, num_audio_tokens

FLAVOR, FRAMES, SIDE, TEXT = "mini", 7, 16, 64  # latent frames, latent rows and columns, text tokens
TOKENS = num_audio_tokens(4 * FRAMES - 3, 24.0)
EXACT = replace(CACHED, cache=FeatureCacheConfig())
ALL = FeatureCacheConfig(sigma_drop=1.0)


@given(steps=st.integers(1, 60), shift=st.floats(0.3, 15), drop=st.floats(0, 1))
@settings(max_examples=100)
def test_a_step_reuses_what_is_less_than_the_drop_above_it(steps: int, shift: float, drop: float) -> None:
    sigmas = sampling_sigmas(steps, shift)
    computed = computed_steps(sigmas, FeatureCacheConfig(sigma_drop=drop))
    assert len(computed) == steps and computed[0] and computed[-1]
    held = 1.0
    for index in range(1, steps - 1):
        assert computed[index] == (held - sigmas[index] >= drop)
        held = sigmas[index] if computed[index] else held
    fewer = computed_steps(sigmas, FeatureCacheConfig(sigma_drop=min(1.0, 1.5 * drop)))
    assert sum(fewer) <= sum(computed)


def test_the_ends_of_the_setting_are_every_step_and_the_first_with_the_last() -> None:
    sigmas = sampling_sigmas(9, 5.0)
    assert all(computed_steps(sigmas, FeatureCacheConfig()))
    assert computed_steps(sigmas, ALL) == [True, *[False] * 7, True]
    assert SamplerConfig(solver="unipc", steps=9, cache=ALL).reused_steps == 7
    assert (
        SamplerConfig(steps=2, cache=ALL).reused_steps == SamplerConfig(steps=1, cache=ALL).reused_steps == 0
    )
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="sigma_drop must be from 0"):
            FeatureCacheConfig(sigma_drop=wrong)


def reference(model: Any, config: SamplerConfig, first: Tensor | None = None, reuse: bool = True) -> Latents:
    """Guided Euler steps by hand, what the blocks add kept by each direction's name."""
    text, state = conditioning(), noise()
    video, audio = state.video, state.audio
    assert video is not None and audio is not None
    if first is not None:
        video = torch.cat([first, video[:, :, 1:]], dim=2)
    directions: dict[str, tuple[Conditioning, float, float]] = {
        "text": (text.without_text, SCALES.text_video, SCALES.text_audio),
        "align": (text.without_alignment, SCALES.align_video, SCALES.align_audio),
        "timbre": (text.without_timbre, SCALES.timbre_video, SCALES.timbre_audio),
    }
    added: dict[str, tuple[Tensor, Tensor]] = {}
    original, now = model.mix, {"name": "full", "computes": True}

    def mix(inputs: Any) -> Any:
        name: Any = now["name"]
        if reuse and not now["computes"]:
            return tuple(x + more for x, more in zip(inputs.tokens, added[name], strict=True))
        out = original(inputs)
        added[name] = tuple(y - x for x, y in zip(inputs.tokens, out, strict=True))
        return out

    model.mix = mix
    sigmas = sampling_sigmas(config.steps, config.shift)
    with torch.no_grad():
        for index, computes in enumerate(config.computed_steps()):
            now |= {"name": "full", "computes": computes}
            given = streams(Latents(video, audio), sigmas[index], RATES, first is not None)
            full = model(*given, text)
            moved = [full.video, full.audio]
            for name, (without, *scales) in directions.items():
                now["name"] = name
                other = model(*given, without)
                for place, scale in enumerate(scales):
                    moved[place] = moved[place] + scale * (full[place] - other[place])
            if first is not None:
                moved[0][:, :, 0] = 0
            step = sigmas[index + 1] - sigmas[index]
            video, audio = video + moved[0] * step, audio + moved[1] * step
    del model.mix
    return Latents(video, audio)


def same(found: Latents, wanted: Latents, most: float = 0.0) -> None:
    for one, other in ((found.video, wanted.video), (found.audio, wanted.audio)):
        assert one is not None and other is not None
        torch.testing.assert_close(one, other, rtol=0, atol=most)


@pytest.mark.parametrize("name", ["debug", "debug_dual_tower", "debug_unified"])
def test_a_reused_step_adds_to_its_own_tokens_what_the_same_direction_added_before(name: str) -> None:
    model = debug_model(name=name).eval()
    counted = Counted(model)
    made = sampled(counted)
    same(made, reference(model, CACHED))
    blocks = sum(len(group) for group in model.block_groups())
    computed = sum(CACHED.computed_steps())
    assert 2 < computed < CACHED.steps and CACHED.reused_steps == CACHED.steps - computed
    assert counted.passes == 4 * CACHED.steps  # the conditioned pass and three directions
    assert counted.blocks - 4 * computed * blocks == 4 * computed * blocks  # and those of the reference
    exact = sampled(model, EXACT)
    same(exact, reference(model, EXACT, reuse=False))  # off: to the bit, as without a cache
    assert not torch.allclose(exact.video, made.video, atol=1e-3)  # type: ignore[arg-type]


@pytest.mark.parametrize("solver", ["euler", "unipc"])
def test_blocks_are_computed_in_the_first_and_last_step_alone(solver: SolverName) -> None:
    model = debug_model().eval()
    counted = Counted(model)
    config = replace(CACHED, solver=solver, guidance=NO_GUIDANCE, cache=ALL)
    made = sampled(counted, config)
    assert counted.passes == config.steps and counted.blocks == 2 * 2
    assert made.video is not None and made.video.isfinite().all()


def test_off_the_model_is_called_as_it_was_before_there_was_a_cache() -> None:
    model, seen = debug_model().eval(), []

    def called(*given: Any) -> Any:
        seen.append(len(given))
        return model(*given)

    sampled(called, EXACT)
    assert set(seen) == {3}
    seen.clear()
    sampled(called, CACHED)
    assert set(seen) == {4}


def test_a_given_first_frame_stays_and_one_modality_can_be_absent() -> None:
    model, first = debug_model().eval(), torch.full((2, 48, 1, 4, 4), 0.3)
    made = sample(model, noise(), conditioning(), RATES, CACHED, first)
    same(made, reference(model, CACHED, first))
    assert made.video is not None and torch.equal(made.video[:, :, :1], first)
    start = noise()
    for alone in (Latents(start.video, None), Latents(None, start.audio)):
        counted = Counted(model)
        out = sample(counted, alone, conditioning(), RATES, CACHED)
        assert (out.video is None) == (alone.video is None) and (out.audio is None) == (alone.audio is None)
        assert counted.blocks < counted.passes * 2


def test_a_clip_is_the_same_beside_other_clips() -> None:
    model, start, text = debug_model().eval(), noise(4), conditioning(4)
    whole = sample(model, start, text, RATES, CACHED)
    one = Conditioning(*(getattr(text, item.name)[2:3] for item in fields(Conditioning)))
    assert start.video is not None and start.audio is not None
    alone = sample(model, Latents(start.video[2:3], start.audio[2:3]), one, RATES, CACHED)
    assert whole.video is not None and whole.audio is not None
    same(alone, Latents(whole.video[2:3], whole.audio[2:3]), 1e-4)


def test_a_pass_that_was_not_computed_is_not_reused() -> None:
    cache = FeatureCache([True, False, True])
    first = cache.begin_step().next_pass()
    first.keep((torch.ones(1, 1, 2), None), (torch.full((1, 1, 2), 3.0), None))
    again = cache.begin_step().next_pass()
    assert again is first and again.reusing
    assert torch.equal(again.added_to((torch.zeros(1, 1, 2), None))[0], torch.full((1, 1, 2), 2.0))  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="step 1 has more passes"):
        cache.next_pass()
    last = cache.begin_step().next_pass()
    assert not last.reusing and not last.keeping and last.added is None  # nothing is kept that nothing uses


@pytest.mark.distributed
def test_sharded_ranks_and_ranks_that_share_a_clip_make_the_clips_of_one(tmp_path: Any) -> None:
    assert run_processes(rank, 2, tmp_path, tmp_path) == [0, 0], (tmp_path / "log.0").read_text()[-2000:]
    model = filled_model().eval()
    counted = Counted(model)
    wanted = [sampled(counted, seed=index) for index in range(2)]
    for index in range(2):
        found = torch.load(tmp_path / f"rank{index}.pt", weights_only=True)
        same(Latents(*found["own"]), wanted[index], 1e-5)
        same(Latents(*found["whole"]), wanted[0], 1e-4)
        assert found["counts"]["sharded"] == found["counts"]["parted"]
        assert found["counts"]["parted"] == (counted.passes // 2, counted.blocks // 2)


def grpo(drop: float) -> GrpoPhase:
    sampler = replace(GrpoPhase().sampler, cache=FeatureCacheConfig(sigma_drop=drop))
    return GrpoPhase(sampler=sampler)


def test_objectives_with_a_ratio_of_each_step_refuse_a_cache() -> None:
    assert grpo(0.0) == GrpoPhase()
    with pytest.raises(
        ValueError, match=r"sampler\.cache\.sigma_drop 0\.05: a likelihood ratio .*set it to 0"
    ):
        grpo(0.05)
    with pytest.raises(ValueError, match=r"^grpo: grpo: sampler.cache|^grpo: sampler\.cache"):
        override(AlignConfig(), {"grpo": {"sampler": {"cache": {"sigma_drop": 0.05}}}})
    steps = StochasticSteps(kernel=Kernel(), window=1, first_steps=2)
    sampler = replace(NftPhase().sampler, cache=ALL)
    assert RolloutPlan("old", 1, 1, sampler, 1).sampler.reused_steps == sampler.steps - 2
    with pytest.raises(ValueError, match="a likelihood ratio needs the velocity of every step"):
        RolloutPlan("old", 1, 1, sampler, 1, steps)


@pytest.mark.parametrize("name", ["nft", "awm", "rwr"])
def test_objectives_of_finished_clips_roll_out_with_a_cache(name: str) -> None:
    changed = {"sequence": (name,), name: {"sampler": {"cache": {"sigma_drop": 0.1}}}}
    (objective,) = override(AlignConfig(), changed).objectives()
    plan = objective.rollout()
    assert plan is not None and plan.sampler.reused_steps > 0


def test_settings_name_a_cache_only_where_there_is_one() -> None:
    """Folders, marks and hashes made before there was a cache stay what they are."""
    assert "cache" not in to_json(EXACT) and "cache" not in to_json(AlignConfig())["nft"]["sampler"]
    assert to_json(CACHED)["cache"] == {"sigma_drop": 0.3}
    for config in (EXACT, CACHED):
        assert from_json(SamplerConfig, json.loads(json.dumps(to_json(config)))) == config


def flops_of(work: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def test_a_plan_counts_the_flops_and_memory_of_a_cache() -> None:
    model = debug_model().eval()
    args, shape = model.args, ClipShape(video=12, audio=11, context=9, references=2)
    for config in (EXACT, CACHED, replace(CACHED, cache=ALL, guidance=NO_GUIDANCE)):
        passes = 1 if config.guidance == NO_GUIDANCE else 4
        adapters = (config.steps - config.reused_steps) * passes * adapter_flops(args, shape, 1)
        planned = sampling_flops(args, shape, config, 1) - adapters
        # attention between modalities that are apart is masked here and left out in the plan
        assert flops_of(lambda config=config: sampled(model, config)) == pytest.approx(2 * planned, rel=0.1)
        assert cached_passes(config) == (passes - 1 if config.reused_steps else 0)
    parts = memory_parts(args, shape, Setup(work="generate", base="bf16", cached_passes=3, on_cpu=True))
    assert parts["feature_cache"] == 4 * (12 + 11) * args.width * 2  # the solver's step needs more here
    args = flavor("nava_6b")
    parts = memory_parts(args, shape, Setup(work="generate", base="bf16", cached_passes=3, on_cpu=True))
    assert parts["feature_cache"] == 3 * (12 + 11) * args.width * 2
    assert "feature_cache" not in memory_parts(args, shape, Setup(work="generate", on_cpu=True))


def inputs() -> tuple[Stream, Stream, Conditioning]:
    """Of a clip of the sizes above."""
    everyone, level = torch.ones(1, dtype=torch.bool), torch.full((1, 1), 0.5)
    given = (
        Stream(torch.randn(1, 48, FRAMES, SIDE, SIDE), torch.tensor([FRAMES]), level, 6.0, 6.0),
        Stream(torch.randn(1, 128, TOKENS), torch.tensor([TOKENS]), level, 25.0, 6.0),
        Conditioning(
            torch.randn(1, TEXT, flavor(FLAVOR).text_width),
            torch.ones(1, TEXT, dtype=torch.bool),
            torch.randn(1, 1, 192),
            torch.zeros(1, 1, dtype=torch.int64),
            everyone,
            everyone,
        ),
    )
    cache_flags(*given)
    return given


@pytest.mark.slow
@pytest.mark.parametrize("guidance", [NO_GUIDANCE, SCALES])
def test_the_memory_of_a_cache_is_what_a_run_holds_more(
    guidance: GuidanceScales, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bf16 at the mini's size, attention by the flash kernel as on a GPU; the peak is a computed step in
    the middle, whose features are reused."""
    for name in ("CPU_BF16_SCORES", "CPU_FP32_SCORES"):
        monkeypatch.setattr(scaled_attention, name, 0)
    model = halve(build_model(flavor(FLAVOR)).eval())
    video, audio, text = inputs()
    config = replace(CACHED, steps=8, shift=1.0, guidance=guidance)
    peaks = {}
    for drop in (0.0, 0.2):
        chosen = replace(config, cache=FeatureCacheConfig(sigma_drop=drop))
        with MemoryMeter(tensors_of(model)) as meter:
            sample(model, Latents(video.latents, audio.latents), text, RATES, chosen)
        peaks[drop] = meter.peak
    shape = ClipShape(video=FRAMES * SIDE * SIDE // 4, audio=TOKENS, context=TEXT)
    setup = Setup(work="generate", base="bf16", cached_passes=cached_passes(chosen), on_cpu=True)
    planned = memory_parts(model.args, shape, setup).get("feature_cache", 0.0)
    assert peaks[0.2] - peaks[0.0] == pytest.approx(planned, abs=PRECISION * peaks[0.0])
    assert (planned > 0) == (guidance == SCALES)
