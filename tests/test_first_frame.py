"""A given first frame stays clean in rollouts, and nothing is learned from it."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from align_world import config, write_mixed, write_world
from alignment_cases import KEY, FreePolicy, advantage, rollout, scored
from hypothesis import given, settings
from hypothesis import strategies as st
from model_cases import debug_model

from experiments.scoring.latents import AlignScorer
from finetune.gsb.votes import AXES
from finetune.lora import LoraConfig, inject
from finetune.noising import Levels, draw, noised, streams_at, velocities
from finetune.objectives import grpo, gsb_dpo, nft, rwr
from finetune.objectives.base import RolloutPlan
from finetune.policy import LoraPolicy
from finetune.prompts import read_prompt_set, voices_of
from finetune.recipe import StopConfig
from finetune.rollout import PromptBatch, encode_prompts, roll_out
from finetune.sde import Kernel, KernelName, StochasticSteps, normalised_log_ratio, replay, step
from finetune.types import ObjectiveLoss, PreferencePairs, Rollout, Trajectory, joined, take
from pretrain.clip_kind import kind_of
from pretrain.codecs.base import Codecs
from pretrain.codecs.load import load_codecs
from pretrain.first_frames import encode_first_frames, read_first_frames
from pretrain.flow.guidance import GuidanceScales
from pretrain.flow.path import velocity_target
from pretrain.flow.solvers import Latents, SolverName
from pretrain.prompt import read_prompts
from pretrain.randomness import generator_for
from pretrain.sampling import SamplerConfig, sample
from pretrain.types import Velocity

CPU = torch.device("cpu")
GIVEN = torch.tensor([True, False, True, False])
SHAPE = (3, 4, 2, 2)
LEVELS = Levels(shift=5.0)
KERNELS: list[KernelName] = ["cps", "flow_sde"]


def clips(first_id: int = 100, seed: int = 0) -> Rollout:
    """Four clips, of which the first and the third have a given first frame, the same for every seed."""
    made = rollout(video=SHAPE, seed=seed, first_id=first_id)
    video = made.video.clone()
    video[:, :, 0] = rollout(video=SHAPE, seed=99).video[:, :, 0]
    return dataclasses.replace(made, video=video, first_frame=GIVEN)


def trajectory(kernel: Kernel) -> Rollout:
    made = clips()
    levels = torch.tensor([[0.9, 0.6]], dtype=torch.float64).expand(4, -1)
    states, steps = made.video, []
    for index in range(2):
        now, then = levels[:, index], levels[:, index] - 0.3
        drawn = torch.randn(states.shape, generator=generator_for("step", index), dtype=states.dtype)
        steps.append((states, step(kernel, states, 0.1 * states, now, then, drawn, GIVEN)))
        states = steps[-1][1].next_state
    audio = torch.stack([made.audio, made.audio], 1)
    of_audio = replay(kernel, audio[:, 0], audio[:, 0], levels[:, 0], levels[:, 1], audio[:, 0])
    return dataclasses.replace(
        made,
        trajectory=Trajectory(
            kernel=kernel,
            video=torch.stack([state for state, _ in steps], 1),
            audio=audio,
            next_video=torch.stack([taken.next_state for _, taken in steps], 1),
            next_audio=audio,
            levels=levels,
            next_levels=levels - 0.3,
            log_prob_video=torch.stack([taken.log_prob for _, taken in steps], 1),
            log_prob_audio=torch.stack([of_audio, of_audio], 1),
        ),
    )


ADVANTAGE = advantage([1.0, -1.0, 0.5, -0.5], [1.0, -1.0, 0.5, -0.5])


def of_nft(policy: FreePolicy) -> ObjectiveLoss:
    return nft.loss(policy, scored(clips(), ADVANTAGE), nft.NftConfig(levels=LEVELS), KEY)


def of_rwr(policy: FreePolicy) -> ObjectiveLoss:
    weights = dataclasses.replace(advantage([1.0, 2.0, 1.0, 2.0], [1.0] * 4), are_weights=True)
    return rwr.loss(policy, scored(clips(), weights), rwr.RwrConfig(levels=LEVELS), KEY)


def of_grpo(policy: FreePolicy) -> ObjectiveLoss:
    made = grpo.GrpoConfig(clip_range=10.0)
    return grpo.loss(policy, scored(trajectory(Kernel()), ADVANTAGE), made, KEY)


def of_dpo(policy: FreePolicy) -> ObjectiveLoss:
    labels = torch.tensor([1, -1, 1, -1], dtype=torch.int8)[:, None].expand(-1, len(AXES))
    pairs = PreferencePairs(clips(), clips(200, seed=3), labels)
    made = gsb_dpo.GsbDpoConfig(levels=LEVELS, reference_weight=0.5, beta=1.0)
    return gsb_dpo.loss(policy, pairs, made, KEY)


def answers(rows: int, at_first: float) -> dict[str, Velocity]:
    found = {}
    for seed, role in enumerate(("default", "old", "reference")):
        generator = torch.Generator().manual_seed(seed)
        video = torch.randn(rows, *SHAPE, generator=generator, dtype=torch.float64)
        audio = torch.randn(rows, 1, 1, generator=generator, dtype=torch.float64)
        video[GIVEN.repeat(rows // 4), :, 0] = at_first * (seed + 1)
        found[role] = Velocity(video.requires_grad_(role == "default"), audio)
    return found


@pytest.mark.parametrize(("loss", "rows"), [(of_nft, 4), (of_rwr, 4), (of_grpo, 4), (of_dpo, 8)])
@given(at_first=st.floats(-1e3, 1e3))
@settings(max_examples=10, deadline=None)
def test_no_loss_and_no_gradient_comes_from_a_given_first_frame(
    loss: Callable[[FreePolicy], ObjectiveLoss], rows: int, at_first: float
) -> None:
    plain, moved = answers(rows, 0.0), answers(rows, at_first)
    expected, found = loss(FreePolicy(**plain)), loss(FreePolicy(**moved))
    torch.testing.assert_close(found.loss, expected.loss, rtol=0, atol=0)
    for name, value in expected.metrics.items():
        assert torch.equal(found.metrics[name], value), name
    found.loss.backward()
    gradient = moved["default"].video.grad  # type: ignore[union-attr]
    assert gradient is not None
    held = GIVEN.repeat(rows // 4)
    assert not bool(gradient[held, :, 0].any())
    assert bool((gradient[~held, :, 0] != 0).all()) and bool((gradient[held, :, 1:] != 0).all())


def test_a_given_first_frame_is_clean_at_sigma_zero_with_no_target() -> None:
    made = clips()
    drawn = draw(made, LEVELS, KEY)
    video, audio = noised(made, drawn)
    assert torch.equal(video.latents[GIVEN, :, 0], made.video[GIVEN, :, 0])
    assert not bool(velocity_target(made.video, drawn.video)[GIVEN, :, 0].any())
    assert bool((video.latents[~GIVEN, :, 0] != made.video[~GIVEN, :, 0]).all())
    expected = drawn.levels[:, None].repeat(1, 4)
    expected[GIVEN, 0] = 0
    assert torch.equal(video.sigma, expected) and torch.equal(audio.sigma, drawn.levels[:, None])


def test_clips_without_first_frames_are_noised_as_before() -> None:
    made = rollout(video=SHAPE)
    drawn = draw(made, LEVELS, KEY)
    noises = [torch.randn(SHAPE, generator=generator_for(*KEY, 100 + row, "video")) for row in range(4)]
    assert torch.equal(drawn.video, torch.stack(noises).to(made.video))
    assert noised(made, drawn)[0].sigma.shape == (4, 1) and made.given is None


def test_flags_follow_the_rows() -> None:
    made = clips()
    assert take(made, torch.tensor([2, 1])).first_frame.tolist() == [True, False]
    parts = [take(made, rows) for rows in torch.arange(4).split(3)]
    assert torch.equal(joined(parts).first_frame, GIVEN) and torch.equal(made.to(CPU).first_frame, GIVEN)
    with pytest.raises(ValueError, match="one row per clip"):
        dataclasses.replace(made, first_frame=GIVEN[:2])
    labels = torch.ones(4, len(AXES), dtype=torch.int8)
    with pytest.raises(ValueError, match="only one clip of a pair has a given first frame"):
        PreferencePairs(made, dataclasses.replace(made, first_frame=~GIVEN), labels)


@pytest.mark.parametrize("name", KERNELS)
def test_log_probs_of_steps_are_means_over_the_frames_that_move(name: KernelName) -> None:
    made = clips()
    now, then = torch.full((4,), 0.8, dtype=torch.float64), torch.full((4,), 0.5, dtype=torch.float64)
    velocity, drawn = (torch.randn(made.video.shape, dtype=torch.float64) for _ in range(2))
    kernel = Kernel(name=name)
    taken = step(kernel, made.video, velocity, now, then, drawn, GIVEN)
    assert torch.equal(taken.next_state[GIVEN, :, 0], made.video[GIVEN, :, 0])
    short, rest = (
        step(kernel, made.video[rows][:, :, start:], velocity[rows][:, :, start:], now[rows], then[rows],
             drawn[rows][:, :, start:])
        for rows, start in ((GIVEN, 1), (~GIVEN, 0))
    )  # fmt: skip
    torch.testing.assert_close(taken.next_state[GIVEN][:, :, 1:], short.next_state)
    torch.testing.assert_close(taken.next_state[~GIVEN], rest.next_state)
    torch.testing.assert_close(taken.log_prob[GIVEN], short.log_prob)
    torch.testing.assert_close(taken.log_prob[~GIVEN], rest.log_prob)
    again = replay(kernel, made.video, velocity, now, then, taken.next_state, GIVEN)
    assert torch.equal(again, taken.log_prob)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return write_mixed(write_world(tmp_path_factory.mktemp("world")))


@pytest.fixture(scope="module")
def codecs(world) -> Codecs:
    return load_codecs(world / "codec")


@pytest.fixture(scope="module")
def policy() -> LoraPolicy:
    made = LoraPolicy(inject(debug_model(), LoraConfig(rank=2, alpha=4)))
    for value in made.adapters["default"].values():
        torch.nn.init.normal_(value, std=0.05, generator=torch.Generator().manual_seed(1))
    return made


def asked(world: Path, codecs: Codecs) -> PromptBatch:
    """Three prompts with first frames, two clips each."""
    found = read_prompt_set(world / "mixed.jsonl", config(stop=StopConfig(prompts=0)))
    (some,) = (rows for rows in found.train if kind_of(rows[0], config()).first_frame)
    rows = sorted(some, key=lambda row: row.line)[:3]
    return encode_prompts(rows, 2, codecs, voices_of(rows, codecs), config(), read_first_frames(rows))


@pytest.mark.parametrize("solver", ["euler", "unipc"])
def test_rollouts_are_those_of_generation(world, codecs, policy, solver: SolverName) -> None:
    made, sampler = asked(world, codecs), SamplerConfig(solver=solver, steps=4, guidance=GuidanceScales())
    found = roll_out(policy, RolloutPlan("reference", 3, 2, sampler, 4), made, (0, 1), CPU)
    noise = Latents(
        *(
            torch.stack(
                [
                    torch.randn(shape, generator=generator_for(0, 1, sample, name))
                    for sample in made.sample_ids.tolist()
                ]
            )
            for name, shape in (("video", made.video_shape), ("audio", made.audio_shape))
        )
    )
    frames = encode_first_frames(made.rows, read_first_frames(made.rows), codecs)
    assert frames is not None
    expected = sample(
        debug_model(), noise, made.conditioning, made.rates, sampler, frames.repeat_interleave(2, 0)
    )
    assert expected.video is not None and expected.audio is not None
    torch.testing.assert_close(found.video, expected.video, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.audio, expected.audio, rtol=1e-4, atol=1e-5)
    assert torch.equal(found.video[:, :, :1], frames.repeat_interleave(2, 0))
    assert bool(found.first_frame.all()) and not torch.equal(found.video[0, :, 1], found.video[1, :, 1])


@pytest.mark.parametrize("name", KERNELS)
def test_stochastic_rollouts_keep_the_frame_and_replay_with_ratio_one(world, codecs, policy, name) -> None:
    made = asked(world, codecs)
    stochastic = StochasticSteps(kernel=Kernel(name=name), window=2, first_steps=3)
    plan = RolloutPlan("default", 3, 2, config().phases["nft"].sampler, 4, stochastic)
    found = roll_out(policy, plan, made, (0, 1), CPU)
    steps, frames = found.trajectory, made.first_frames
    assert steps is not None and frames is not None and torch.equal(found.video[:, :, :1], frames)
    for index in range(2):
        state, after = steps.video[:, index], steps.next_video[:, index]
        assert torch.equal(state[:, :, :1], frames) and torch.equal(after[:, :, :1], frames)
        now, then = steps.levels[:, index], steps.next_levels[:, index]
        streams = streams_at(state, steps.audio[:, index], now, found.rates, found.given)
        video = velocities(policy, "default", streams, found.conditioning)[0]
        again = replay(steps.kernel, state, video, now, then, after, found.given)
        torch.testing.assert_close(again, steps.log_prob_video[:, index], rtol=0, atol=1e-5)


def test_prompts_of_several_kinds_are_not_rolled_out_together(world, codecs) -> None:
    rows = [
        some[0] for some in read_prompt_set(world / "mixed.jsonl", config(stop=StopConfig(prompts=0))).train
    ]
    with pytest.raises(ValueError, match="prompts of one kind are rolled out together, got"):
        encode_prompts(rows, 2, codecs, voices_of(rows, codecs), config(), read_first_frames(rows))


def test_rewards_see_the_first_frame_that_a_clip_was_asked_for(world, codecs) -> None:
    made = asked(world, codecs)
    plain = read_prompts(world / "mixed.jsonl")[0]
    frame = codecs.video.encode(torch.stack(list(read_first_frames(made.rows).values()))[:1])
    video = frame.expand(-1, -1, 2, -1, -1).repeat(3, 1, 1, 1, 1)
    scorer = AlignScorer(str(world / "codec"), {"identity_colour_edge": 1.0}, {})
    rows = [made.rows[0], made.rows[1], plain]
    found = scorer.score(video, torch.randn(3, 128, 5), rows).values["identity_colour_edge"].tolist()
    assert found[0] > 0.7 and found[0] > found[1] + 0.1 and math.isnan(found[2])


@pytest.mark.parametrize("name", KERNELS)
def test_normalised_log_ratios_count_the_frames_that_move(name: KernelName) -> None:
    """They equal those of the moving frames alone, and no gradient reaches the given one."""
    made, kernel = clips(), Kernel(name=name)
    now, then = torch.full((4,), 0.8, dtype=torch.float64), torch.full((4,), 0.5, dtype=torch.float64)
    state = made.video.double()
    old, new, noise = (torch.randn(state.shape, dtype=torch.float64) for _ in range(3))
    new.requires_grad_()
    given = torch.ones(4, dtype=torch.bool)
    reached = step(kernel, state, old, now, then, noise, given).next_state
    found = normalised_log_ratio(kernel, state, new, old, now, then, reached, given)
    rest = normalised_log_ratio(
        kernel, state[:, :, 1:], new[:, :, 1:], old[:, :, 1:], now, then, reached[:, :, 1:]
    )
    assert torch.allclose(found, rest, atol=1e-12)
    (gradient,) = torch.autograd.grad(found.sum(), new)
    assert not gradient[:, :, 0].any() and bool(gradient[:, :, 1:].any())
