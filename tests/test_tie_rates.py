"""The rate of Same at margin 0: closed forms, recovery of what simulated votes were drawn from, bounds."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.gsb.pairs import ClipRef, PreferencePair, majority, tie_rates, tie_shares
from finetune.gsb.tie_rates import (
    LARGEST_RATE,
    fit_ties,
    label_rate,
    label_rate_at_zero,
    marginal_rate,
    outcome_logs,
)
from finetune.objectives.gsb_dpo import outcome_log_probs, tie_theta

rates = st.floats(0.02, 0.9)


def votes(theta: float, spread: float, pairs: int, raters: int, seed: int = 0) -> np.ndarray:
    """Counts [N, 3] drawn from the model."""
    rng = np.random.default_rng(seed)
    odds = np.exp(outcome_logs(rng.normal(0, spread, pairs), theta))
    return np.stack([rng.multinomial(raters, row / row.sum()) for row in odds])


def with_counts(counts, axis: str = "sync") -> list[PreferencePair]:
    one, two = (ClipRef(name, name, "c", "p", None, name) for name in ("a", "b"))
    return [PreferencePair("c", one, two, {axis: (int(a), int(b), int(c))}, False) for a, b, c in counts]


@given(m=st.floats(-20, 20), rate=rates)
def test_votes_follow_the_model_of_the_loss(m: float, rate: float) -> None:
    import torch

    found = outcome_logs(np.array([m]), tie_theta(rate))[0]
    expected = [float(part) for part in outcome_log_probs(torch.tensor([m], dtype=torch.float64), rate)]
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert np.exp(found).sum() == pytest.approx(1)


@given(rate=rates)
def test_without_spread_the_marginal_rate_is_the_rate(rate: float) -> None:
    assert marginal_rate(tie_theta(rate), 0.0) == pytest.approx(rate, rel=1e-9)


@given(rate=rates, less=st.floats(0, 5), more=st.floats(0.05, 5))
def test_the_marginal_rate_falls_as_margins_spread(rate: float, less: float, more: float) -> None:
    theta = tie_theta(rate)
    assert marginal_rate(theta, less + more) < marginal_rate(theta, less) <= rate + 1e-12


def test_the_marginal_rate_is_the_integral() -> None:
    from scipy.integrate import quad

    def density(m: float) -> float:
        return math.exp(outcome_logs(np.array([m]), 4.0)[0, 1] - m**2 / 18) / (3 * math.sqrt(2 * math.pi))

    assert marginal_rate(4.0, 3.0) == pytest.approx(quad(density, -40, 40)[0], rel=1e-7)


@pytest.mark.parametrize("raters", range(1, 8))
@pytest.mark.parametrize("rate", [0.0, 0.2, 0.7, 1.0])
def test_a_label_ties_as_often_as_its_votes_make_it(raters: int, rate: float) -> None:
    """All sequences of votes, each with its probability and its majority."""
    chance = {0: (1 - rate) / 2, 1: rate, 2: (1 - rate) / 2}
    total = sum(
        math.prod(chance[vote] for vote in said)
        for said in itertools.product(range(3), repeat=raters)
        if majority([said.count(0), said.count(1), said.count(2)]) == 0
    )
    assert label_rate(rate, raters) == pytest.approx(total, rel=1e-9)


@pytest.mark.parametrize(("theta", "spread"), [(2.0, 0.0), (2.0, 1.5), (3.0, 3.0), (6.0, 2.0)])
def test_what_votes_were_drawn_from_is_found(theta: float, spread: float) -> None:
    found = fit_ties(votes(theta, spread, pairs=2000, raters=5))
    rate = (theta - 1) / (theta + 1)
    assert found.rate == pytest.approx(rate, abs=0.03) and found.spread == pytest.approx(spread, abs=0.3)
    if spread > 1:  # the marginal rate is far off
        assert marginal_rate(theta, spread) < rate - 0.05
        assert found.theta == pytest.approx(theta, rel=0.1)


@settings(max_examples=15, deadline=None)
@given(theta=st.floats(1.3, 8), spread=st.floats(0, 4), seed=st.integers(0, 1000), raters=st.integers(1, 6))
def test_the_rate_at_zero_is_never_below_the_share_among_labels(
    theta: float, spread: float, seed: int, raters: int
) -> None:
    pairs = with_counts(votes(theta, spread, 60, raters, seed))
    share = tie_shares(pairs)["sync"]
    if share < 1:
        assert 0 <= share <= tie_rates(pairs)["sync"] < 1
    counts = [pair.counts["sync"] for pair in pairs]
    same = sum(count[1] for count in counts) / (60 * raters)
    if same < 1:
        assert fit_ties(counts).rate >= same - 1e-3


def test_one_vote_a_pair_cannot_tell_a_spread() -> None:
    """The likelihood is flat along s, so s is 0 and the rate is the share of Same."""
    counts = [(1, 0, 0)] * 30 + [(0, 1, 0)] * 40 + [(0, 0, 1)] * 30
    found = fit_ties(counts)
    assert found.spread < 0.01 and found.rate == pytest.approx(0.4, abs=1e-4)
    assert label_rate_at_zero(counts) == pytest.approx(0.4, abs=1e-4)


def test_raters_who_always_agree_have_a_finite_theta() -> None:
    counts = [(3, 0, 0)] * 30 + [(0, 3, 0)] * 40 + [(0, 0, 3)] * 30
    assert fit_ties(counts).spread > 3 and 0.4 < label_rate_at_zero(counts) <= LARGEST_RATE


def test_votes_without_same_or_without_decision() -> None:
    assert fit_ties([(3, 0, 0), (1, 0, 2)]) == (1.0, 0.0)
    assert label_rate_at_zero([(3, 0, 0), (1, 0, 2)]) == 0
    assert label_rate_at_zero([(1, 0, 1), (2, 0, 0)]) == pytest.approx(0.5)  # two raters, half of them agree
    with pytest.raises(ValueError, match="no decided vote; votes that are all Same teach nothing"):
        fit_ties([(0, 3, 0)])


def test_axes_are_fitted_apart_and_one_of_ties_is_left_out() -> None:
    pairs = [
        *with_counts([(3, 0, 0), (0, 3, 0)], "sync"),
        *with_counts([(0, 3, 0), (1, 1, 0)], "voice"),
        *with_counts([(0, 0, 0)], "picture"),
    ]
    assert list(tie_rates(pairs)) == ["sync"] and tie_rates(pairs)["sync"] >= 0.5
    assert tie_shares(pairs) == {"sync": 0.5, "voice": 1.0}
    assert pairs[-1].label("picture") is None
