"""Balance of sides, cases, orders, repeats and attention checks: properties of a pure plan."""

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.voting.plan import (
    SPOILT,
    Shares,
    chosen_cases,
    left_bits,
    model_pairs,
    plan_tasks,
    quotas,
)
from experiments.voting.power import votes_to_settle

PAIR = ("a", "b")
seeds = st.integers(0, 1000)


DEFAULTS = Shares()


def planned(seed, rater, num_cases, per_rater, shares=DEFAULTS, asked=None, spoilt=()):
    asked = asked or [0] * num_cases
    chosen: dict[tuple[str, str], list[int]] = {
        PAIR: chosen_cases(seed, PAIR, num_cases, per_rater, shares.shared, asked)
    }
    return plan_tasks(seed, rater, num_cases, chosen, shares, spoilt)


@given(seeds, st.integers(0, 40), st.integers(2, 40), st.integers(1, 40))
def test_each_model_is_left_in_half_of_a_raters_votes(seed, rater, num_cases, per_rater):
    votes = [task for task in planned(seed, rater, num_cases, per_rater) if task.kind == "vote"]
    assert len({task.case for task in votes}) == len(votes) == min(per_rater, num_cases)
    lefts = Counter(task.left for task in votes)
    assert abs(lefts["a"] - lefts["b"]) <= 1


@given(seeds, st.integers(1, 20), st.integers(2, 30))
def test_each_case_has_each_model_left_for_half_of_the_raters(seed, raters, num_cases):
    lefts = Counter()
    for rater in range(raters):
        for task in planned(seed, rater, num_cases, num_cases):
            if task.kind == "vote":
                lefts[task.case] += 1 if task.left == "a" else -1
    assert all(abs(value) <= 1 for value in lefts.values())


@given(seeds, st.integers(0, 20), st.integers(4, 30), st.floats(0, 0.5))
def test_a_repeat_swaps_the_sides_and_comes_after_its_vote(seed, rater, num_cases, share):
    tasks = planned(seed, rater, num_cases, num_cases, Shares(repeats=share, attention=0))
    repeats = [place for place, task in enumerate(tasks) if task.kind == "repeat"]
    assert len(repeats) == min(int(np.ceil(share * num_cases)), num_cases // 2)
    for place in repeats:
        first = next(
            i for i, task in enumerate(tasks) if task.kind == "vote" and task.case == tasks[place].case
        )
        assert first + 1 < place, "never the next pair"
        assert (tasks[first].left, tasks[first].right) == (tasks[place].right, tasks[place].left)


@given(seeds, st.integers(0, 20), st.integers(4, 30), st.floats(0.01, 0.4))
def test_attention_checks_change_sides_and_ways(seed, rater, num_cases, share):
    spoilt = [(case, "a", way) for case in range(min(6, num_cases)) for way in SPOILT]
    tasks = planned(seed, rater, num_cases, num_cases, Shares(repeats=0, attention=share), spoilt=spoilt)
    checks = [task for task in tasks if task.kind in SPOILT]
    assert len(checks) == min(int(np.ceil(share * num_cases)), len(spoilt))
    assert all(task.left == task.right == "a" for task in checks)
    assert len({(task.case, task.kind) for task in checks}) == len(checks)
    sides = Counter(task.left_is_spoilt for task in checks)
    assert abs(sides[True] - sides[False]) <= 1
    assert tasks[0].kind == "vote"


@given(seeds, st.integers(2, 25))
def test_every_case_comes_first_once_among_as_many_raters(seed, num_cases):
    firsts = Counter(planned(seed, rater, num_cases, num_cases)[0].case for rater in range(num_cases))
    assert set(firsts.values()) == {1}


@given(seeds, st.integers(2, 40), st.integers(1, 40), st.floats(0, 1))
def test_cases_asked_least_come_first_behind_the_shared_ones(seed, num_cases, num, share):
    counts = Counter()
    for _ in range(6):
        asked = [counts[case] for case in range(num_cases)]
        chosen = chosen_cases(seed, PAIR, num_cases, num, share, asked)
        assert len(set(chosen)) == len(chosen) == min(num, num_cases)
        counts.update(chosen)
    shared = int(np.ceil(share * min(num, num_cases)))
    by_all = sum(count == 6 for count in counts.values())
    assert by_all >= shared


@given(seeds, st.integers(1, 60))
def test_half_of_the_bits_are_set(seed, num_cases):
    assert left_bits(seed, PAIR, num_cases).sum() == (num_cases + 1) // 2


def test_votes_go_to_the_pair_that_is_least_sure():
    pairs = model_pairs(["c", "a", "b"])
    assert pairs == [("a", "b"), ("a", "c"), ("b", "c")]
    variances = dict.fromkeys(pairs, 1.0)
    assert quotas(variances, {}, 30) == dict.fromkeys(pairs, 10)
    assert quotas(variances, {("a", "b"): 100.0}, 10)["a", "b"] == 0
    assert quotas({**variances, ("b", "c"): 0.01}, dict.fromkeys(pairs, 5.0), 10)["b", "c"] == 0


@settings(max_examples=30)
@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 60))
def test_votes_to_settle_follows_its_formula(good, same, bad):
    more = votes_to_settle(good, same, bad)
    n = good + same + bad
    if good == bad:
        assert more is None
        return
    assert more == votes_to_settle(bad, same, good)
    total = (n + more) * ((good - bad) / n) ** 2
    variance = (good + bad) / n - ((good - bad) / n) ** 2
    assert total >= (1.959964 + 0.841621) ** 2 * variance - 1e-6 or more == 0
    assert more == 0 or votes_to_settle(good * 1000, same * 1000, bad * 1000) == 0


def test_votes_to_settle_a_small_difference():
    """GSB 0.05 with 22 % ties: (1.96 + 0.8416)^2 (0.78 - 0.0025) / 0.0025 = 2,441.002, so 2,442 votes."""
    assert votes_to_settle(415, 220, 365) == 2442 - 1000
