"""Verdicts of claims: closed forms, how often luck is taken for a difference, and how often one is seen."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import t

from experiments.studies.claims.verdict import SEEN, Z, compared, over_prompts, over_trainings


def terms(values) -> list[list[list[float]]]:
    return [[[float(value), 1.0] for value in row] for row in np.atleast_2d(values)]


def test_seeds_of_one_clip_have_students_interval():
    ours, theirs = [[0.9], [0.7], [0.8]], [[0.5], [0.5], [0.5]]
    found = over_trainings(terms(ours), terms(theirs), 50)
    half = t.ppf(0.975, 2) * np.std([0.4, 0.2, 0.3], ddof=1) / math.sqrt(3)
    assert (found.mean, found.low, found.high, found.n) == pytest.approx((0.3, 0.3 - half, 0.3 + half, 3))
    assert pytest.approx((1.959964 + 0.841621) / 1.959964, rel=1e-5) == SEEN


def test_prompts_and_seeds_add_as_independent_errors():
    rng = np.random.default_rng(0)
    by_prompt = rng.normal(size=400)
    ours = np.stack([by_prompt + 1.0, by_prompt + 1.2, by_prompt + 1.4])
    found = over_trainings(terms(ours), terms(np.zeros((3, 400))), 2000)
    seeds = t.ppf(0.975, 2) * 0.2 / math.sqrt(3)
    half = math.hypot(seeds, Z * by_prompt.std() / 20)
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.06)


def test_a_prompts_noise_seeds_are_one_cluster():
    """As many copies of the same clips as one likes make no interval narrower."""
    rng = np.random.default_rng(1)
    ours, theirs = rng.normal(size=(1, 60)) + 0.2, rng.normal(size=(1, 60))
    once = over_prompts(terms(ours), terms(theirs), 500)
    often = over_prompts(terms(np.repeat(ours, 9, 0)), terms(np.repeat(theirs, 9, 0)), 500)
    assert (once.mean, once.low, once.high) == pytest.approx((often.mean, often.low, often.high))
    assert once.n == often.n == 60


@pytest.mark.parametrize("of", [over_prompts, over_trainings])
def test_prompts_that_say_the_same_are_one_however_many_they_are(of):
    """Copies of a prompt make no interval narrower, and prompts of their own change nothing."""
    rng = np.random.default_rng(4)
    ours, theirs = rng.normal(size=(2, 40)) + 0.2, rng.normal(size=(2, 40))
    once = of(terms(ours), terms(theirs), 400, range(40))
    assert once == of(terms(ours), terms(theirs), 400)
    copied = terms(np.repeat(ours, 5, 1)), terms(np.repeat(theirs, 5, 1))
    together = of(*copied, 400, np.repeat(np.arange(40), 5).tolist())
    assert (once.mean, once.low, once.high) == pytest.approx((together.mean, together.low, together.high))
    apart = of(*copied, 400)
    assert apart.high - apart.low < once.high - once.low


def test_prompts_that_nobody_could_score_are_not_drawn():
    ours, theirs = [[[1.0, 1.0], [0.9, 1.0], None, [1.1, 1.0]]] * 2, [[[0.4, 1.0]] * 4] * 2
    for of in (over_prompts, over_trainings):
        without = [[row[:2] + row[3:] for row in side] for side in (ours, theirs)]
        assert of(ours, theirs, 300) == of(*without, 300)
        assert of(ours, theirs, 300, "aabc") == of(*without, 300, "aac")


def test_prompts_that_fail_alike_are_not_taken_for_a_difference():
    """24 prompts of 6 words, where the word decides: by prompt more than one in five is told apart."""
    rng, words, wrong = np.random.default_rng(5), np.repeat(np.arange(24), 4), {True: 0, False: 0}
    for _ in range(200):
        moved = rng.normal(size=24)[words][None] + 0.3 * rng.normal(size=(1, 96))
        for known in wrong:
            found = over_prompts(terms(moved), terms(np.zeros_like(moved)), 200, words if known else None)
            wrong[known] += not found.low <= 0 <= found.high
    assert wrong[True] / 200 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 200) < 0.2 < wrong[False] / 200


def test_ratios_are_of_sums_and_unscored_clips_leave_both_sides():
    ours, theirs = [[[1, 2], [0, 4], None]], [[[2, 2], [4, 4], [9, 9]]]
    assert over_prompts(ours, theirs, 50).mean == pytest.approx(1 / 6 - 1.0)
    assert over_prompts(ours, theirs, 50).n == 2
    assert math.isnan(over_prompts([[None]], [[[1, 1]]], 50).mean)
    assert math.isnan(over_trainings([[None], [None]], terms([[1.0], [1.0]]), 50).mean)


@pytest.mark.parametrize(
    ("ours", "up", "trained", "verdict"),
    [
        ([[1.0] * 8] * 3, True, True, "favours"),
        ([[1.0] * 8] * 3, False, True, "against"),
        ([[1.0] * 8], True, True, "one seed"),
        ([[1.0] * 8], True, False, "favours"),
        ([[1.0, -1.0] * 4] * 3, True, False, "not told apart"),
    ],
)
def test_the_verdict_follows_from_interval_and_direction(ours, up, trained, verdict):
    found = compared(terms(ours), terms(np.zeros_like(ours)), up, trained, 300)
    assert found["verdict"] == verdict
    half = (found["high"] - found["low"]) / 2
    assert found["detectable"] == (pytest.approx(SEEN * half, abs=1e-5) if half else None)


def test_nothing_scored_is_no_verdict():
    found = compared([[None, None]], terms([[1.0, 2.0]]), True, False, 20)
    assert (found["mean"], found["verdict"], found["detectable"]) == (None, "not measured", None)


@given(st.lists(st.lists(st.floats(-3, 3), min_size=5, max_size=5), min_size=1, max_size=4), st.booleans())
@settings(max_examples=30, deadline=None)
def test_turned_around_it_is_the_same_with_the_other_sign(rows, trained):
    zeros = terms(np.zeros_like(rows))
    one = compared(terms(rows), zeros, True, trained, 100)
    other = compared(zeros, terms(rows), True, trained, 100)
    expected = (-other["mean"], -other["high"], -other["low"])
    assert (one["mean"], one["low"], one["high"]) == pytest.approx(expected, abs=1e-6)
    opposite = {"favours": "against", "against": "favours"}
    assert other["verdict"] == opposite.get(one["verdict"], one["verdict"])


@pytest.mark.parametrize("prompts_differ", [0.0, 1.0])
def test_three_lucky_seeds_are_not_taken_for_a_difference(prompts_differ):
    """Where nothing differs but luck, of trainings and of prompts, at most one in twenty is told apart; a
    bootstrap over three seeds calls one in four."""
    rng, wrong = np.random.default_rng(2), 0
    for _ in range(300):
        moved = rng.normal(size=(3, 1)) + prompts_differ * rng.normal(size=(1, 12))
        found = over_trainings(terms(moved), terms(np.zeros_like(moved)), 60)
        wrong += not found.low <= 0 <= found.high
    assert wrong / 300 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 300)


def test_a_difference_that_could_have_been_seen_is_seen_four_times_in_five():
    rng, seen, runs = np.random.default_rng(3), 0, 300
    null = rng.normal(size=(1, 50))
    size = compared(terms(null), terms(np.zeros_like(null)), True, False, 2000)["detectable"] / null.std()
    for _ in range(runs):
        moved = rng.normal(size=(1, 50)) + size
        seen += over_prompts(terms(moved), terms(np.zeros_like(moved)), 200).low > 0
    assert abs(seen / runs - 0.8) < 0.1
