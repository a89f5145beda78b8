"""DiffusionNFT: its identities in closed form (alignment.md 2.5), weights at 300:1, no dependence on
ranks."""

from dataclasses import replace

import pytest
import torch
from alignment_cases import KEY, FreePolicy, GainPolicy, advantage, assert_parts_add_up, rollout, scored
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from finetune.noising import Levels, draw, mean_square, noised
from finetune.objectives.nft import NftConfig, count, loss, nft_terms
from finetune.objectives.rwr import RwrConfig, group_weights
from finetune.types import take
from pretrain.types import Velocity

LEVELS = Levels(shift=5.0)
ALONE = NftConfig(reference_weight=0, levels=LEVELS)


def case(seed: int, batch: int = 3) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """state, clean, velocity, old, fp64."""
    generator = torch.Generator().manual_seed(seed)
    state, clean, velocity, old = (
        torch.randn(batch, 2, 5, generator=generator, dtype=torch.float64) for _ in range(4)
    )
    return state, clean, velocity, old


def levels(batch: int = 3) -> Tensor:
    return torch.linspace(0.3, 0.9, batch, dtype=torch.float64)


@settings(max_examples=50)
@given(
    beta=st.floats(0.05, 3),
    c=st.floats(0.5, 10),
    shares=st.lists(st.floats(-1, 1), min_size=3, max_size=3),
    seed=st.integers(0, 99),
)
def test_gradient_at_the_old_policy_is_the_advantage_times_the_normalised_errors(
    beta, c, shares: list[float], seed: int
) -> None:
    state, clean, velocity, _ = case(seed)
    gains = torch.tensor(shares, dtype=torch.float64) * c  # |A| <= c
    now = velocity.clone().requires_grad_()
    (found,) = torch.autograd.grad(
        nft_terms(now, velocity, state, clean, levels(), gains, beta, c).sum(), now
    )
    other = velocity.clone().requires_grad_()
    error = state - levels()[:, None, None] * other - clean
    w = error.detach().abs().mean((1, 2))
    (expected,) = torch.autograd.grad((error.square().mean((1, 2)) / w).sum(), other)
    torch.testing.assert_close(found, gains[:, None, None] * expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("beta", [0.1, 1.0, 2.0])
@pytest.mark.parametrize("gain", [-3.0, 0.7])
def test_the_same_by_finite_differences(beta: float, gain: float) -> None:
    """Of mean(e^2) / w, with w held as the loss holds it."""
    state, clean, velocity, _ = case(5, batch=1)
    level, gains, size = levels(1), torch.tensor([gain], dtype=torch.float64), 1e-6
    now = velocity.clone().requires_grad_()
    (found,) = torch.autograd.grad(nft_terms(now, velocity, state, clean, level, gains, beta, 5.0).sum(), now)
    w = (state - level * velocity - clean).abs().mean()
    for place in [(0, 0, 0), (0, 1, 3)]:
        moved = torch.zeros_like(velocity)
        moved[place] = size
        value = [((state - level * (velocity + sign * moved) - clean) ** 2).mean() / w for sign in (1, -1)]
        assert float(found[place]) == pytest.approx(gain * float(value[0] - value[1]) / (2 * size), rel=1e-6)


@given(first=st.floats(-5, 5), second=st.floats(-5, 5))
def test_the_value_at_the_old_policy_does_not_depend_on_the_reward(first: float, second: float) -> None:
    state, clean, velocity, _ = case(0, batch=1)
    values = [
        nft_terms(velocity, velocity, state, clean, levels(1), torch.tensor([gain]).double(), 0.5, 5.0)
        for gain in (first, second)
    ]
    torch.testing.assert_close(*values)


def test_the_loss_is_the_formula_away_from_the_old_policy() -> None:
    state, clean, velocity, old = case(3)
    gains, b, c, s = torch.tensor([-9.0, 0.0, 2.0]).double(), 0.4, 5.0, levels()[:, None, None]
    expected = torch.zeros(3, dtype=torch.float64)
    for index, r in enumerate([0.0, 0.5, 0.7]):  # clamp(A / 5) / 2 + 1/2
        for share, policy in ((r, b * velocity + (1 - b) * old), (1 - r, (1 + b) * old - b * velocity)):
            error = (state - s * policy - clean)[index]
            expected[index] += c * share * (error**2 / error.abs().mean()).mean() / b
    torch.testing.assert_close(nft_terms(velocity, old, state, clean, levels(), gains, b, c), expected)


def test_no_gradient_leaks_through_the_normaliser() -> None:
    """Were w differentiated, mean(e^2) / w would be homogeneous of degree 1 in e; held, its gradient along e
    is twice its value."""
    state, clean, _, old = case(1, batch=1)
    level, gains = levels(1), torch.tensor([5.0]).double()  # r = 1: only the positive term
    now = old.clone().requires_grad_()
    value = nft_terms(now, old, state, clean, level, gains, 1.0, 5.0).sum()
    (slope,) = torch.autograd.grad(value, now)
    error = state - level * old - clean
    along = (slope * -error / level).sum()  # de/dv = -s: the direction in which e grows by itself
    assert along.item() == pytest.approx(2 * value.item(), rel=1e-9)


def test_a_perfect_answer_is_finite() -> None:
    state, _, velocity, _ = case(2)
    clean = state - levels()[:, None, None] * velocity  # the error is 0 to the last bit
    now = velocity.clone().requires_grad_()
    value = nft_terms(now, velocity, state, clean, levels(), torch.ones(3).double(), 1.0, 5.0).sum()
    assert value.item() == 0 and bool(torch.autograd.grad(value, now)[0].isfinite().all())


@pytest.mark.parametrize("width", [10, 100])
def test_weights_hold_whatever_the_number_of_elements(width: int) -> None:
    """At 300 and 3000 elements of video to one of audio: each modality's gradient is its weight times that of
    its own mean."""
    clips = rollout(video=(3, 1, 10, width))
    given_ = advantage([1, -1, 2, -0.5], [-1, 1, 0.5, 3])
    policy = GainPolicy((0.3, 0.3))
    both = policy.gradients(loss(policy, scored(clips, given_), ALONE, KEY).loss)
    weighed = policy.gradients(
        loss(policy, scored(clips, given_), replace(ALONE, video_weight=0.25, audio_weight=4), KEY).loss
    )
    assert weighed == pytest.approx((both[0] / 4, both[1] * 4))
    drawn = draw(clips, ALONE.levels, KEY)
    for index, (stream, clean, gains) in enumerate(
        zip(noised(clips, drawn), (clips.video, clips.audio), (given_.video, given_.audio), strict=True)
    ):
        gain = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
        s = drawn.levels.double().view(-1, *[1] * (clean.ndim - 1))
        error = stream.latents - s * (gain * stream.latents + s) - clean
        w = error.detach().abs().flatten(1).mean(1)
        assert both[index] == pytest.approx(
            float(torch.autograd.grad((gains * mean_square(error) / w).sum(), gain)[0]), rel=1e-6
        )


def test_a_better_clip_is_approached_and_a_worse_one_left() -> None:
    clips = rollout(batch=1)
    drawn = draw(clips, ALONE.levels, KEY)
    video, audio = noised(clips, drawn)
    start = Velocity(torch.zeros_like(clips.video), torch.zeros_like(clips.audio))
    for gain in (1.0, -1.0):
        now = Velocity(
            torch.zeros_like(clips.video).requires_grad_(), torch.zeros_like(clips.audio).requires_grad_()
        )
        policy = FreePolicy(default=now, old=start, reference=start)
        assert now.video is not None and now.audio is not None
        total = loss(policy, scored(clips, advantage([gain], [gain])), ALONE, KEY).loss
        found = torch.autograd.grad(total, [now.video, now.audio])
        for slope, stream, clean, noise in zip(
            found, (video, audio), (clips.video, clips.audio), (drawn.video, drawn.audio), strict=True
        ):
            wanted = gain * (noise - clean)
            assert float((-slope * wanted).sum()) > 0 and stream.latents.shape == clean.shape


def test_a_silent_modality_has_exactly_no_gradient() -> None:
    """Rewards routed to audio only; away from the old policy too. A group alike in its picture is no such
    case."""
    policy = GainPolicy((0.5, 0.6))
    silent = advantage([0, 0, 0, 0], [1, -1, 2, -2], has_video=False)
    video, audio = policy.gradients(loss(policy, scored(rollout(), silent), ALONE, KEY).loss)
    assert video == 0 and audio != 0
    start = GainPolicy((0.3, 0.3))
    alike = advantage([0, 0, 0, 0], [1, -1, 2, -2])
    video, audio = start.gradients(loss(start, scored(rollout(), alike), ALONE, KEY).loss)
    assert video == 0 and audio != 0
    held = policy.gradients(
        loss(policy, scored(rollout(), silent), replace(ALONE, reference_weight=1.0), KEY).loss
    )
    assert held[0] > 0  # the reference still holds the picture: 0.5 is pulled down to 0.3


def test_the_reference_term_is_a_mean_for_each_modality() -> None:
    clips = rollout()
    policy, far = (
        GainPolicy((0.3, 0.3)),
        NftConfig(reference_weight=0.1, video_weight=2, audio_weight=3, levels=LEVELS),
    )
    policy.gains["reference"] = (0.1, 0.2)
    given_ = advantage([0.0] * 4, [0.0] * 4, has_video=False, has_audio=False)
    found = loss(policy, scored(clips, given_), far, KEY)
    streams = noised(clips, draw(clips, far.levels, KEY))
    expected = sum(
        0.1 * weight * float((away * stream.latents).square().flatten(1).mean(1).sum())
        for weight, away, stream in zip((2, 3), (0.2, 0.1), streams, strict=True)
    )
    assert found.loss.item() == pytest.approx(expected)
    assert (
        float(found.metrics["from_reference_video"][1]) == 4
        and float(found.metrics["from_old_audio"][0]) == 0
    )


def test_without_a_reference_term_the_reference_is_not_asked() -> None:
    policy = GainPolicy((0.3, 0.3))
    loss(policy, scored(rollout(), advantage([1] * 4, [1] * 4)), ALONE, KEY)
    assert sorted(policy.asked) == ["default", "old"]


def test_a_rank_more_changes_nothing() -> None:
    given_ = advantage([1, 0, 2, -3], [-1, 0, 0.5, 3], valid=[True, False, True, True])
    assert_parts_add_up(
        loss,
        count,
        lambda: GainPolicy((0.5, 0.2), reference=(0.1, 0.1)),
        scored(rollout(), given_),
        NftConfig(levels=LEVELS),
    )


def test_a_broken_clip_takes_no_part() -> None:
    given_ = advantage([1, 0, 2, -3], [-1, 0, 0.5, 3], valid=[True, False, True, True])
    broken = rollout()
    broken.video[1] = torch.nan
    policies = [GainPolicy((0.5, 0.2)) for _ in range(2)]
    whole, without = (
        policy.gradients(loss(policy, scored(clips, given_), NftConfig(levels=LEVELS), KEY).loss)
        for policy, clips in zip(policies, (rollout(), broken), strict=True)
    )
    assert whole == without


def test_draws_belong_to_the_clip() -> None:
    """Unlike between clips; the same for one clip wherever it stands, also as seen from another rank."""
    whole = draw(rollout(), ALONE.levels, KEY)
    part = draw(take(rollout(), torch.tensor([3, 1])), ALONE.levels, KEY)
    for name in ("levels", "video", "audio"):
        rows = getattr(whole, name)
        assert len({row.flatten()[0].item() for row in rows}) == 4 and torch.equal(
            getattr(part, name), rows[[3, 1]]
        )


def test_draws_change_with_the_key_only() -> None:
    policy, batch = GainPolicy((0.5, 0.2)), scored(rollout(), advantage([1, 0, 2, -3], [-1, 0, 0.5, 3]))
    first, again, later = (
        loss(policy, batch, NftConfig(levels=LEVELS), key).loss.item() for key in (KEY, KEY, (*KEY[:2], 1))
    )
    assert first == again != later


def test_weights_and_nonsense_are_refused() -> None:
    given_ = group_weights(advantage([1, -1], [1, -1]), torch.tensor([0, 0]), RwrConfig())
    with pytest.raises(ValueError, match="reads advantages, got rwr's weights"):
        loss(GainPolicy((0.3, 0.3)), scored(rollout(2), given_), ALONE, KEY)
    with pytest.raises(ValueError, match="nft: beta must be above 0, got 0"):
        NftConfig(beta=0)
    with pytest.raises(ValueError, match="nft: audio_weight must be at least 0, got -1"):
        NftConfig(audio_weight=-1)
