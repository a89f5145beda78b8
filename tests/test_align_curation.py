"""Curation for alignment: the chosen third stands for all, informative ones first, and beats a random
third."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.curation import (
    CurationConfig,
    contrast,
    curate,
    random_choice,
    shortfall,
    text_features,
    vote_margin,
)


def clusters(rng, sizes=(6, 6, 6), spread=0.05):
    """Points around unit vectors, and which vector each is at."""
    labels = np.repeat(np.arange(len(sizes)), sizes)
    return np.eye(len(sizes))[labels] + spread * rng.standard_normal((len(labels), len(sizes))), labels


def test_one_of_every_cluster_is_chosen_where_a_random_third_often_misses_one():
    features, labels = clusters(np.random.default_rng(0), sizes=(14, 2, 2))
    choice = curate(features, np.ones(len(labels)), CurationConfig(count=3))
    assert sorted(labels[choice.indices]) == [0, 1, 2]
    assert choice.report["curated"]["coverage"] > choice.report["random"]["coverage"]


def test_among_duplicates_the_one_of_most_gain_is_chosen():
    features = np.repeat(np.eye(3), 3, axis=0)
    gains = np.array([0.1, 0.9, 0.2, 0.7, 0.3, 0.4, 0.1, 0.2, 0.8])
    assert curate(features, gains, CurationConfig()).indices == [1, 3, 8]


def test_without_weight_gain_does_not_matter_and_with_all_of_it_a_prompt_of_no_gain_is_left():
    features = np.array([[0.0], [0.1], [0.2], [5.0]])
    gains = np.array([3.0, 1.0, 2.0, 0.0])
    assert 3 in curate(features, gains, CurationConfig(count=2, gain_weight=0.0)).indices
    assert 3 not in curate(features, gains, CurationConfig(count=2, gain_weight=1.0)).indices


@pytest.mark.parametrize(
    ("config", "kept"),
    [({}, 3), ({"share": 0.5}, 5), ({"count": 7}, 7), ({"share": 0.01}, 1), ({"share": 1.0}, 10)],
)
def test_the_budget_is_met_exactly(config, kept):
    rng = np.random.default_rng(1)
    choice = curate(rng.standard_normal((10, 4)), rng.random(10), CurationConfig(**config))
    assert (
        len(set(choice.indices))
        == kept
        == choice.report["chosen"]
        == len(random_choice(10, CurationConfig(**config)))
    )


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(2, 14))
def test_the_order_of_entries_does_not_matter(seed, count):
    rng = np.random.default_rng(seed)
    features, gains, order = (
        rng.integers(0, 3, (count, 2)),
        rng.integers(0, 3, count),
        rng.permutation(count),
    )  # many draws
    chosen = curate(features, gains, CurationConfig()).indices
    permuted = order[curate(features[order], gains[order], CurationConfig()).indices]
    entries = np.column_stack([features, gains])
    assert sorted(entries[chosen].tolist()) == sorted(entries[permuted].tolist())


def test_the_budget_is_met_where_all_are_the_same():
    assert len(curate(np.ones((9, 2)), np.zeros(9), CurationConfig(count=7, gain_weight=1.0)).indices) == 7


def test_the_chosen_third_beats_every_random_one_and_holds_more_than_a_third_of_the_gain():
    rng = np.random.default_rng(2)
    features, _ = clusters(rng, sizes=(20, 20, 20), spread=0.3)
    report = curate(features, rng.random(60), CurationConfig()).report
    assert report["curated"]["objective"] > report["random"]["objective_best"]
    assert report["curated"]["gain_share"] > 0.4
    assert abs(report["random"]["gain_share"] - 1 / 3) < 0.05
    assert report["curated"]["coverage"] > report["random"]["coverage"]


def test_what_could_not_be_scored_is_stood_for_but_never_chosen():
    features = np.array([[0.0], [0.1], [5.0], [5.1], [5.2]])
    choice = curate(features, np.array([1.0, 1.0, np.nan, 0.1, np.nan]), CurationConfig(count=2))
    assert 3 in choice.indices and len(choice.indices) == 2
    assert choice.report["without_gain"] == 2


def test_feature_groups_have_the_same_say_whatever_their_size():
    rng = np.random.default_rng(3)
    wide = np.repeat(rng.standard_normal((12, 1)), 50, axis=1)
    narrow = np.repeat(np.eye(4), 3, axis=0)
    together = curate([wide * 1e-6, narrow], np.ones(12), CurationConfig(count=4)).indices
    scaled = curate([wide, narrow * 1e3], np.ones(12), CurationConfig(count=4)).indices
    assert together == scaled


def test_contrast_is_the_spread_within_the_group_and_nan_for_a_group_that_was_not_scored():
    found = contrast(np.array([1.0, 3.0, 2.0, 2.0, np.nan, 5.0]), ["a", "a", "b", "b", "c", "c"])
    assert (found["a"], found["b"]) == (1.0, 0.0)
    assert np.isnan(found["c"])


def test_margin_of_votes_by_hand():
    found = vote_margin(np.array([[3, 0, 0], [1, 1, 1], [0, 1, 3], [0, 0, 0]]))
    assert found[:3].tolist() == [1.0, 0.0, 0.75]
    assert np.isnan(found[3])


def test_texts_are_alike_by_their_words():
    features = text_features(["one two", "Two one", "three"])
    assert np.allclose(features @ features.T, [[1, 1, 0], [1, 1, 0], [0, 0, 1]])


@pytest.mark.parametrize(
    ("features", "gains", "config", "message"),
    [
        (np.eye(3), np.ones(2), {}, r"features must be \[2, D\]"),
        (np.full((2, 2), np.nan), np.ones(2), {}, "features of entry 0 are not finite"),
        (np.eye(2), np.array([1.0, -1.0]), {}, "gains must be finite and at least 0"),
        (np.eye(2), np.full(2, np.nan), {}, r"1 asked for, 0 of 2 can be chosen \(2 without gain\)"),
        (np.eye(2), np.ones(2), {"count": 3}, "3 asked for, 2 of 2 can be chosen"),
        (np.zeros((0, 2)), np.zeros(0), {}, "at least one"),
        ([], np.ones(2), {}, "no features"),
    ],
)
def test_bad_input_is_one_line(features, gains, config, message):
    with pytest.raises(ValueError, match=message) as error:
        curate(features, gains, CurationConfig(**config))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("config", [{"share": 0.0}, {"share": 20}, {"count": -1}, {"gain_weight": 1.5}])
def test_impossible_settings_are_refused(config):
    with pytest.raises(ValueError, match=r"curation\.[a-z_]+: "):
        CurationConfig(**config)


def test_a_prompt_of_low_rewards_has_most_to_win_and_the_best_nothing():
    found = shortfall(np.array([1.0, 3.0, 5.0, 5.0, np.nan, 2.0, np.nan]), [*"aabbcc", "d"])
    spread = np.std([1.0, 3.0, 5.0, 5.0, 2.0])
    assert (
        found["b"] == 0.0
        and found["a"] == pytest.approx(3.0 / spread)
        and found["c"] == pytest.approx(3.0 / spread)
    )
    assert np.isnan(found["d"])
    assert set(shortfall(np.ones(4), [*"aabb"]).values()) == {0.0}


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.floats(0.1, 10.0), shift=st.floats(-5.0, 5.0))
def test_the_unit_of_a_reward_does_not_change_what_there_is_to_win(seed, scale, shift):
    rng = np.random.default_rng(seed)
    rewards, groups = rng.standard_normal(12), [*"aaabbbcccddd"]
    before, after = shortfall(rewards, groups), shortfall(scale * rewards + shift, groups)
    assert [after[group] for group in before] == pytest.approx(list(before.values()), abs=1e-9)
