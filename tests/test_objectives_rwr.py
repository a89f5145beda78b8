"""Reward-weighted regression: weights of a group, what centring takes away, the ties to `old` and to the
reference."""

import math
from dataclasses import replace

import pytest
import torch
from alignment_cases import KEY, GainPolicy, advantage, assert_parts_add_up, rollout, scored
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.noising import Levels, draw, mean_square, noised
from finetune.objectives.rwr import Rwr, RwrConfig, RwrPhase, count, group_weights, loss, softmax_weights
from finetune.types import Advantage

LEVELS = Levels(shift=5.0)
CONFIG = RwrConfig(form="weighted", temperature=1.0, max_weight=100, old_weight=0, levels=LEVELS)
CENTRED = replace(CONFIG, form="centred")
GROUPS = torch.tensor([0, 0, 1, 1])


def weighted(
    video: list[float],
    audio: list[float],
    config: RwrConfig = CONFIG,
    valid: list[bool] | None = None,
    **more,
) -> Advantage:
    return group_weights(advantage(video, audio, valid, **more), torch.arange(len(video)) // 2, config)


def test_weights_by_hand() -> None:
    odds = math.exp(2 / 0.5)
    found = softmax_weights(
        torch.tensor([1.0, -1.0]).double(), torch.tensor([4, 4]), torch.tensor([True, True]), 0.5, 100
    )
    assert found.tolist() == pytest.approx([2 * odds / (1 + odds), 2 / (1 + odds)])
    clipped = softmax_weights(
        torch.tensor([1.0, -1.0]).double(), torch.tensor([4, 4]), torch.tensor([True, True]), 0.5, 1.5
    )
    assert clipped.tolist() == pytest.approx([1.5, 2 / (1 + odds)])


@settings(max_examples=60)
@given(
    scores=st.lists(st.floats(-5, 5), min_size=9, max_size=9),
    alive=st.lists(st.booleans(), min_size=9, max_size=9),
    temperature=st.floats(1e-3, 10),
    shift=st.floats(-1e3, 1e3),
    order=st.permutations(range(9)),
)
def test_weights_of_a_group_have_mean_one(
    scores: list[float], alive: list[bool], temperature: float, shift: float, order
) -> None:
    values, valid, cells = (
        torch.tensor(scores).double().round(decimals=3),
        torch.tensor(alive),
        torch.arange(9) // 3,
    )
    found = softmax_weights(values, cells, valid, temperature, 1e9)
    assert bool(found.isfinite().all()) and bool((found >= 0).all()) and bool((found[~valid] == 0).all())
    for group in range(3):
        kept = (cells == group) & valid
        differs = kept.any() and values[kept].max() > values[kept].min()
        assert float(found[kept].sum()) == pytest.approx(float(kept.sum()) if differs else 0.0)
        best = values[kept].argsort()
        assert bool((found[kept][best].diff() >= 0).all())
    torch.testing.assert_close(
        softmax_weights(values[order], cells[order], valid[order], temperature, 1e9), found[order]
    )
    moved = softmax_weights((values + round(shift, 0)).round(decimals=3), cells, valid, temperature, 1e9)
    torch.testing.assert_close(moved, found, atol=1e-6, rtol=1e-6)


def test_clips_that_are_all_alike_are_not_distilled() -> None:
    found = weighted([0, 0, 1, -1], [2, -2, 0.0, 0.0])
    assert found.video[:2].tolist() == [0, 0] and found.audio[2:].tolist() == [0, 0]
    assert bool((found.video[2:] > 0).all()) and found.are_weights


def test_loss_is_the_weighted_flow_matching_error() -> None:
    clips, policy = rollout(), GainPolicy((0.5, 0.6))
    config = replace(CONFIG, levels=Levels(weight="release", shift=5.0), video_weight=2.0, audio_weight=5.0)
    weights = weighted([1, -1, 2, 0.5], [-1, 1, 0, 3])
    found = loss(policy, scored(clips, weights), config, KEY)
    drawn = draw(clips, config.levels, KEY)
    expected = 0.0
    for index, (stream, clean, noise, weight) in enumerate(
        zip(
            noised(clips, drawn),
            (clips.video, clips.audio),
            (drawn.video, drawn.audio),
            (weights.video, weights.audio),
            strict=True,
        )
    ):
        s = drawn.levels.double().view(-1, *[1] * (clean.ndim - 1))
        answer = (0.5, 0.6)[index] * stream.latents + s
        expected += (2.0, 5.0)[index] * float(
            (drawn.weight * weight * mean_square(answer - (noise - clean))).sum()
        )
    assert found.loss.item() == pytest.approx(expected, rel=1e-6) and float(found.count) == 4
    assert policy.asked == ["default"]


@pytest.mark.parametrize("width", [10, 100])
def test_weights_hold_whatever_the_number_of_elements(width: int) -> None:
    """The audio's gradient is that of its own mean: 300 or 3000 elements of video to one of audio do not
    change it."""
    weights, policy = weighted([1, -1, 2, 0.5], [-1, 1, 0, 3]), GainPolicy((0.5, 0.6))
    clips = rollout(video=(3, 1, 10, width))
    small = replace(rollout(video=(1, 1, 1, 1)), audio=clips.audio)
    wide, narrow = (
        policy.gradients(loss(policy, scored(some, weights), CONFIG, KEY).loss) for some in (clips, small)
    )
    assert wide[1] == pytest.approx(narrow[1]) and wide[0] != pytest.approx(narrow[0])
    heavier = policy.gradients(
        loss(policy, scored(clips, weights), replace(CONFIG, audio_weight=3.0), KEY).loss
    )
    assert heavier == pytest.approx((wide[0], 3 * wide[1]))


def test_the_better_clip_pulls_more() -> None:
    """Group of two: turning the advantages round turns round which clip's gradient is larger."""
    policy, clips = GainPolicy((0.5, 0.6)), rollout(2)
    equal = replace(weighted([1, -1], [1, -1]), video=torch.ones(2).double(), audio=torch.ones(2).double())
    single = [
        policy.gradients(loss(policy, scored(clips, advantage_only(equal, index)), CONFIG, KEY).loss)[0]
        for index in (0, 1)
    ]
    w = weighted([1, -1], [1, -1]).video.tolist()
    together = policy.gradients(loss(policy, scored(clips, weighted([1, -1], [1, -1])), CONFIG, KEY).loss)[0]
    assert w[0] > 1 > w[1] and together == pytest.approx(w[0] * single[0] + w[1] * single[1])


def advantage_only(given_: Advantage, index: int) -> Advantage:
    mask = torch.arange(len(given_.video)) == index
    return replace(given_, video=given_.video * mask, audio=given_.audio * mask)


def test_the_reference_holds_every_clip_whatever_its_weight() -> None:
    clips = rollout()
    policy = GainPolicy((0.5, 0.6), reference=(0.1, 0.3))
    nothing = weighted([0] * 4, [0] * 4)
    found = loss(
        policy,
        scored(clips, nothing),
        replace(CONFIG, reference_weight=0.7, video_weight=2, audio_weight=3),
        KEY,
    )
    streams = noised(clips, draw(clips, CONFIG.levels, KEY))
    expected = sum(
        0.7 * weight * float((away * stream.latents).square().flatten(1).mean(1).sum())
        for weight, away, stream in zip((2, 3), (0.4, 0.3), streams, strict=True)
    )
    assert found.loss.item() == pytest.approx(expected)


def test_the_reference_term_moves_the_optimum_to_the_reference() -> None:
    """The loss is quadratic in the gain, so two slopes give its optimum: the more the reference weighs, the
    nearer it lies."""
    clips, weights, away = rollout(16), weighted([1, -1] * 8, [1, -1] * 8), []
    for held in (0.0, 1.0, 100.0):
        config, slopes = replace(CONFIG, reference_weight=held), []
        for gain in (0.0, 1.0):
            policy = GainPolicy((gain, gain), reference=(-2.0, -2.0))
            slopes.append(policy.gradients(loss(policy, scored(clips, weights), config, KEY).loss)[1])
        away.append(abs(-slopes[0] / (slopes[1] - slopes[0]) + 2))
    assert away[0] > 1.5 * away[1] and away[1] > 20 * away[2]


@settings(max_examples=60)
@given(
    scores=st.lists(st.floats(-5, 5), min_size=9, max_size=9),
    alive=st.lists(st.booleans(), min_size=9, max_size=9),
    temperature=st.floats(1e-2, 10),
    most=st.floats(0.5, 9),
)
def test_centred_weights_of_a_group_sum_to_zero(
    scores: list[float], alive: list[bool], temperature: float, most: float
) -> None:
    """Also where the clip at max_weight has moved the mean away from 1."""
    given_, cells = advantage(scores, scores, alive), torch.arange(9) // 3
    config = replace(CONFIG, temperature=temperature, max_weight=most)
    plain, found = (group_weights(given_, cells, each) for each in (config, replace(config, form="centred")))
    assert bool((found.video[~given_.valid] == 0).all()) and torch.equal(found.video, found.audio)
    for group in range(3):
        kept = (cells == group) & given_.valid
        assert float(found.video[kept].sum()) == pytest.approx(0, abs=1e-9)
        torch.testing.assert_close(found.video[kept].diff(), plain.video[kept].diff())


def test_centring_leaves_out_the_self_distillation() -> None:
    """Gradient of the weighted loss = that of the centred one + that of the plain loss of the own clips."""
    policy, clips, given_ = GainPolicy((0.5, 0.6)), rollout(), ([1.0, -1.0, 2.0, 0.5], [-1.0, 1.0, 0.0, 3.0])
    plain, centred = (
        policy.gradients(loss(policy, scored(clips, weighted(*given_, config)), config, KEY).loss)
        for config in (CONFIG, CENTRED)
    )
    ones = torch.ones(4).double()
    alike = replace(weighted(*given_), video=ones, audio=ones)
    own = policy.gradients(loss(policy, scored(clips, alike), CONFIG, KEY).loss)
    assert plain == pytest.approx([a + b for a, b in zip(centred, own, strict=True)])
    assert all(abs(slope) > 1e-3 for slope in own)


def test_equal_clips_of_a_group_have_no_gradient_when_centred() -> None:
    """Whatever their advantages: there is nothing to tell apart."""
    clips = rollout(2)
    same = replace(clips, video=clips.video[:1].repeat(2, 1, 1, 1, 1), audio=clips.audio[:1].repeat(2, 1, 1))
    same = replace(same, sample_ids=torch.tensor([7, 7]))  # one noise for both
    policy = GainPolicy((0.5, 0.6))
    slopes = policy.gradients(
        loss(policy, scored(same, weighted([3, -1], [0.2, 0], CENTRED)), CENTRED, KEY).loss
    )
    assert slopes == pytest.approx((0, 0), abs=1e-9)


def test_the_old_policy_holds_like_the_reference() -> None:
    """Its term is the squared distance, with no gradient where the policies are the same."""
    clips, nothing = rollout(), weighted([0] * 4, [0] * 4)
    config = replace(CENTRED, old_weight=0.7, video_weight=2, audio_weight=3)
    policy = GainPolicy((0.5, 0.6), old=(0.1, 0.3))
    found = loss(policy, scored(clips, nothing), config, KEY)
    streams = noised(clips, draw(clips, CONFIG.levels, KEY))
    expected = sum(
        0.7 * weight * float((away * stream.latents).square().flatten(1).mean(1).sum())
        for weight, away, stream in zip((2, 3), (0.4, 0.3), streams, strict=True)
    )
    assert found.loss.item() == pytest.approx(expected) and policy.asked == ["old", "default"]
    start = GainPolicy((0.5, 0.6), old=(0.5, 0.6))
    assert start.gradients(loss(start, scored(clips, nothing), config, KEY).loss) == (0, 0)


def test_the_old_policy_bounds_what_negative_weights_push_away() -> None:
    """Centred, the curvature in a gain may be negative; with the old policy's term it is not."""
    clips, weights = rollout(16), weighted([1, -1] * 8, [1, -1] * 8, CENTRED)

    def curvature(config: RwrConfig) -> float:
        slopes = []
        for gain in (0.0, 1.0):
            policy = GainPolicy((gain, gain))
            slopes.append(policy.gradients(loss(policy, scored(clips, weights), config, KEY).loss)[0])
        return slopes[1] - slopes[0]

    free, held = curvature(CENTRED), curvature(replace(CENTRED, old_weight=1.0))
    assert held > 5 * abs(free)


def test_old_is_copied_after_every_round() -> None:
    class Executor:
        decays: list[float] = []

        def update_old(self, decay: float) -> None:
            self.decays.append(decay)

    for rounds in range(3):
        assert Rwr(RwrPhase()).after_round(rounds, Executor()) == {}
    assert Executor.decays == [0, 0, 0]


def test_a_silent_modality_has_exactly_no_gradient() -> None:
    policy = GainPolicy((0.5, 0.6))
    silent = weighted([0] * 4, [1, -1, 2, -2], has_video=False)
    video, audio = policy.gradients(loss(policy, scored(rollout(), silent), CONFIG, KEY).loss)
    assert video == 0 and audio != 0
    alike = weighted([0] * 4, [1, -1, 2, -2])
    assert policy.gradients(loss(policy, scored(rollout(), alike), CONFIG, KEY).loss) == (0.0, audio)


def test_a_rank_more_changes_nothing() -> None:
    weights = weighted([1, 0, 2, -3], [-1, 0, 0.5, 3], CENTRED, valid=[True, True, False, True])
    assert_parts_add_up(
        loss,
        count,
        lambda: GainPolicy((0.5, 0.2), reference=(0.1, 0.1)),
        scored(rollout(), weights),
        RwrConfig(levels=LEVELS, reference_weight=0.3),
    )


def test_a_broken_clip_takes_no_part() -> None:
    weights = weighted([1, 0, 2, -3], [-1, 0, 0.5, 3], valid=[True, True, False, True])
    broken, results = rollout(), []
    broken.audio[2] = torch.inf
    for clips in (rollout(), broken):
        policy = GainPolicy((0.5, 0.2))
        results.append(
            policy.gradients(loss(policy, scored(clips, weights), RwrConfig(levels=LEVELS), KEY).loss)
        )
    assert results[0] == results[1]


def test_advantages_are_not_taken_for_weights() -> None:
    with pytest.raises(ValueError, match=r"by rwr\.group_weights"):
        loss(GainPolicy((0.3, 0.3)), scored(rollout(2), advantage([1, 2], [1, 2])), CONFIG, KEY)
    with pytest.raises(ValueError, match="rwr: temperature must be above 0, got 0"):
        RwrConfig(temperature=0)
    with pytest.raises(ValueError, match="rwr: old_weight must be at least 0, got -1"):
        RwrConfig(old_weight=-1)
    with pytest.raises(ValueError, match="form must be centred or weighted, got 'centered'"):
        RwrConfig(form="centered")  # type: ignore[arg-type]
