"""Flow-DPO with ties: closed forms of Rao-Kupper, labels to margins, weights at 300:1, no dependence on
ranks."""

import math
from dataclasses import replace

import pytest
import torch
from alignment_cases import KEY, GainPolicy, assert_parts_add_up, rollout
from hypothesis import given
from hypothesis import strategies as st

from finetune.gsb.pairs import ClipRef, PreferencePair
from finetune.gsb.votes import AXES
from finetune.noising import Levels, draw, mean_square, noised
from finetune.objectives.gsb_dpo import (
    AxisWeights,
    GsbDpoConfig,
    TieRates,
    count,
    for_votes,
    loss,
    margin,
    outcome_log_probs,
    preference_loss,
    tie_theta,
)
from finetune.types import FIRST, NO_LABEL, SECOND, TIE, PreferencePairs

shares = st.floats(0.001, 0.95)
margins = st.floats(-30, 30)
THIRD = TieRates(overall=1 / 3, sync=1 / 3, voice=1 / 3, picture=1 / 3)
LEVELS = Levels(shift=5.0)
CONFIG = GsbDpoConfig(beta=2.0, tie_rates=THIRD, levels=LEVELS)


def one(value: float) -> torch.Tensor:
    return torch.tensor([value], dtype=torch.float64)


def label(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int8)


def pairs(
    picture: list[int],
    voice: list[int],
    overall: list[int],
    sync: list[int] | None = None,
    width: int = 10,
) -> PreferencePairs:
    batch = len(picture)
    first, second = (rollout(batch, video=(3, 1, 10, width), seed=seed, first_id=seed) for seed in (1, 50))
    columns = (overall, sync or [NO_LABEL] * batch, voice, picture)  # as AXES
    labels = torch.tensor(columns, dtype=torch.int8).T
    return PreferencePairs(first, replace(second, conditioning=first.conditioning), labels)


@given(m=margins, p=shares)
def test_the_outcomes_sum_to_one(m: float, p: float) -> None:
    assert sum(math.exp(float(part)) for part in outcome_log_probs(one(m), p)) == pytest.approx(1, abs=1e-9)


@given(m=margins, p=shares)
def test_turning_the_pair_round_turns_the_outcomes_round(m: float, p: float) -> None:
    here, there = outcome_log_probs(one(m), p), outcome_log_probs(one(-m), p)
    assert torch.equal(here.first, there.second) and torch.equal(here.second, there.first)
    torch.testing.assert_close(here.tie, there.tie)
    torch.testing.assert_close(
        preference_loss(one(m), label(FIRST), p), preference_loss(one(-m), label(SECOND), p)
    )


@given(m=margins, p=shares)
def test_outcomes_are_rao_kuppers(m: float, p: float) -> None:
    """With strengths x and y: P(first) = x / (x + theta y), the published form."""
    theta, x = tie_theta(p), math.exp(m)
    found = outcome_log_probs(one(m), p)
    assert math.exp(float(found.first)) == pytest.approx(x / (x + theta), rel=1e-9)
    assert math.exp(float(found.tie)) == pytest.approx(
        (theta**2 - 1) * x / ((x + theta) * (1 + theta * x)), rel=1e-9
    )


@given(p=shares)
def test_equal_clips_tie_with_the_share_that_was_voted(p: float) -> None:
    assert math.exp(float(outcome_log_probs(one(0.0), p).tie)) == pytest.approx(p, rel=1e-9)


@given(p=shares)
def test_losses_at_the_start(p: float) -> None:
    theta = (1 + p) / (1 - p)
    decided, tied = preference_loss(torch.zeros(2).double(), label(FIRST, TIE), p).tolist()
    assert decided == pytest.approx(math.log(1 + theta)) and tied == pytest.approx(
        math.log((theta + 1) / (theta - 1))
    )
    assert preference_loss(torch.zeros(1), label(SECOND), 0.0).item() == pytest.approx(math.log(2))


@given(m=margins)
def test_without_ties_it_is_flow_dpo(m: float) -> None:
    expected = torch.nn.functional.softplus(one(-m))
    torch.testing.assert_close(preference_loss(one(m), label(FIRST), 0.0), expected)
    torch.testing.assert_close(preference_loss(one(m), label(FIRST), 1e-12), expected, rtol=1e-9, atol=1e-9)


@given(m=st.floats(-20, 20).filter(lambda m: abs(m) > 1e-3), p=shares)
def test_signs_of_the_gradient(m: float, p: float) -> None:
    """A winner's margin grows, a loser's falls, a tie's is drawn to zero, an axis without label does not
    move."""
    for asked, sign in ((FIRST, -1), (SECOND, 1), (TIE, math.copysign(1, m)), (NO_LABEL, 0)):
        at = one(m).requires_grad_()
        (slope,) = torch.autograd.grad(preference_loss(at, label(asked), p).sum(), at)
        assert (slope.item() > 0) - (slope.item() < 0) == sign


@pytest.mark.parametrize("m", [-1e8, -1e3, 1e3, 1e8])
@pytest.mark.parametrize("p", [0.0, 1e-9, 0.3, 0.999])
def test_huge_margins_stay_finite(m: float, p: float) -> None:
    for asked in (FIRST, SECOND, NO_LABEL, *([TIE] if p else [])):
        at = torch.tensor([m], requires_grad=True)
        found = preference_loss(at, label(asked), p)
        (slope,) = torch.autograd.grad(found.sum(), at)
        assert bool(found.isfinite()) and bool(slope.isfinite()) and abs(slope.item()) <= 1.001
    lost = preference_loss(one(m), label(SECOND if m > 0 else FIRST), p).item()
    assert lost == pytest.approx(abs(m) + math.log(tie_theta(p)), rel=1e-6)


def test_the_margin_is_the_formula() -> None:
    found = margin(one(1.0), one(1.5), one(3.0), one(2.0), beta=10.0)
    assert found.item() == -5 * ((1.0 - 1.5) - (3.0 - 2.0))


def test_every_label_reaches_its_own_margin() -> None:
    """Picture only, voice only, sync: gradients of the two modalities, against the formula written out."""
    policy = GainPolicy((0.5, 0.6))
    batch = pairs([FIRST, NO_LABEL, NO_LABEL], [NO_LABEL, SECOND, NO_LABEL], [NO_LABEL, NO_LABEL, TIE])
    found = loss(policy, batch, CONFIG, KEY)
    expected = written_out(policy, batch)
    assert found.loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert policy.gradients(found.loss) == pytest.approx(policy.gradients(expected), rel=1e-5)
    assert float(found.count) == 3 and policy.asked == ["reference", "default"]
    moves = {
        "picture": (True, False),
        "voice": (False, True),
        "overall": (True, True),
        "sync": (True, True),
    }
    for axis in AXES:
        nothing = torch.full((3, len(AXES)), NO_LABEL, dtype=torch.int8)
        nothing[:, AXES.index(axis)] = label(FIRST, SECOND, TIE)
        alone = loss(policy, replace(batch, labels=nothing), CONFIG, KEY)
        assert tuple(slope != 0 for slope in policy.gradients(alone.loss)) == moves[axis]
        unasked = [other for other in AXES if other != axis]
        assert all(float(alone.metrics[f"loss_{other}"][1]) == 0 for other in unasked)


def test_sync_and_overall_have_a_term_each() -> None:
    """Overall a tie, sync for the first: -ln P(tie) - ln P(first) of one margin, each at its own theta."""
    policy = GainPolicy((0.5, 0.6))
    batch = pairs([NO_LABEL], [NO_LABEL], [TIE], [FIRST])
    config = replace(CONFIG, tie_rates=replace(THIRD, sync=0.5), weights=AxisWeights(sync=2.0))
    found = loss(policy, batch, config, KEY)
    m = float(found.metrics["margin_sync"][0])
    tie, first = outcome_log_probs(one(m), 1 / 3).tie, outcome_log_probs(one(m), 0.5).first
    assert m != 0 and found.loss.item() == pytest.approx(-float(tie) - 2 * float(first), rel=1e-6)
    assert float(found.count) == 1 and found.metrics["margin_overall"].tolist() == [0, 0]
    only_sync = loss(policy, batch, replace(config, weights=AxisWeights(overall=0.0)), KEY)
    assert only_sync.loss.item() == pytest.approx(-float(first), rel=1e-6)
    assert "loss_overall" not in only_sync.metrics


def test_an_axis_of_weight_zero_takes_no_part() -> None:
    """Not in the loss, the count nor the check of ties at rate 0."""
    config = GsbDpoConfig(levels=LEVELS, weights=AxisWeights(voice=0.0))
    found = loss(GainPolicy((0.5, 0.6)), pairs([NO_LABEL], [TIE], [NO_LABEL]), config, KEY)
    assert (found.loss.item(), float(found.count)) == (0, 0)


def written_out(policy: GainPolicy, batch: PreferencePairs) -> torch.Tensor:
    """Row 0 picture won by the first, row 1 voice by the second, row 2 a tie on the sum; beta 2, theta 2."""
    drawn, found = draw(batch.first, CONFIG.levels, KEY), []
    for index, name in enumerate(("video", "audio")):
        distances = []
        for clips in (batch.first, batch.second):
            stream, clean = noised(clips, drawn)[index], getattr(clips, name)
            s = drawn.levels.double().view(-1, *[1] * (clean.ndim - 1))
            target = getattr(drawn, name) - clean
            now, before = (
                mean_square(gain * stream.latents + s - target) for gain in (policy.default[index], 0.3)
            )
            distances.append(now - before)
        found.append(-(2.0 / 2) * (distances[0] - distances[1]))
    win = lambda m: torch.log1p(2 * torch.exp(-m))  # noqa: E731
    total = found[0][2] + found[1][2]
    return win(found[0][0]) + win(-found[1][1]) + win(total) + win(-total) - math.log(3)


def test_losses_at_the_start_through_the_policy() -> None:
    """Policy = reference: every margin is 0, whatever the clips."""
    start = GainPolicy((0.3, 0.3))
    batch = pairs([FIRST, SECOND, TIE], [NO_LABEL] * 3, [NO_LABEL, NO_LABEL, TIE])
    assert loss(start, batch, CONFIG, KEY).loss.item() == pytest.approx(
        2 * math.log(3) + 2 * math.log(3), rel=1e-6
    )  # theta 2
    dropped = loss(start, batch, GsbDpoConfig(ties="drop", levels=LEVELS), KEY)
    assert dropped.loss.item() == pytest.approx(2 * math.log(2), rel=1e-6) and float(dropped.count) == 2


def test_dropping_ties_is_not_asking() -> None:
    policy, config = GainPolicy((0.5, 0.6)), GsbDpoConfig(beta=2.0, ties="drop", levels=LEVELS)
    with_ties = pairs([FIRST, TIE, SECOND], [TIE, TIE, FIRST], [TIE, TIE, TIE])
    without = pairs([FIRST, NO_LABEL, SECOND], [NO_LABEL, NO_LABEL, FIRST], [NO_LABEL] * 3)
    one_, other = (loss(policy, batch, config, KEY) for batch in (with_ties, without))
    assert one_.loss.item() == other.loss.item() and float(one_.count) == float(count(with_ties, config)) == 2
    modelled = loss(policy, without, replace(config, ties="model"), KEY)
    assert modelled.loss.item() == one_.loss.item()  # tie share 0


def test_a_descent_step_raises_the_winners_margin() -> None:
    batch, margins_ = pairs([FIRST] * 3, [SECOND] * 3, [NO_LABEL] * 3), []
    policy = GainPolicy((0.3, 0.3))
    for _ in range(2):
        found = loss(policy, batch, CONFIG, KEY)
        margins_.append([float(found.metrics[f"margin_{name}"][0]) for name in ("picture", "voice")])
        slopes = policy.gradients(found.loss)
        with torch.no_grad():
            for gain, slope in zip(policy.default, slopes, strict=True):
                gain -= 0.01 * slope
    assert margins_[1][0] > margins_[0][0] == 0 and margins_[1][1] > margins_[0][1] == 0
    assert float(found.metrics["margin_picture"][1]) == 3 and float(found.metrics["margin_overall"][1]) == 0


@pytest.mark.parametrize("width", [10, 100])
def test_weights_hold_whatever_the_number_of_elements(width: int) -> None:
    policy = GainPolicy((0.5, 0.6))
    batch = pairs([FIRST, TIE, SECOND], [SECOND, TIE, FIRST], [NO_LABEL] * 3, width=width)
    wide = policy.gradients(loss(policy, batch, CONFIG, KEY).loss)
    narrow = [replace(clips, video=clips.video[:, :1, :, :1, :1]) for clips in (batch.first, batch.second)]
    small = policy.gradients(
        loss(policy, replace(batch, first=narrow[0], second=narrow[1]), CONFIG, KEY).loss
    )
    assert wide[1] == pytest.approx(small[1]) and wide[0] != pytest.approx(small[0])
    heavier = replace(CONFIG, weights=AxisWeights(picture=0.5, voice=3.0))
    assert policy.gradients(loss(policy, batch, heavier, KEY).loss) == pytest.approx(
        (wide[0] / 2, 3 * wide[1])
    )


def test_both_clips_meet_one_level_and_one_noise() -> None:
    """Equal clips: the margin is exactly 0 whatever the policy has become."""
    batch = pairs([FIRST] * 3, [FIRST] * 3, [FIRST] * 3, [SECOND] * 3)
    same = replace(batch, second=replace(batch.first, sample_ids=batch.second.sample_ids))
    found = loss(GainPolicy((0.9, -0.4)), same, CONFIG, KEY)
    assert all(float(found.metrics[f"margin_{name}"][0]) == 0 for name in AXES)


def test_a_rank_more_changes_nothing() -> None:
    batch = pairs(
        [FIRST, NO_LABEL, TIE, SECOND],
        [TIE, NO_LABEL, FIRST, SECOND],
        [SECOND, NO_LABEL, NO_LABEL, TIE],
        [TIE, NO_LABEL, SECOND, NO_LABEL],
    )
    config = replace(CONFIG, reference_weight=0.1)
    assert_parts_add_up(loss, count, lambda: GainPolicy((0.5, 0.2), reference=(0.1, 0.1)), batch, config)


def test_a_pair_nobody_voted_on_takes_no_part() -> None:
    policy, config = GainPolicy((0.5, 0.6)), replace(CONFIG, reference_weight=10.0)
    asked, unasked = pairs([FIRST], [TIE], [SECOND]), pairs([NO_LABEL], [NO_LABEL], [NO_LABEL])
    nothing = loss(policy, unasked, config, KEY)
    assert (
        nothing.loss.item() == 0
        and float(nothing.count) == 0
        and policy.gradients(nothing.loss) == (0.0, 0.0)
    )
    held = loss(policy, asked, config, KEY).loss.item() - loss(policy, asked, CONFIG, KEY).loss.item()
    streams = (
        noised(asked.first, draw(asked.first, CONFIG.levels, KEY)),
        noised(asked.second, draw(asked.first, CONFIG.levels, KEY)),
    )
    away = [
        0.04 * float(mean_square(video.latents)) + 0.09 * float(mean_square(audio.latents))
        for video, audio in streams
    ]
    assert held == pytest.approx(10 * sum(away) / 2, rel=1e-6)  # the mean over both clips


def voted(*counts: dict[str, tuple[int, int, int]]) -> list[PreferencePair]:
    clips = [ClipRef(name, name, "c", "p", None, name) for name in ("a", "b")]
    return [PreferencePair("c", clips[0], clips[1], count, False) for count in counts]


def test_axes_that_nobody_decided_are_left_out() -> None:
    votes = voted({"sync": (3, 0, 0), "voice": (0, 3, 0)}, {"sync": (1, 2, 0)}, {"voice": (0, 2, 0)})
    found = for_votes(CONFIG, votes)
    assert found.weights == AxisWeights(overall=0, voice=0, picture=0) and found.tie_rates.voice == 0
    assert found.tie_rates.sync >= 0.5  # the share of Same among its labels
    assert for_votes(CONFIG, votes, fit=False) == replace(CONFIG, weights=found.weights)
    with pytest.raises(ValueError, match=r"labels of voice are all Same .*votes that are all ties teach"):
        for_votes(CONFIG, voted({"voice": (0, 3, 0)}))
    with pytest.raises(ValueError, match="nobody voted"):
        for_votes(replace(CONFIG, weights=AxisWeights(sync=0)), voted({"sync": (3, 0, 0)}))


def test_bad_labels_and_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="set tie_rates from the votes, or ties to drop"):
        loss(GainPolicy((0.3, 0.3)), pairs([TIE], [NO_LABEL], [NO_LABEL]), GsbDpoConfig(levels=LEVELS), KEY)
    with pytest.raises(
        ValueError, match=r"labels: expected 1 rows of overall, sync, voice, picture, each 1, 0, -1 or 2"
    ):
        pairs([FIRST], [3], [FIRST])
    with pytest.raises(ValueError, match="same prompts in the same order"):
        batch = pairs([FIRST] * 4, [FIRST] * 4, [FIRST] * 4)
        replace(batch, second=replace(batch.second, groups=batch.second.groups.flip(0)))
    with pytest.raises(ValueError, match="beta must be positive"):
        GsbDpoConfig(beta=0)
    with pytest.raises(ValueError, match=r"tie rate of sync must be in \[0, 1\), got 1"):
        TieRates(sync=1.0)
    with pytest.raises(ValueError, match=r"weights\.sync must be at least 0, got -1"):
        AxisWeights(sync=-1.0)
    with pytest.raises(ValueError, match="weights: one must be above 0"):
        AxisWeights(**dict.fromkeys(AXES, 0.0))
