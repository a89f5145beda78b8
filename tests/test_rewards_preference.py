"""The preference reward: probabilities by hand, weights recovered from votes of a known model, and its use as
a reward."""

import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.catalog import CATALOG
from rewards.preference import PreferenceModel, PreferenceReward, log_probabilities
from rewards.preference_fit import PairVotes, PreferenceConfig, _likelihood, fit_preference
from rewards.recipes.preference import check_features
from rewards.rubric import Rubric
from rewards.types import Clip, Score

FEATURES = ("sync_mini", "intelligibility_pocketsphinx", "snr_estimate_db")
TRUE = np.array([1.2, -0.6, 0.0])


def drawn(count, *, weights=TRUE, tie=0.7, side=0.0, seed=0, raters=None, rater_pull=None):
    """Votes of the model itself: a logistic utility difference, Same where it stays below `tie`."""
    rng = np.random.default_rng(seed)
    first, second = rng.standard_normal((2, count, len(weights)))
    sides = rng.choice([1, -1], count)
    pull = side * sides + (0 if rater_pull is None else np.asarray(rater_pull)[raters] * sides)
    latent = (first - second) @ weights + pull + rng.logistic(size=count)
    labels = np.where(np.abs(latent) <= tie, 0, np.sign(latent)).astype(int)
    return PairVotes(first, second, labels, sides, raters)


def model(**changed):
    values = {
        "features": ("a", "b.part"),
        "mean": (1.0, 2.0),
        "scale": (2.0, 0.5),
        "weights": (1.5, -1.0),
        "weight_errors": (0.1, 0.2),
        "tie": math.log(2.0),
        "tie_error": 0.1,
        "side": 0.3,
        "side_error": math.nan,
        "num_votes": 9,
        "skipped": 1,
        "simulated": True,
    }
    return PreferenceModel(**{**values, **changed})


def test_probabilities_by_hand():
    # theta 2: strengths 3 and 1 give 3 / (3 + 2), 1 / (1 + 2 * 3), and a tie with the rest
    found = np.exp(log_probabilities(np.array([math.log(3.0)]), math.log(2.0)))[0]
    assert np.allclose(found, [3 / 5, 1 - 3 / 5 - 1 / 7, 1 / 7])
    equal = np.exp(log_probabilities(np.zeros(1), math.log(2.0)))[0]
    assert np.allclose(equal, 1 / 3)


@settings(max_examples=50, deadline=None)
@given(m=st.floats(-500, 500), tie=st.floats(0, 400))
def test_probabilities_sum_to_one_and_swap_with_the_clips(m, tie):
    forth, back = (np.exp(log_probabilities(np.array([sign * m]), tie))[0] for sign in (1, -1))
    assert abs(forth.sum() - 1) < 1e-9
    assert np.allclose(forth, back[::-1], atol=1e-12)


def test_the_tie_grows_with_theta_and_is_gone_at_one():
    ties = [np.exp(log_probabilities(np.array([0.4]), tie))[0, 1] for tie in (0.0, 0.5, 1.0, 2.0)]
    assert ties[0] == 0.0 and sorted(ties) == ties and ties[3] > 0.7


def test_slopes_and_curvatures_are_those_of_the_likelihood():
    rng = np.random.default_rng(1)
    m, labels, tie, step = rng.standard_normal(30), rng.choice([1, 0, -1], 30), 0.8, 1e-5

    def at(shift, tie_shift=0.0):
        return _likelihood(m + shift, tie + tie_shift, labels)

    _, slope_m, slope_tie, (mm, m_tie, tie_tie) = at(0.0)
    assert np.isclose(slope_m.sum(), (at(step)[0] - at(-step)[0]) / (2 * step), rtol=1e-6)
    assert np.isclose(slope_tie.sum(), (at(0, step)[0] - at(0, -step)[0]) / (2 * step), rtol=1e-6)
    assert np.allclose(mm, -(at(step)[1] - at(-step)[1]) / (2 * step), atol=1e-8)
    assert np.allclose(m_tie, -(at(0, step)[1] - at(0, -step)[1]) / (2 * step), atol=1e-8)
    assert np.allclose(tie_tie, -(at(0, step)[2] - at(0, -step)[2]) / (2 * step), atol=1e-7)


@pytest.mark.parametrize("seed", range(4))
def test_known_weights_ties_and_side_come_back_within_their_errors(seed):
    votes = drawn(3000, side=0.4, seed=seed)
    found = fit_preference(FEATURES, votes, PreferenceConfig(), simulated=True)
    raw = np.array(found.weights) / found.scale
    assert np.all(np.abs(raw - TRUE) < 3 * np.array(found.weight_errors) / found.scale)
    assert abs(found.tie - 0.7) < 3 * found.tie_error
    assert abs(found.side - 0.4) < 3 * found.side_error
    assert max(found.weight_errors) < 0.1 and found.num_votes == 3000


def test_errors_are_the_spread_over_repeated_sets_of_votes():
    fits = [
        fit_preference(FEATURES, drawn(400, seed=seed), PreferenceConfig(l2=1e-3, folds=401), simulated=True)
        for seed in range(60)
    ]
    spread = np.std([np.array(fit.weights) / fit.scale for fit in fits], axis=0)
    told = np.mean([np.array(fit.weight_errors) / fit.scale for fit in fits], axis=0)
    assert np.all(np.abs(spread / told - 1) < 0.3)  # 3 standard errors of a spread over 60


def test_raters_with_pulls_of_their_own_do_not_bend_the_weights():
    raters = np.arange(2000) % 4
    votes = drawn(2000, seed=5, raters=raters, rater_pull=[2.5, -1.5, 1.5, -2.5])
    given_raters = dataclasses.replace(votes, raters=raters.tolist())
    without = fit_preference(
        FEATURES, dataclasses.replace(votes, raters=None), PreferenceConfig(), simulated=True
    )
    found = fit_preference(FEATURES, given_raters, PreferenceConfig(rater_side_sd=2.0), simulated=True)
    errors = [abs(fit.weights[0] / fit.scale[0] - TRUE[0]) for fit in (found, without)]
    assert errors[0] < 3 * found.weight_errors[0] < errors[1]


def test_held_out_figures_beat_chance_and_every_single_feature_and_noise_alone_does_not():
    held_out = fit_preference(FEATURES, drawn(1500, seed=6), PreferenceConfig(), simulated=True).held_out
    assert held_out is not None and held_out.votes == 1500
    assert held_out.log_likelihood > held_out.chance_log_likelihood + 0.05
    for feature, (log_likelihood, accuracy) in held_out.single.items():
        assert held_out.log_likelihood > log_likelihood, feature
        assert held_out.accuracy > accuracy, feature
    noise = fit_preference(
        FEATURES, drawn(1500, weights=np.zeros(3), seed=6), PreferenceConfig(), simulated=True
    ).held_out
    assert noise is not None and abs(noise.accuracy - 0.5) < 0.05
    assert noise.log_likelihood < noise.chance_log_likelihood + 0.005


def test_a_group_is_never_in_training_and_test():
    # answers by heart: each pair of one prompt occurs ten times with the prompt's own random answer
    rng = np.random.default_rng(7)
    first, second = np.repeat(rng.standard_normal((2, 12, 10)), 10, axis=1)
    labels = np.repeat(rng.choice([1, -1], 12), 10)
    names = [f"f{index}" for index in range(10)]
    config = PreferenceConfig(l2=1e-3, folds=4)
    leaking = fit_preference(names, PairVotes(first, second, labels), config, simulated=True).held_out
    apart = fit_preference(
        names,
        PairVotes(first, second, labels, groups=np.repeat(range(12), 10).tolist()),
        config,
        simulated=True,
    ).held_out
    assert leaking is not None and apart is not None
    assert leaking.accuracy > 0.95 > 0.8 > apart.accuracy


def test_separable_votes_do_not_diverge_and_no_tie_means_theta_one():
    first = np.linspace(-1, 1, 40)[:, None]
    votes = PairVotes(first, -first, np.where(first[:, 0] > 0, 1, -1))
    found = fit_preference(["a"], votes, PreferenceConfig(), simulated=True)
    assert 0.5 < found.weights[0] < 10 and found.theta == 1.0 and math.isnan(found.tie_error)
    assert found.probabilities(first, -first)[:, 1].max() == 0.0
    looser = fit_preference(["a"], votes, PreferenceConfig(l2=0.01), simulated=True)
    assert found.weights[0] < looser.weights[0] < 100


def test_the_maximum_is_where_the_penalised_gradient_vanishes():
    votes = drawn(300, seed=8)
    found = fit_preference(FEATURES, votes, PreferenceConfig(l2=4.0), simulated=True)
    design = (votes.first - votes.second) / found.scale
    assert votes.sides is not None
    _, slope, slope_tie, _ = _likelihood(
        design @ found.weights + found.side * votes.sides, found.tie, votes.labels
    )
    assert np.abs(slope @ design - 4.0 * np.array(found.weights)).max() < 1e-3
    assert abs(slope_tie.sum()) < 1e-3 and abs((slope * votes.sides).sum()) < 1e-3


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000))
def test_swapping_clips_or_shuffling_votes_changes_nothing(seed):
    votes = drawn(120, seed=seed)
    assert votes.sides is not None
    rng = np.random.default_rng(seed)
    swap, order = rng.random(120) < 0.5, rng.permutation(120)
    first, second = (
        np.where(swap[:, None], votes.second, votes.first),
        np.where(swap[:, None], votes.first, votes.second),
    )
    sign = np.where(swap, -1, 1)
    other = PairVotes(first, second, votes.labels * sign, votes.sides * sign).rows(order)
    config = PreferenceConfig(folds=121)
    one, two = (fit_preference(FEATURES, given, config, simulated=True) for given in (votes, other))
    assert np.allclose([*one.weights, one.tie, one.side], [*two.weights, two.tie, two.side], atol=1e-5)


def test_units_of_a_feature_do_not_matter_and_one_without_contrast_weighs_nothing():
    votes = drawn(300, seed=9)
    scaled = dataclasses.replace(
        votes, first=votes.first * [1e3, 1, 0] + 5, second=votes.second * [1e3, 1, 0] + 5
    )
    one, two = (
        fit_preference(FEATURES, given, PreferenceConfig(), simulated=True) for given in (votes, scaled)
    )
    assert np.allclose(two.weights[:2], one.weights[:2], atol=0.05)
    assert two.weights[2] == 0.0


def test_a_vote_on_a_clip_that_could_not_be_scored_is_left_out_and_counted():
    votes = drawn(200, seed=10)
    spoilt = votes.first.copy()
    spoilt[:50, 1] = np.nan
    found = fit_preference(
        FEATURES, dataclasses.replace(votes, first=spoilt), PreferenceConfig(), simulated=True
    )
    rest = fit_preference(FEATURES, votes.rows(np.arange(50, 200)), PreferenceConfig(), simulated=True)
    assert (found.skipped, found.num_votes) == (50, 150)
    assert found.weights == rest.weights


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"labels": np.zeros(20, int)}, "all 20 votes are ties"),
        ({"first": np.full((20, 3), np.nan)}, "none of 20 votes has all of sync_mini, "),
        ({"first": np.ones((20, 3)), "second": np.ones((20, 3))}, "no feature differs"),
        ({"labels": np.full(20, 2)}, "labels must be 1, 0 or -1"),
        ({"labels": np.ones(19, int)}, r"must be \[19, F\]"),
        ({"raters": ["a"] * 20, "sides": None}, "give the sides too"),
        ({"groups": ["a"]}, "1 groups for 20 labels"),
    ],
)
def test_bad_votes_are_one_line(changed, message):
    with pytest.raises(ValueError, match=message) as error:
        fit_preference(
            FEATURES, dataclasses.replace(drawn(20), **changed), PreferenceConfig(), simulated=True
        )
    assert "\n" not in str(error.value)


def test_a_model_survives_the_disk_and_a_damaged_one_is_named(tmp_path):
    found = fit_preference(FEATURES, drawn(100), PreferenceConfig(), simulated=True)
    found.save(tmp_path / "new" / "model.json")
    assert PreferenceModel.load(tmp_path / "new" / "model.json") == found
    content = json.loads((tmp_path / "new" / "model.json").read_text())
    assert content["simulated"] is True and content["held_out"]["votes"] == 100
    for damage in (
        {"weights": [1.0]},
        {"format": "other"},
        {"surprise": 1},
        {"tie": None},
        {"mean": ["x", 0, 0]},
        {"simulated": "no"},
    ):
        (tmp_path / "bad.json").write_text(json.dumps({**content, **damage}))
        with pytest.raises(ValueError, match=r"bad\.json: .*fit it again") as error:
            PreferenceModel.load(tmp_path / "bad.json")
        assert "\n" not in str(error.value)
    with pytest.raises(FileNotFoundError, match=r"gone\.json: no such file"):
        PreferenceModel.load(tmp_path / "gone.json")


class Fixed:
    """A reward whose answers are known."""

    def __init__(self, name, scores):
        self.name, self.scores = name, scores

    def score(self, clips):
        return [self.scores[int(clip.name)] for clip in clips]


def clips(count):
    return [Clip(waveform=None, sample_rate_hz=16_000, name=str(index)) for index in range(count)]


REWARDS = [
    Fixed("a", [Score(3.0, seconds=0.1), Score(1.0), Score(math.nan, "silent")]),
    Fixed(
        "b",
        [Score(9.0, parts={"part": 1.0}, seconds=0.2), Score(9.0, parts={"part": 3.0}), Score(9.0, parts={})],
    ),
]


def test_the_reward_is_the_utility_with_its_terms_and_nan_with_every_reason():
    good, bad, missing = PreferenceReward(REWARDS, model()).score(clips(3))
    assert (good.value, dict(good.parts)) == (1.5 + 2.0, {"a": 1.5, "b.part": 2.0})
    assert bad.value == pytest.approx(-2.0)
    assert math.isnan(missing.value) and missing.reason == "a: silent; b.part: no part"
    assert good.seconds == pytest.approx(0.3)


def test_the_reward_can_be_weighed_in_a_rubric_and_a_batch_permutes():
    reward = PreferenceReward(REWARDS, model())
    assert (
        reward.name == "preference_simulated"
        and PreferenceReward(REWARDS, model(simulated=False)).name == "preference"
    )
    scores = reward.score(clips(3))
    assert reward.score(clips(3)[::-1])[::-1][:2] == scores[:2]
    totals = (
        Rubric.from_config({"preference_simulated": {}})
        .total({"preference_simulated": scores}, ["p"] * 3)
        .totals
    )
    assert [total.value for total in totals[:2]] == pytest.approx([1.0, -1.0]) and math.isnan(totals[2].value)


@pytest.mark.parametrize("feature", ["sync_judge", "sync_judge.rho_zero", "wer_pocketsphinx_judge"])
def test_a_judge_is_refused(feature):
    with pytest.raises(ValueError, match=f"{feature}' is a judge") as error:
        check_features(["a", feature], CATALOG)
    assert "\n" not in str(error.value)


def test_a_reward_that_the_model_needs_is_named():
    with pytest.raises(ValueError, match="needs 'b'; did you mean 'a'"):
        PreferenceReward(REWARDS[:1], model())
    with pytest.raises(ValueError, match="'b' was not scored"):
        model().scores({"a": [Score(1.0)]})


@pytest.mark.parametrize(
    "changed",
    [
        {"weights": (1.0,)},
        {"scale": (0.0, 1.0)},
        {"tie": -0.1},
        {"mean": (math.inf, 0.0)},
        {"features": ("a", "a")},
    ],
)
def test_an_impossible_model_is_refused(changed):
    with pytest.raises(ValueError, match="preference model: "):
        model(**changed)
