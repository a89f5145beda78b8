"""`nava plan --align`: closed forms, torch's own counters on debug models, each objective's real passes."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from align_world import config
from alignment_cases import KEY, GainPolicy, advantage, rollout, scored, with_trajectory
from hypothesis import given, settings
from hypothesis import strategies as st
from model_cases import audio_stream, conditioning, video_stream
from plan_networks import count_by_hand
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from experiments.alignment.networks import (
    ClipMedia,
    _counted_decode,
    _decode_cost,
    network_cost,
    reward_cost,
)
from experiments.alignment.round_plan import FP32_SHARE, plan_alignment
from experiments.cli import main
from experiments.recipes.load import load_recipe
from finetune.gsb.votes import AXES
from finetune.lora import LoraConfig, inject
from finetune.objectives.grpo import GrpoPhase
from finetune.plan_round import (
    clip_of,
    passes_of_step,
    round_memory,
    round_work,
    sampling_flops,
    update_flops,
)
from finetune.policy import LoraPolicy
from finetune.types import FIRST, PreferencePairs
from pretrain.flow.guidance import NO_GUIDANCE, GuidanceScales
from pretrain.model.args import ModelArgs
from pretrain.model.flavors import build_model, flavor
from pretrain.model.flops import ClipShape, adapter_flops, forward_flops
from pretrain.sampling import SamplerConfig

RECIPE = load_recipe("nava_6b")
ARGS = flavor(RECIPE.pretrain.flavor)
DEEP = replace(flavor("debug"), num_alignment_blocks=3, num_fusion_blocks=3)  # so that ends weigh little
SHAPE = ClipShape(video=12, audio=10, context=9, references=2)


def policy(args: ModelArgs = DEEP, rank: int = 4) -> LoraPolicy:
    model = build_model(args)
    model.init_weights()
    return LoraPolicy(inject(model, LoraConfig(rank=rank, alpha=2 * rank)))


def inputs() -> tuple[Any, Any, Any]:
    return video_stream(frames=3), audio_stream(tokens=10), conditioning(tokens=9, references=2)


def test_an_adapters_flops_are_torchs_own():
    made, batch = policy(), 2
    with FlopCounterMode(display=False) as with_adapter, torch.no_grad():
        made.velocity("old", *inputs())
    with FlopCounterMode(display=False) as without, torch.no_grad():
        made.velocity("reference", *inputs())
    assert without.get_total_flops() == batch * forward_flops(DEEP, SHAPE)
    added = with_adapter.get_total_flops() - without.get_total_flops()
    assert added == batch * adapter_flops(DEEP, SHAPE, 4)
    with pytest.raises(ValueError, match="paradigm nava, not unified"):
        adapter_flops(flavor("debug_unified"), SHAPE, 4)


def test_a_step_of_learning_costs_what_is_planned_to_ten_percent():
    """A pass of `old`, one of the reference, one with gradient and its backward pass: as nft's."""
    made, batch = policy(), 2
    with FlopCounterMode(display=False) as counter:
        for role in ("old", "reference"):
            made.velocity(role, *inputs())
        now = made.velocity("default", *inputs())
        torch.stack([part.square().sum() for part in now if part is not None]).sum().backward()
    nft = config(("nft",)).objectives()[0]
    planned = batch * update_flops(DEEP, SHAPE, nft, "none", 4)
    assert counter.get_total_flops() == pytest.approx(planned, rel=0.1)


def test_a_guided_rollout_costs_what_is_planned():
    made, batch = policy(), 2
    scales = GuidanceScales()
    with FlopCounterMode(display=False) as counter:
        made.guided("old", *inputs(), scales, voiced=True)
    sampler = SamplerConfig(solver="euler", steps=1, guidance=scales)
    assert passes_of_step(sampler) == [True, True, False, True]
    assert passes_of_step(sampler, voiced=False) == [True, True, False]
    assert passes_of_step(replace(sampler, guidance=NO_GUIDANCE)) == [True]
    planned = batch * sampling_flops(DEEP, SHAPE, sampler, 4)
    assert counter.get_total_flops() == pytest.approx(planned, rel=0.1)
    assert sampling_flops(DEEP, SHAPE, replace(sampler, steps=7), 4) == 7 * planned // batch


class Counting(GainPolicy):
    """Counts the clips that each role is asked about."""

    def __init__(self) -> None:
        super().__init__((0.3, 0.3))
        self.clips: Counter[str] = Counter()

    def velocity(self, role: Any, video: Any, audio: Any, conditioning: Any) -> Any:
        self.clips[role] += len(video.latents)
        return super().velocity(role, video, audio, conditioning)


def learned(objective: Any, steps: int, clips: int = 4) -> Counter[str]:
    """Clips that each role was asked about in the optimizer steps of a round, of `clips` each."""
    policy, phase = Counting(), objective.phase
    made = rollout(clips)
    if isinstance(phase, GrpoPhase):
        made = with_trajectory(made, policy, phase.kernel, (0.9, 0.7, 0.4)[: phase.window + 1])
        policy.clips.clear()
    weights = advantage([1.0, -1.0, 0.5, -0.5], [1.0, -1.0, 0.5, -0.5], are_weights=objective.name == "rwr")
    pairs = PreferencePairs(made, made, torch.full((clips, len(AXES)), FIRST, dtype=torch.int8))
    for index in range(steps):
        batch = pairs if objective.needs_pairs else scored(made, weights, on_policy=not index)
        objective.config = phase.objective  # as of votes, where pairs are read
        objective.loss(policy, batch, KEY)
    return policy.clips


@pytest.mark.parametrize("name", ["nft", "awm", "rwr", "grpo", "gsb_dpo"])
@pytest.mark.parametrize("reference_weight", [0.0, 0.1])
def test_every_objective_makes_the_passes_it_says(name: str, reference_weight: float) -> None:
    made = config((name,))
    phase: Any = made.phases[name]
    changed = replace(phase, objective=replace(phase.objective, reference_weight=reference_weight))
    objective = replace(made, phases={**made.phases, name: changed}).objectives()[0]
    steps = phase.epochs * phase.steps_per_epoch
    asked, clips = learned(objective, steps), 4 * steps * (2 if objective.needs_pairs else 1)
    passes = objective.passes()
    assert asked["default"] == pytest.approx(passes.trained * clips)
    assert asked["old"] + asked["reference"] == pytest.approx(passes.frozen * clips)


def test_the_work_of_a_round_in_closed_form():
    align = RECIPE.alignment
    nft = align.objectives()[0]
    work, clip = round_work(align, ARGS, nft), clip_of(align, ARGS)
    assert (clip.video, clip.audio) == (31 * 15 * 26, 126)
    assert work.clips == 512 and work.held_out_clips == pytest.approx(64 / 5)
    one = forward_flops(ARGS, clip) + adapter_flops(ARGS, clip, 64)
    assert work.rollout_flops == 512 * 20 * one
    passes = passes_of_step(align.deployed)
    deployed = sum(forward_flops(ARGS, replace(clip, joined=joined)) for joined in passes)
    deployed += len(passes) * adapter_flops(ARGS, clip, 64)
    assert work.held_out_flops == pytest.approx(64 / 5 * align.deployed.steps * deployed)
    assert work.update_flops == pytest.approx(512 * update_flops(ARGS, clip, nft, "full", 64))
    # two passes without gradient, one with and its recomputation, and a backward pass of one for the inputs
    # of the maps and two for attention
    assert 5.0 < work.update_flops / 512 / one < 5.5


@pytest.fixture
def tiny_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Costs that can be counted by hand in place of the published networks'."""
    count_by_hand(monkeypatch)


def planned(gpus: int = 64, *settings_of: str, **changes: Any) -> dict[str, Any]:
    recipe = load_recipe("nava_6b", None, settings_of)
    return plan_alignment(recipe.alignment, ARGS, gpus, **changes)


def test_seconds_and_cost_of_a_round_in_closed_form(tiny_networks):
    found = planned(mfu=0.5, peak_tflops=1000.0, price=3.6, seconds_per_clip={"syncnet": 0.25})
    phase = found["phases"]["nft"]
    work = round_work(RECIPE.alignment, ARGS, RECIPE.alignment.objectives()[0])
    rate, clips = 64 * 0.5 * 1000e12, 512 + 64 / 5
    parts = {name: part["seconds"] for name, part in phase["parts"].items()}
    assert parts["rollout"] == pytest.approx(work.rollout_flops / rate)
    assert parts["held_out"] == pytest.approx(work.held_out_flops / rate)
    assert parts["update"] == pytest.approx(work.update_flops / rate)
    assert parts["reward wer_whisper"] == pytest.approx(clips * 1e12 / FP32_SHARE / rate)
    assert parts["reward syncnet"] == pytest.approx(clips * 0.25 / 64)
    assert phase["round"]["seconds"] == pytest.approx(sum(parts.values()))
    assert phase["round"]["cost"] == pytest.approx(sum(parts.values()) * 64 / 3600 * 3.6)
    assert sum(part["cost"] for part in phase["parts"].values()) == pytest.approx(phase["round"]["cost"])
    assert sum(part["share"] for part in phase["parts"].values()) == pytest.approx(1.0)
    assert phase["phase"]["gpu_hours"] == pytest.approx(60 * phase["round"]["gpu_hours"])


@settings(max_examples=10, deadline=None)
@given(gpus=st.sampled_from([8, 16]), factor=st.sampled_from([2, 4]))
def test_more_gpus_take_less_time_and_as_many_gpu_hours(gpus: int, factor: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        count_by_hand(patch)
        few, many = (planned(count)["phases"]["nft"]["round"] for count in (gpus, gpus * factor))
    assert many["seconds"] == pytest.approx(few["seconds"] / factor)
    assert many["gpu_hours"] == pytest.approx(few["gpu_hours"])


def test_memory_of_a_round_has_every_part_and_shrinks_with_the_base(tiny_networks):
    found = planned()["phases"]["nft"]["memory_per_gpu_gib"]
    assert set(found) == {
        "rollout",
        "encode texts",
        "decode",
        "update",
        *(f"reward {name}" for name in RECIPE.alignment.rubric.weights()),
    }
    smaller = planned(64, "align.lora.base=int8")["phases"]["nft"]["memory_per_gpu_gib"]
    assert all(smaller[name] < found[name] for name in found)
    eight = planned(64, "align.moments=8bit")["phases"]["nft"]["memory_per_gpu_gib"]
    assert all(eight[name] < found[name] for name in ("rollout", "update"))
    larger = planned(64, "align.num_frames=145", "align.height=704", "align.width=1280")
    assert larger["phases"]["nft"]["memory_per_gpu_gib"]["update"] > found["update"]
    shared = planned(64, "align.parallel.context=2")["phases"]["nft"]["memory_per_gpu_gib"]
    assert shared["update"] < found["update"] and shared["rollout"] < found["rollout"]


def test_memory_counts_two_clips_of_a_pair():
    dpo = load_recipe("nava_6b", None, ["align.sequence=[gsb_dpo]"]).alignment
    nft = RECIPE.alignment
    pair, clip = (round_memory(each, ARGS, each.objectives()[0], 64)["update"] for each in (dpo, nft))
    assert pair["activations_kept"] == pytest.approx(2 * clip["activations_kept"])


def test_what_is_not_counted_is_said(tiny_networks):
    words = "align.rubric.audio={wer_endpoint: 1.0}"
    found = planned(64, words)
    assert found["not_counted"] == ["wer_endpoint"]
    measured = planned(64, words, seconds_per_clip={"wer_endpoint": 2.0})
    assert measured["not_counted"] == []
    assert measured["phases"]["nft"]["parts"]["reward wer_endpoint"]["seconds"] == pytest.approx(
        2.0 * (512 + 64 / 5) / 64
    )


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["--gpus", "48"], "prompts_per_round 64 does not divide into 48"),
        (["--gpus", "64", "--context", "5"], "parallel.context 5 does not divide 64 ranks"),
        (["--gpus", "64", "--height", "470"], "multiple of 32"),
        (["--seconds-per-clip", "sincnet=1"], "did you mean 'syncnet'"),
        (["--seconds-per-clip", "syncnet=fast"], "expected NAME=SECONDS"),
        (["--price", "-1"], "--price must not be negative"),
        (["--mfu", "2"], "mfu must be in"),
    ],
)
def test_the_verb_refuses_what_cannot_be(tiny_networks, capsys, asked, message):
    with pytest.raises(SystemExit) as ended:
        main(["plan", "nava_6b", "--align", *asked])
    told = capsys.readouterr().err
    assert ended.value.code == 2 and message in told and told.count("\n") == 1


def test_the_verb_refuses_a_flavor_and_seconds_without_a_round(capsys):
    for asked, message in (
        (["plan", "debug", "--align"], "give a recipe"),
        (["plan", "nava_6b", "--seconds-per-clip", "syncnet=1"], "belongs to --align"),
    ):
        with pytest.raises(SystemExit):
            main(asked)
        assert message in capsys.readouterr().err


def test_the_verb_prints_a_page_and_the_same_as_json(tiny_networks, capsys):
    asked = ["plan", "nava_6b", "--align", "--gpus", "64", "--price", "2.5"]
    assert main(asked) == 0
    page = capsys.readouterr().out
    for words in ("a round of nft on 64 GPUs", "reward syncnet", "held out", "update", "Assumptions:"):
        assert words in page
    assert main([*asked, "--json", "--frames", "25"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["clip"]["frames"] == 25 and not math.isnan(found["phases"]["nft"]["round"]["seconds"])


def test_a_network_without_weights_costs_what_the_same_one_costs_with_them():
    """Parameters, FLOPs and peak on the meta device, against a run on the CPU."""
    from pretrain.memory_meter import MemoryMeter

    def built() -> nn.Module:
        return nn.Sequential(nn.Conv1d(4, 64, 9), nn.GELU(), nn.Conv1d(64, 8, 9)).eval()

    with torch.device("meta"):
        made = built()
        sound = torch.empty(2, 4, 5000)
    found = network_cost(made, lambda: made(sound))
    real = built()
    weights = sum(parameter.nbytes for parameter in real.parameters())
    given_sound = torch.randn(2, 4, 5000)
    with torch.no_grad(), MemoryMeter(real.parameters()) as meter, FlopCounterMode(display=False) as counter:
        real(given_sound)
    assert found.flops == counter.get_total_flops() and found.weights == weights
    assert found.peak == pytest.approx(meter.peak - weights, rel=0.1)
    assert found.parameters == 4 * 64 * 9 + 64 + 64 * 8 * 9 + 8


@pytest.mark.slow
def test_a_longer_clip_is_decoded_at_the_same_cost_for_each_further_frame():
    whole = _counted_decode(7, 2, 2)
    found = _decode_cost(7, 2, 2)
    assert replace(found, peak=whole.peak) == whole
    assert found.peak == pytest.approx(whole.peak, rel=0.02)  # the meter looks at steps of half a percent
    assert whole.parameters == 704_688_668  # the published VAE's


@pytest.mark.slow
def test_published_recognisers_have_their_published_sizes():
    media = ClipMedia(121, 480, 832, 24.0)
    sizes = {"wer_whisper": 1.543e9, "sim_wavlm_ecapa": 0.324e9, "clap_text_cosine": 0.153e9}
    for name, parameters in sizes.items():
        cost = reward_cost(name, media)
        assert cost is not None and cost.parameters == pytest.approx(parameters, rel=0.01)
        assert cost.flops > 0 and cost.peak > 0
    assert reward_cost("wer_endpoint", media) is None
