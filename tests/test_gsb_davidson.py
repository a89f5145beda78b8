import math

import numpy as np
import pytest
from gsb_votes import simulated_rows, vote
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.gsb.davidson import _Likelihood, count_outcomes, fit_davidson
from finetune.gsb.votes import Vote

TRUE = {"ours": 0.0, "weak": -0.9, "near": 0.2}
COUNT = st.integers(1, 30)


def outcomes_of(rows):
    return count_outcomes(Vote(**{**each, "line": 0}) for each in rows)


@pytest.mark.parametrize(("good", "same", "bad"), [(30, 12, 10), (3, 50, 7), (5, 1, 90)])
def test_one_pair_has_a_closed_form(good, same, bad):
    half = {("ours", "base"): (good, same, bad), ("base", "ours"): (bad, same, good)}
    found = fit_davidson(half, "ours")
    assert found.strength["base"] == pytest.approx(-math.log(good / bad), abs=1e-9)
    assert found.tie == pytest.approx(same / math.sqrt(good * bad), rel=1e-9)
    assert found.side == pytest.approx(0, abs=1e-9) and not found.side_fixed and found.pseudo_wins == ()
    shares = np.array([good, same, bad]) / (good + same + bad)
    assert found.log_likelihood == pytest.approx(
        2 * float((np.array([good, same, bad]) * np.log(shares)).sum())
    )


def test_one_pair_on_fixed_sides_fixes_the_side_effect():
    found = fit_davidson({("ours", "base"): (30, 12, 10)}, "ours")
    assert found.side_fixed and found.side == 0 and math.isnan(found.side_error)
    assert found.strength["base"] == pytest.approx(-math.log(3)) and found.tie == pytest.approx(
        12 / math.sqrt(300)
    )
    assert found.as_json()["standard_error"]["side"] is None
    # delta method for log(G/B) of a multinomial: 1/G + 1/B
    assert found.strength_error["base"] == pytest.approx(math.sqrt(1 / 30 + 1 / 10))


@pytest.mark.parametrize("seed", range(3))
def test_known_parameters_come_back(seed):
    nu, side = 0.8, 0.3
    found = fit_davidson(outcomes_of(simulated_rows(4000, TRUE, nu, side, seed=seed)), "ours")
    for model, strength in TRUE.items():
        assert abs(found.strength[model] - strength) <= 3 * found.strength_error[model]
    assert abs(found.tie - nu) < 3 * found.tie_error and abs(found.side - side) < 3 * found.side_error
    assert max(found.strength_error.values()) < 0.1 and found.tie_error < 0.05 and found.side_error < 0.1


def test_errors_are_the_spread_over_repeated_samples():
    fits = [
        fit_davidson(outcomes_of(simulated_rows(300, TRUE, 0.8, 0.3, seed=seed)), "ours")
        for seed in range(60)
    ]
    for name in ("tie", "side"):
        spread = np.std([getattr(fit, name) for fit in fits], ddof=1)
        assert np.mean([getattr(fit, f"{name}_error") for fit in fits]) == pytest.approx(spread, rel=0.35)


def test_gradient_and_hessian_are_those_of_the_value():
    counts = {
        ("ours", "a"): np.array([4.0, 2, 3]),
        ("a", "ours"): np.array([1.0, 5, 2]),
        ("b", "a"): np.array([2.0, 2, 6]),
    }
    likelihood = _Likelihood(counts, ["ours", "a", "b"], True, True)
    point = np.array([0.3, -0.4, 0.2, 0.1])
    steps = 1e-5 * np.eye(4)
    slopes = [(likelihood.value(point + step) - likelihood.value(point - step)) / 2e-5 for step in steps]
    curves = [
        (likelihood.gradient(point + step) - likelihood.gradient(point - step)) / 2e-5 for step in steps
    ]
    assert likelihood.gradient(point) == pytest.approx(np.array(slopes), abs=1e-6)
    assert likelihood.hessian(point) == pytest.approx(np.array(curves), abs=1e-6)
    assert np.linalg.eigvalsh(likelihood.hessian(point)).min() > 0


@settings(max_examples=25)
@given(st.tuples(*[st.tuples(COUNT, COUNT, COUNT)] * 4))
def test_swapping_sides_turns_only_the_side_effect(counts):
    keys = [("ours", "a"), ("a", "ours"), ("ours", "b"), ("b", "ours")]
    here = fit_davidson(dict(zip(keys, counts, strict=True)), "ours")
    there = fit_davidson(
        {(right, left): count[::-1] for (left, right), count in zip(keys, counts, strict=True)}, "ours"
    )
    assert there.side == pytest.approx(-here.side, abs=1e-7) and there.tie == pytest.approx(here.tie)
    assert there.strength == pytest.approx(here.strength, abs=1e-7)
    assert there.log_likelihood == pytest.approx(here.log_likelihood)


@settings(max_examples=15)
@given(st.randoms(use_true_random=False), st.integers(0, 5))
def test_the_order_of_votes_does_not_matter(random, seed):
    rows = simulated_rows(80, TRUE, 0.8, 0.3, seed=seed)
    moved = random.sample(rows, len(rows))
    here, there = fit_davidson(outcomes_of(rows), "ours"), fit_davidson(outcomes_of(moved), "ours")
    assert here.strength == pytest.approx(there.strength, abs=1e-7) and here.tie == pytest.approx(
        there.tie, abs=1e-7
    )


def test_another_reference_only_shifts_strengths():
    counts = {
        ("ours", "a"): (9, 4, 3),
        ("a", "b"): (5, 5, 5),
        ("b", "ours"): (6, 2, 7),
        ("a", "ours"): (2, 2, 2),
    }
    ours, a = fit_davidson(counts, "ours"), fit_davidson(counts, "a")
    assert {name: value - a.strength["ours"] for name, value in a.strength.items()} == pytest.approx(
        ours.strength, abs=1e-8
    )
    assert ours.log_likelihood == pytest.approx(a.log_likelihood)


def test_a_model_that_never_won_gets_half_a_win_each_way():
    found = fit_davidson({("ours", "base"): (20, 5, 0)}, "ours")
    assert found.pseudo_wins == (("base", "ours"),)
    assert found.strength["base"] == pytest.approx(-math.log(20.5 / 0.5)) and found.tie == pytest.approx(
        5 / math.sqrt(20.5 * 0.5)
    )


def test_votes_that_always_follow_the_side_stay_finite():
    found = fit_davidson({("ours", "base"): (20, 3, 0), ("base", "ours"): (18, 2, 0)}, "ours")
    assert found.pseudo_wins and 2 < found.side < 12 and math.isfinite(found.side_error)
    assert abs(found.strength["base"]) < 1


def test_without_ties_it_is_bradley_terry():
    counts = {
        ("ours", "a"): (9, 0, 3),
        ("a", "ours"): (3, 0, 9),
        ("a", "b"): (7, 0, 7),
        ("b", "a"): (7, 0, 7),
    }
    found = fit_davidson(counts, "ours")
    assert found.tie == 0 and math.isnan(found.tie_error)
    assert found.strength["a"] == pytest.approx(-math.log(3)) and found.strength["b"] == pytest.approx(
        -math.log(3)
    )
    assert found.log_likelihood == pytest.approx(
        18 * math.log(0.75) + 6 * math.log(0.25) + 28 * math.log(0.5)
    )


def test_models_apart_are_named():
    with pytest.raises(ValueError, match="no chain of votes connects c, d with ours"):
        fit_davidson({("ours", "a"): (3, 1, 2), ("c", "d"): (3, 1, 2)}, "ours")
    with pytest.raises(ValueError, match="no vote compares 'ours'"):
        fit_davidson({("c", "d"): (3, 1, 2)}, "ours")
    with pytest.raises(ValueError, match="every vote is a tie"):
        fit_davidson({("ours", "a"): (0, 9, 0)}, "ours")


def test_outcomes_are_counted_by_side():
    votes = [vote("left"), vote("tie"), vote("right", left="base", right="ours"), vote("left")]
    assert count_outcomes(votes) == {("ours", "base"): [2, 1, 0], ("base", "ours"): [0, 0, 1]}
