import math

import numpy as np
import pytest
from gsb_votes import vote
from hypothesis import given
from hypothesis import strategies as st

from finetune.gsb.raters import DropRule, agreement, answer_counts, check_raters, first_votes, kept_votes

# Krippendorff, Computing Krippendorff's Alpha-Reliability (2011), example C: 4 observers, 12 units, 5
# classes, gaps
PUBLISHED = """
1 2 3 3 2 1 4 1 2 . . .
1 2 3 3 2 2 4 1 2 5 . 3
. 3 3 3 2 3 4 2 2 5 1 .
1 2 3 3 2 4 4 1 2 5 1 .
"""


def published_counts():
    columns = zip(*(line.split() for line in PUBLISHED.strip().splitlines()), strict=True)
    return np.array([[column.count(str(label)) for label in range(1, 6)] for column in columns])


def test_published_example():
    found = agreement(published_counts())
    assert found is not None and (found.items, found.raters) == (11, 4)
    assert found.krippendorff_alpha == pytest.approx(0.743, abs=5e-4)  # as printed there
    # Gwet, Handbook of Inter-Rater Reliability: the same table
    assert (found.gwet_ac1, found.fleiss_kappa) == pytest.approx((0.77544, 0.76117), abs=1e-5)


def test_fleiss_original_form_by_hand():
    counts = np.array([[3, 0, 0], [0, 3, 0], [2, 1, 0], [0, 1, 2]])
    share = np.array([5, 5, 2]) / 12
    observed, chance = (1 + 1 + 1 / 3 + 1 / 3) / 4, float((share**2).sum())
    found = agreement(counts)
    assert found is not None
    assert (found.observed, found.fleiss_kappa) == pytest.approx(
        (observed, (observed - chance) / (1 - chance))
    )
    by_gwet = float((share * (1 - share)).sum() / 2)
    assert found.gwet_ac1 == pytest.approx((observed - by_gwet) / (1 - by_gwet))


def test_fleiss_agrees_with_statsmodels():
    inter_rater = pytest.importorskip("statsmodels.stats.inter_rater")
    counts = np.random.default_rng(0).multinomial(5, [0.5, 0.3, 0.2], size=20)
    found = agreement(counts)
    assert found is not None and found.fleiss_kappa == pytest.approx(inter_rater.fleiss_kappa(counts))


def test_chance_and_certainty():
    guessed = agreement(np.random.default_rng(0).multinomial(3, [1 / 3] * 3, size=4000))
    assert guessed is not None
    assert (guessed.krippendorff_alpha, guessed.fleiss_kappa, guessed.gwet_ac1) == pytest.approx(
        (0, 0, 0), abs=0.03
    )
    certain = agreement(np.array([[3, 0, 0], [0, 0, 2]]))
    assert certain is not None and (certain.krippendorff_alpha, certain.gwet_ac1, certain.fleiss_kappa) == (
        1,
        1,
        1,
    )


def test_where_ties_dominate_only_ac1_says_so():
    found = agreement(np.array([[0, 3, 0]] * 48 + [[1, 2, 0], [0, 2, 1]]))
    assert found is not None and found.gwet_ac1 > 0.95 and found.krippendorff_alpha < 0.1
    only = agreement(np.array([[0, 3, 0]] * 5))
    assert (
        only is not None
        and only.gwet_ac1 == 1
        and math.isnan(only.krippendorff_alpha)
        and only.as_json()["fleiss_kappa"] is None
    )


def test_one_vote_per_item_is_no_agreement():
    assert agreement(np.array([[1, 0, 0], [0, 1, 0]])) is None
    assert agreement(np.zeros((0, 3))) is None


@given(
    st.lists(st.tuples(*[st.integers(0, 3)] * 3).filter(lambda row: sum(row) > 1), min_size=2, max_size=8),
    st.permutations(range(3)),
)
def test_names_of_classes_and_order_of_items_do_not_matter(rows, order):
    counts = np.array(rows)
    here, there = agreement(counts), agreement(counts[::-1, order])
    assert here is not None and there is not None
    for name in ("krippendorff_alpha", "fleiss_kappa", "gwet_ac1"):
        assert getattr(here, name) == pytest.approx(getattr(there, name), nan_ok=True)


def test_answers_are_counted_from_the_models_not_the_sides():
    swapped = vote("right", user="v", left="base", right="ours")
    votes = [vote("left"), swapped, vote("tie", user="w"), vote("left", axis="sync")]
    assert sorted(answer_counts(votes).tolist()) == [[0, 0, 1], [0, 1, 2]]


def test_the_first_answer_counts():
    second = vote("right", left="base", right="ours", repeat=1)
    first = vote("right")
    check = vote("left", case="x", right="late", attention=True)
    assert first_votes([second, check, first]) == [first]
    assert first_votes([second]) == [second]


def repeats(consistent, total, user="u"):
    """A rater's first answers, all for ours on the left, and swapped repeats of which `consistent` agree."""
    votes = [vote("left", user=user, case=f"c{i}") for i in range(total)]
    again = ["right" if i < consistent else "left" for i in range(total)]
    return votes + [
        vote(choice, user=user, case=f"c{i}", left="base", right="ours", repeat=1)
        for i, choice in enumerate(again)
    ]


def test_self_consistency_takes_swapped_repeats_only():
    same_side = vote("right", case="c0", repeat=2)
    (found,) = check_raters([*repeats(6, 8), same_side])
    assert (found.votes, found.swapped_repeats, found.same_answer, found.dropped) == (8, 8, 6, "")


def test_raters_are_dropped_by_the_rule_alone():
    rule = DropRule()
    attentive = [
        vote(choice, user="bad", case=f"a{i}", right="late", attention=True)
        for i, choice in enumerate(["left", "tie", "right"])
    ]
    votes = [
        *repeats(3, 8, "fickle"),
        *repeats(4, 8, "steady"),
        *repeats(0, rule.min_repeats - 1, "short"),
        vote(user="bad"),
        *attentive,
    ]
    checks = {check.user_id: check for check in check_raters(votes, rule)}
    assert checks["fickle"].dropped == "gave the same answer in 3 of 8 swapped repeats"
    assert checks["bad"].dropped == "passed 1 of 3 attention checks" and checks["bad"].votes == 1
    assert checks["steady"].dropped == checks["short"].dropped == ""
    assert {kept.user_id for kept in kept_votes(votes, list(checks.values()))} == {"steady", "short"}


def test_side_bias_is_measured_not_punished():
    (found,) = check_raters(
        [vote("left", case=str(i)) for i in range(9)] + [vote("right", case="r"), vote("tie", case="t")]
    )
    assert (found.left_share, found.ties, found.dropped) == (0.9, 1, "") and found.side_p == pytest.approx(
        22 / 1024
    )
    (silent,) = check_raters([vote("tie")])
    assert math.isnan(silent.left_share) and silent.as_json()["side_p"] is None
