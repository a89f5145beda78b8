import dataclasses
from pathlib import Path

import pytest
import torch
from align_world import config, write_world
from model_cases import debug_model

from finetune.lora import LoraConfig, inject
from finetune.noising import both, streams_at
from finetune.objectives.base import RolloutPlan
from finetune.policy import LoraPolicy
from finetune.prompts import prompts_of_round, read_prompt_set, share
from finetune.recipe import StopConfig
from finetune.rollout import encode_prompts, roll_out, window_starts
from finetune.sde import Kernel, StochasticSteps, replay
from finetune.types import Role, Rollout
from pretrain.codecs.base import Codecs, EncodedText
from pretrain.codecs.load import load_codecs
from pretrain.generation.conditions import reference_voices
from pretrain.types import Velocity

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def codecs(world) -> Codecs:
    return load_codecs(world / "codec")


@pytest.fixture(scope="module")
def policy() -> LoraPolicy:
    made = LoraPolicy(inject(debug_model(), LoraConfig(rank=2, alpha=4)))
    for value in made.adapters["default"].values():
        torch.nn.init.normal_(value, std=0.05, generator=torch.Generator().manual_seed(1))
    return made


def asked(world: Path, codecs: Codecs, places: list[int], clips: int = 3):
    everything = read_prompt_set(world / "prompts.jsonl", config(stop=StopConfig(prompts=0)))
    rows = sorted(everything.train[0], key=lambda row: row.line)
    voices = reference_voices(rows, world / "prompts.jsonl", codecs)
    return encode_prompts([rows[place] for place in places], clips, codecs, voices, config())


def rolled(
    policy,
    given,
    batch: int = 8,
    role: Role = "default",
    stochastic: StochasticSteps | None = None,
    key=(0, 1),
) -> Rollout:
    plan = RolloutPlan(role, len(given.rows), 3, config().phases["nft"].sampler, batch, stochastic)
    return roll_out(policy, plan, given, key, CPU)


def steps_of(window: int = 1, first_steps: int = 2, **kernel) -> StochasticSteps:
    return StochasticSteps(kernel=Kernel(**kernel), window=window, first_steps=first_steps)


class CountingText:
    """Counts what is encoded."""

    def __init__(self, codecs: Codecs) -> None:
        self.inner, self.width, self.encoded = codecs.text, codecs.text.width, 0

    def encode(self, prompts) -> EncodedText:
        self.encoded += len(prompts)
        return self.inner.encode(prompts)


def test_each_prompt_is_encoded_once_for_all_its_clips(world, codecs):
    text = CountingText(codecs)
    given = asked(world, dataclasses.replace(codecs, text=text), [0, 1], clips=5)
    assert text.encoded == 2
    assert given.conditioning.text.shape[0] == len(given.groups) == len(given.sample_ids) == 10
    assert torch.equal(given.conditioning.text[0], given.conditioning.text[4])
    assert given.groups[:5].unique().numel() == 1 and given.groups.unique().numel() == 2
    assert (
        given.sample_ids.unique().numel() == 10
        and given.groups.dtype == given.sample_ids.dtype == torch.int64
    )
    assert bool((given.conditioning.speakers[5:] != 0).any()) and not bool(
        (given.conditioning.speakers[:5] != 0).any()
    )


def test_a_clip_is_the_same_in_any_batch_beside_any_prompt(world, codecs, policy):
    alone, together = (
        rolled(policy, asked(world, codecs, [2])),
        rolled(policy, asked(world, codecs, [0, 2, 4]), batch=4),
    )
    torch.testing.assert_close(together.video[3:6], alone.video, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together.audio[3:6], alone.audio, rtol=1e-4, atol=1e-5)
    assert alone.video.shape == (3, 48, 2, 2, 2) and alone.audio.shape == (3, 128, 5)
    assert not torch.allclose(alone.video[0], alone.video[1])
    other = rolled(policy, asked(world, codecs, [2]), key=(0, 2))
    assert not torch.allclose(alone.video, other.video)


def test_the_role_that_rolls_out_makes_the_clips(world, codecs, policy):
    given = asked(world, codecs, [0], clips=1)
    roles: tuple[Role, ...] = ("default", "old", "reference")
    default, old, reference = (rolled(policy, given, role=role) for role in roles)
    torch.testing.assert_close(old.audio, reference.audio)  # B of `old` is zero
    assert not torch.allclose(default.audio, old.audio, atol=1e-4)


def test_a_group_shares_its_window_and_groups_differ(world, codecs, policy):
    given = asked(world, codecs, list(range(8)), clips=2)
    starts = window_starts(given.groups, steps_of(first_steps=3), (0, 1))
    assert torch.equal(starts[0::2], starts[1::2])
    assert set(starts.tolist()) == {0, 1, 2}
    assert not torch.equal(starts, window_starts(given.groups, steps_of(first_steps=3), (0, 2)))


@pytest.mark.parametrize("kernel", ["cps", "flow_sde"])
def test_stored_steps_replay_with_ratio_one(world, codecs, policy, kernel):
    clips = rolled(policy, asked(world, codecs, [0, 1, 2]), stochastic=steps_of(2, 3, name=kernel))
    steps = clips.trajectory
    assert (
        steps is not None and steps.video.shape == (9, 2, 48, 2, 2, 2) and steps.levels.dtype == torch.float64
    )
    for index in range(2):
        states = streams_at(steps.video[:, index], steps.audio[:, index], steps.levels[:, index], clips.rates)
        answer = both(policy.velocity("default", *states, clips.conditioning))
        for name, velocity in zip(("video", "audio"), answer, strict=True):
            state, after = getattr(steps, name)[:, index], getattr(steps, f"next_{name}")[:, index]
            again = replay(
                Kernel(name=kernel),
                state,
                velocity,
                steps.levels[:, index],
                steps.next_levels[:, index],
                after,
            )
            torch.testing.assert_close(again, getattr(steps, f"log_prob_{name}")[:, index], rtol=0, atol=1e-5)


def test_the_second_stored_state_is_where_the_first_step_led(world, codecs, policy):
    steps = rolled(policy, asked(world, codecs, [0, 1]), stochastic=steps_of(2, 3)).trajectory
    assert steps is not None
    assert torch.equal(steps.next_video[:, 0], steps.video[:, 1]) and torch.equal(
        steps.next_audio[:, 0], steps.audio[:, 1]
    )
    assert torch.equal(steps.next_levels[:, 0], steps.levels[:, 1])


def test_rounds_walk_through_all_prompts_and_leave_the_held_out(world):
    made = config()
    prompts = read_prompt_set(world / "prompts.jsonl", made)
    held_out = {row.data_id for row in prompts.held_out}
    assert len(held_out) == 2
    rounds = [[row.data_id for row in prompts_of_round(prompts, made, 4, index)] for index in range(6)]
    assert all(len(set(names)) == 4 and not held_out & set(names) for names in rounds)
    assert all(
        len({*rounds[index], *rounds[index + 1]}) == 8 for index in (0, 2, 4)
    )  # each pass takes every prompt once
    assert rounds[0] != rounds[2] and rounds[:2] == [
        [row.data_id for row in prompts_of_round(prompts, made, 4, index)] for index in (0, 1)
    ]


def test_shares_of_ranks_are_equal_and_whole(world):
    made = config()
    rows = prompts_of_round(read_prompt_set(world / "prompts.jsonl", made), made, 4, 0)
    assert share(rows, 0, 2) + share(rows, 1, 2) == rows
    with pytest.raises(ValueError, match="4 prompts do not divide over 3 ranks"):
        share(rows, 0, 3)


def test_noise_is_standard_normal_and_of_the_clip(world, codecs):
    given = asked(world, codecs, [0, 1], clips=4)

    class Still:
        """Leaves the noise as it is."""

        def guided(self, role, video, audio, conditioning, scales, voiced=None) -> Velocity:
            return Velocity(torch.zeros_like(video.latents), torch.zeros_like(audio.latents))

    clips = rolled(Still(), given, batch=3)  # type: ignore[arg-type]
    assert abs(float(clips.audio.std()) - 1) < 0.05 and abs(float(clips.audio.mean())) < 0.05
    assert len({value.sum().item() for value in clips.audio}) == 8
