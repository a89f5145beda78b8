"""Advantage Weighted Matching: its identities in closed form, the clip, the regularisers,
weights at 300:1."""

from dataclasses import replace

import pytest
import torch
from alignment_cases import KEY, GainPolicy, advantage, assert_parts_add_up, rollout, scored
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from finetune.noising import Levels, draw, mean_square, noised
from finetune.objectives.awm import Awm, AwmConfig, AwmPhase, count, loss, matching_error
from finetune.objectives.rwr import RwrConfig, group_weights
from pretrain.flow.path import velocity_target
from pretrain.sampling import SamplerConfig

LEVELS = Levels(shift=5.0)
CONFIG = AwmConfig(levels=LEVELS)
ALONE = replace(CONFIG, old_weight=0, reference_weight=0, video_weight=1)
START = (0.3, 0.4)
GAINS = ([1.0, -1.0, 1.5, -0.5], [-1.0, 0.3, 0.5, 1.2])


def at_start(**more) -> GainPolicy:
    return GainPolicy(START, old=START, **more)


def errors(gains: tuple[float, float], config: AwmConfig = ALONE) -> list[Tensor]:
    """l of each modality [B], written out."""
    clips = rollout()
    drawn, found = draw(clips, config.levels, KEY), []
    for index, (stream, name) in enumerate(zip(noised(clips, drawn), ("video", "audio"), strict=True)):
        clean, noise = getattr(clips, name), getattr(drawn, name)
        s = drawn.levels.double()
        answer = gains[index] * stream.latents + s.view(-1, *[1] * (clean.ndim - 1))
        found.append(s * (mean_square(answer - (noise - clean)) + 1e-10).sqrt())
    return found


def test_the_error_is_sigma_times_the_root_of_the_mean_square() -> None:
    velocity, target = torch.full((2, 3, 5), 2.0), torch.full((2, 3, 5), -1.0)
    found = matching_error(velocity, target, torch.tensor([0.5, 1.0]))
    torch.testing.assert_close(found, torch.tensor([1.5, 3.0]))
    at = target.clone().requires_grad_()  # the root of 0 has no gradient; with the added square it has
    (slope,) = torch.autograd.grad(matching_error(at, target, torch.ones(2)).sum(), at)
    assert bool((slope == 0).all())


def test_at_the_old_policy_the_ratio_is_one() -> None:
    """The value is minus the advantages, nothing is clipped, and the old policy's term is 0."""
    found = loss(at_start(), scored(rollout(), advantage(*GAINS)), replace(ALONE, old_weight=5.0), KEY)
    assert found.loss.item() == pytest.approx(-sum(GAINS[0]) - sum(GAINS[1]), rel=1e-6)
    for name in ("video", "audio"):
        assert float(found.metrics[f"ratio_off_{name}"][0]) == 0
        assert float(found.metrics[f"clip_fraction_{name}"][0]) == 0
        assert float(found.metrics[f"from_old_{name}"][0]) == 0


def test_at_the_old_policy_the_gradient_is_the_advantage_times_that_of_the_error() -> None:
    """By central differences of l, which is A times minus that of the log-ratio l_old - l."""
    policy, size = at_start(), 1e-6
    found = policy.gradients(loss(policy, scored(rollout(), advantage(*GAINS)), ALONE, KEY).loss)
    ends = [errors((START[0] + step, START[1] + step)) for step in (size, -size)]
    for index in (0, 1):
        slopes = (ends[0][index] - ends[1][index]) / (2 * size)
        expected = float((torch.tensor(GAINS[index]) * slopes).sum())
        assert expected != 0 and found[index] == pytest.approx(expected, rel=1e-5)


def test_a_good_clip_is_fitted_better_and_a_bad_one_worse() -> None:
    clips = rollout()
    for gain, better in ((1.0, True), (-1.0, False)):
        policy, before = at_start(), errors(START)
        slopes = policy.gradients(
            loss(policy, scored(clips, advantage([gain] * 4, [gain] * 4)), ALONE, KEY).loss
        )
        after = errors((START[0] - 1e-4 * slopes[0], START[1] - 1e-4 * slopes[1]))
        assert [bool(b.sum() < a.sum()) for a, b in zip(before, after, strict=True)] == [better] * 2


@settings(max_examples=30)
@given(move=st.floats(-0.3, 0.3), c=st.floats(1e-4, 0.2))
def test_the_clip_stops_the_gradient_exactly(move: float, c: float) -> None:
    """Away from the old policy: a clip whose ratio has gone far enough has no gradient, the others have that
    of -A r."""
    gains, moved = torch.tensor(GAINS[0]).double(), (START[0] + move, START[1])
    policy = GainPolicy(moved, old=START)
    config = replace(ALONE, clip_range=c, audio_weight=0)
    found = policy.gradients(loss(policy, scored(rollout(), advantage(*GAINS)), config, KEY).loss)[0]
    ratio = torch.exp(errors(START)[0] - errors(moved)[0])
    free = ~(((ratio > 1 + c) & (gains > 0)) | ((ratio < 1 - c) & (gains < 0)))
    if bool(((ratio - 1).abs() - c).abs().min() < 1e-6):
        return
    size = 1e-6
    ends = [errors((moved[0] + step, moved[1]))[0] for step in (size, -size)]
    slopes = gains * ratio * (ends[0] - ends[1]) / (2 * size)
    assert found == pytest.approx(float(slopes[free].sum()), rel=1e-4, abs=1e-7)
    metrics = loss(policy, scored(rollout(), advantage(*GAINS)), config, KEY).metrics
    assert float(metrics["clip_fraction_video"][0]) == int((~free).sum())
    if not bool(free.any()):
        assert found == 0


def test_advantages_beyond_the_limit_count_as_the_limit() -> None:
    policy = at_start()
    far, at = (
        policy.gradients(loss(policy, scored(rollout(), advantage(gains, gains)), ALONE, KEY).loss)
        for gains in ([9.0, -7.0, 2.0, 3.0], [2.0, -2.0, 2.0, 2.0])
    )
    assert far == at


def test_without_advantage_only_the_regularisers_are_left() -> None:
    clips, nothing = rollout(), advantage([0.0] * 4, [0.0] * 4)
    policy = GainPolicy((0.5, 0.6), old=(0.1, 0.3), reference=(0.4, 0.8))
    config = replace(CONFIG, old_weight=0.7, reference_weight=0.2, video_weight=3, audio_weight=2)
    found = loss(policy, scored(clips, nothing), config, KEY)
    streams = noised(clips, draw(clips, LEVELS, KEY))
    expected = sum(
        share * (0.7 * from_old**2 + 0.2 * from_reference**2) * float(mean_square(stream.latents).sum())
        for share, from_old, from_reference, stream in zip(
            (3, 2), (0.4, 0.3), (0.1, 0.2), streams, strict=True
        )
    )
    assert found.loss.item() == pytest.approx(expected, rel=1e-6)
    assert policy.asked == ["old", "reference", "default"]
    assert policy.gradients(loss(policy, scored(clips, nothing), ALONE, KEY).loss) == (0, 0)


def test_one_sigma_and_one_noise_for_both_policies() -> None:
    """Far from the old policy the value is the formula on shared draws."""
    policy = GainPolicy((0.9, -0.2), old=START)
    found = loss(policy, scored(rollout(), advantage(*GAINS)), replace(ALONE, clip_range=1e9), KEY)
    pairs = zip(GAINS, errors(START), errors((0.9, -0.2)), strict=True)
    expected = sum(float(-(torch.tensor(a) * torch.exp(old - now)).sum()) for a, old, now in pairs)
    assert found.loss.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("width", [10, 100])
def test_weights_hold_whatever_the_number_of_elements(width: int) -> None:
    policy, given_ = at_start(), advantage(*GAINS)
    clips = rollout(video=(3, 1, 10, width))
    small = replace(rollout(video=(1, 1, 1, 1)), audio=clips.audio)
    wide, narrow = (
        policy.gradients(loss(policy, scored(some, given_), ALONE, KEY).loss) for some in (clips, small)
    )
    assert wide[1] == pytest.approx(narrow[1]) and wide[0] != pytest.approx(narrow[0])
    heavier = replace(ALONE, video_weight=3.0, audio_weight=0.5)
    found = policy.gradients(loss(policy, scored(clips, given_), heavier, KEY).loss)
    assert found == pytest.approx((3 * wide[0], wide[1] / 2))


def test_the_ratio_does_not_depend_on_the_number_of_elements() -> None:
    """A target that is off by the same amount everywhere: 10 elements or 3000, one ratio."""
    found = []
    for elements in (10, 3000):
        shape = (1, elements)
        target = velocity_target(torch.zeros(shape), torch.ones(shape))
        old, now = (matching_error(torch.full(shape, v), target, torch.ones(1)) for v in (0.5, 0.6))
        found.append(float(old - now))
    assert found[0] == pytest.approx(found[1], rel=1e-5) and found[0] == pytest.approx(0.1, rel=1e-5)


def test_a_silent_modality_has_exactly_no_gradient() -> None:
    policy = at_start()
    silent = advantage([0.0] * 4, GAINS[1], has_video=False)
    video, audio = policy.gradients(loss(policy, scored(rollout(), silent), CONFIG, KEY).loss)
    assert video == 0 and audio != 0


def test_a_rank_more_changes_nothing() -> None:
    given_ = advantage(*GAINS, valid=[True, True, False, True])
    assert_parts_add_up(
        loss,
        count,
        lambda: GainPolicy((0.35, 0.2), old=START, reference=(0.1, 0.1)),
        scored(rollout(), given_),
        CONFIG,
    )


def test_a_broken_clip_takes_no_part() -> None:
    given_ = advantage(*GAINS, valid=[True, True, False, True])
    broken, results = rollout(), []
    broken.audio[2] = torch.inf
    for clips in (rollout(), broken):
        policy = GainPolicy((0.5, 0.2), old=START)
        results.append(policy.gradients(loss(policy, scored(clips, given_), CONFIG, KEY).loss))
    assert results[0] == results[1]


def test_levels_are_those_of_the_deployed_sampler_unless_given() -> None:
    deployed = SamplerConfig(shift=12.0)
    assert AwmPhase().with_levels_of(deployed).objective.levels.shift == 12
    assert AwmPhase(objective=CONFIG).with_levels_of(deployed).objective.levels.shift == 5


def test_old_is_copied_after_every_round() -> None:
    class Executor:
        decays: list[float] = []

        def update_old(self, decay: float) -> None:
            self.decays.append(decay)

    for rounds in range(3):
        assert Awm(AwmPhase()).after_round(rounds, Executor()) == {}
    assert Executor.decays == [0, 0, 0]


def test_what_is_wrong_is_said() -> None:
    weights = group_weights(advantage(*GAINS), torch.arange(4) // 2, RwrConfig())
    with pytest.raises(ValueError, match="got rwr's weights"):
        loss(at_start(), scored(rollout(), weights), CONFIG, KEY)
    with pytest.raises(ValueError, match="awm: clip_range must be above 0, got 0"):
        AwmConfig(clip_range=0)
    with pytest.raises(ValueError, match="awm: max_advantage must be above 0, got -1"):
        AwmConfig(max_advantage=-1)
    with pytest.raises(ValueError, match="awm: old_weight must be at least 0, got -1"):
        AwmConfig(old_weight=-1)
