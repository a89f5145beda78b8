"""The simulated panel: better clips win, noise and bias do what they say, and every vote is valid, labelled
and reproducible."""

import dataclasses
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from finetune.gsb.pairs import ClipRef, pair_up, read_clips
from finetune.gsb.raters import check_raters, first_votes, kept_votes
from finetune.gsb.simulated_pairs import (
    own_names,
    pairs_between,
    pairs_within,
    votes_before_after,
    votes_for_pairs,
    write_clips,
)
from finetune.gsb.simulated_raters import (
    JUDGES,
    ClipPair,
    JudgeFeature,
    SimulatedRatersConfig,
    check_apart,
    simulated_raters,
    vote,
)
from finetune.gsb.statistics import pair_statistics
from finetune.gsb.votes import AXES, read_votes
from pretrain.jsonl import dump
from rewards.catalog import CATALOG
from rewards.quality.picture_noise import PictureNoise

NAMES = [feature.name for feature in JUDGES]
UNITS = np.array([feature.unit for feature in JUDGES])
EXACT = SimulatedRatersConfig(noise=0, side_bias=0, lapses=0, attention_share=0)


def clip(model, case, clip_id="", sha256=""):
    return ClipRef(clip_id or case, model, case, f"prompt of {case}", None, sha256)


def before_after(count, gap, seed=0, spread=1.0):
    """Clips of two models on the same cases, with scores; `after` is better by `gap` judge units (one or [F])
    on the mean."""
    rng = np.random.default_rng(seed)
    after, before = ([clip(model, f"c{index}") for index in range(count)] for model in ("after", "before"))
    scores = {}
    for index in range(count):
        for model, shift in (("after", gap), ("before", 0.0)):
            values = UNITS * (np.broadcast_to(shift, len(NAMES)) + spread * rng.standard_normal(len(NAMES)))
            scores[model, f"c{index}"] = dict(zip(NAMES, values.tolist(), strict=True))
    return after, before, scores


def votes_of(tmp_path, rows, **rest):
    dump(tmp_path / "votes.jsonl", rows)
    return read_votes(tmp_path / "votes.jsonl", **rest)


def gsb(votes, axis="overall"):
    counted = [vote.preference("after") for vote in first_votes(votes) if vote.axis == axis]
    return float(np.mean(counted))


def test_the_votes_are_valid_public_votes_and_every_one_says_simulated(tmp_path):
    after, before, scores = before_after(40, 0.5)
    found = votes_of(
        tmp_path,
        votes_before_after(SimulatedRatersConfig(), after, before, scores),
        models=("after", "before"),
    )
    assert found.ours == "after" and found.num_simulated == len(found.votes)
    assert all(vote.user_id.startswith("simulated-") for vote in found.votes)
    shown = [vote for vote in found.votes if not vote.attention]
    assert Counter(vote.axis for vote in shown) == dict.fromkeys(AXES, 40 * 3 + 6)
    assert sum(vote.attention for vote in found.votes) == 6


def test_the_better_model_wins_more_the_better_it_is(tmp_path):
    shares = [
        gsb(votes_of(tmp_path, votes_before_after(SimulatedRatersConfig(), *before_after(400, gap))).votes)
        for gap in (-1.0, 0.0, 0.3, 1.0, 3.0)
    ]
    assert shares == sorted(shares)
    assert abs(shares[1]) < 0.15 < shares[2] and shares[3] > 0.6 and shares[4] > 0.9 and shares[0] < -0.5


def test_an_axis_is_answered_by_its_own_judges(tmp_path):
    after, before, scores = before_after(120, np.array([2.0, 0.0, -2.0]))  # better in sync, worse in picture
    votes = votes_of(tmp_path, votes_before_after(SimulatedRatersConfig(), after, before, scores)).votes
    assert gsb(votes, "sync") > 0.7 and gsb(votes, "picture") < -0.7 and abs(gsb(votes, "voice")) < 0.2
    assert 0.0 < gsb(votes, "overall") < gsb(votes, "sync")  # sync counts for more than picture


def test_without_noise_and_bias_the_answer_follows_from_the_judges_and_swapping_sides_does_not_change_it():
    after, before, scores = before_after(60, 0.0)
    config = dataclasses.replace(EXACT, taste_spread=0, manner_spread=0, repeat_share=1.0, tie_width=0.25)
    rows = vote(config, pairs_between(after, before), scores)
    for row in rows:
        gap = (
            scores["after", row["case_id"]]["sync_judge"] - scores["before", row["case_id"]]["sync_judge"]
        ) / 0.15
        if row["axis"] == "sync":
            wanted = "tie" if abs(gap) <= 0.25 else "after" if gap > 0 else "before"
            assert {"left": row["left_model"], "right": row["right_model"], "tie": "tie"}[
                row["choice"]
            ] == wanted
    answers = {}
    for row in rows:
        chosen = "tie" if row["choice"] == "tie" else row[f"{row['choice']}_model"]
        answers.setdefault((row["user_id"], row["case_id"], row["axis"]), set()).add(chosen)
    assert all(len(found) == 1 for found in answers.values())


def test_a_wider_tie_width_makes_more_ties_and_none_makes_none():
    pairs, scores = pairs_between(*before_after(80, 0.3)[:2]), before_after(80, 0.3)[2]
    shares = [
        np.mean(
            [
                row["choice"] == "tie"
                for row in vote(
                    dataclasses.replace(SimulatedRatersConfig(lapses=0), tie_width=width), pairs, scores
                )
            ]
        )
        for width in (0.0, 0.2, 0.6, 100.0)
    ]
    assert shares[0] == 0.0 and shares == sorted(shares) and shares[1] > 0.05 and shares[3] == 1.0


def test_side_bias_pulls_to_the_left_and_balanced_sides_keep_it_out_of_the_result(tmp_path):
    after, before, scores = before_after(150, 0.0, spread=0.5)
    biased = SimulatedRatersConfig(side_bias=0.8, taste_spread=0)
    votes = votes_of(tmp_path, votes_before_after(biased, after, before, scores)).votes
    decided = [vote.choice == "left" for vote in first_votes(votes) if vote.choice != "tie"]
    assert np.mean(decided) > 0.65
    assert abs(gsb(votes)) < 0.12
    fair = votes_of(
        tmp_path, votes_before_after(SimulatedRatersConfig(side_bias=0), after, before, scores)
    ).votes
    assert (
        abs(np.mean([vote.choice == "left" for vote in first_votes(fair) if vote.choice != "tie"]) - 0.5)
        < 0.05
    )


def test_sides_are_balanced_for_each_rater_and_loads_are_equal():
    after, before, scores = before_after(97, 0.0)
    rows = [
        row
        for row in vote(
            SimulatedRatersConfig(axes=("overall",), repeat_share=0, attention_share=0),
            pairs_between(after, before),
            scores,
        )
    ]
    loads = Counter(row["user_id"] for row in rows)
    lefts = Counter(row["user_id"] for row in rows if row["left_model"] == "after")
    assert len(loads) == 12 and max(loads.values()) - min(loads.values()) <= 1
    assert all(abs(2 * lefts[user] - load) <= 1 for user, load in loads.items())
    assert set(Counter(row["case_id"] for row in rows).values()) == {3}


def test_answers_depend_on_the_seed_and_not_on_the_order_of_pairs_or_of_their_clips():
    after, before, scores = before_after(30, 0.2)
    pairs = pairs_between(after, before)
    turned = [ClipPair(pair.second, pair.first) for pair in pairs[::-1]]

    def answers(config, given):
        return {
            tuple(sorted((key, str(value)) for key, value in row.items()))
            for row in vote(config, given, scores)
            if "attention" not in row
        }

    assert answers(SimulatedRatersConfig(), pairs) == answers(SimulatedRatersConfig(), turned)
    assert answers(SimulatedRatersConfig(), pairs) != answers(SimulatedRatersConfig(seed=1), pairs)


def test_repeats_are_swapped_and_attention_checks_are_passed_but_by_raters_who_do_not_look(tmp_path):
    after, before, scores = before_after(200, 0.3)
    careful = votes_of(
        tmp_path,
        votes_before_after(
            SimulatedRatersConfig(repeat_share=0.3, attention_share=0.2), after, before, scores
        ),
    ).votes
    checks = check_raters(careful)
    assert not any(check.dropped for check in checks)
    assert sum(check.attention_passed for check in checks) > 0.95 * sum(
        check.attention_checks for check in checks
    )
    assert all(check.swapped_repeats > 0 for check in checks)
    careless = dataclasses.replace(SimulatedRatersConfig(repeat_share=0.3, attention_share=0.2), lapses=1.0)
    checks = check_raters(votes_of(tmp_path, votes_before_after(careless, after, before, scores)).votes)
    assert sum(bool(check.dropped) for check in checks) > 8


def test_raters_of_different_taste_agree_less_with_each_other_than_raters_of_one_taste():
    after, before, scores = before_after(150, 0.0)

    def agreement(config):
        answers = {}
        for row in vote(config, pairs_between(after, before), scores):
            if row["axis"] == "overall" and not row["repeat"]:
                after_side = "left" if row["left_model"] == "after" else "right"
                answers.setdefault(row["case_id"], []).append(
                    "tie" if row["choice"] == "tie" else row["choice"] == after_side
                )
        return np.mean([len(set(found)) == 1 for found in answers.values()])

    alike = dataclasses.replace(EXACT, taste_spread=0, manner_spread=0)
    assert agreement(alike) == 1.0
    assert agreement(dataclasses.replace(alike, taste_spread=1.5)) < 0.85


def test_what_no_judge_could_score_is_not_asked_and_a_clip_that_alone_failed_loses():
    after, before, scores = before_after(2, 0.0, spread=0.0)
    for model in ("after", "before"):
        scores[model, "c0"]["picture_noise_judge"] = math.nan
    scores["after", "c1"]["intelligibility_pocketsphinx_judge"] = math.nan
    rows = vote(EXACT, pairs_between(after, before), scores)
    assert not [row for row in rows if row["case_id"] == "c0" and row["axis"] == "picture"]
    voice = [row for row in rows if row["case_id"] == "c1" and row["axis"] == "voice"]
    assert voice and all(row[f"{row['choice']}_model"] == "before" for row in voice)
    assert all(row["choice"] == "tie" for row in rows if row["axis"] == "sync")


def test_pairs_of_one_models_own_clips_go_through_export(tmp_path):
    clips = [
        clip("pretrained", f"p{case}", f"p{case}_k{k}", f"{case}{k}" * 32)
        for case in range(6)
        for k in range(4)
    ]
    rng = np.random.default_rng(0)
    scores = {
        (c.model, c.clip_id): dict(
            zip(NAMES, (UNITS * rng.standard_normal(len(NAMES))).tolist(), strict=True)
        )
        for c in clips
    }
    rows, named = votes_for_pairs(SimulatedRatersConfig(), clips, scores, pairs_per_case=3)
    found = votes_of(tmp_path, rows)
    assert found.ours is None and all(row["ours_side"] is None for row in rows if "attention" not in row)
    write_clips(tmp_path / "clips.jsonl", named)
    index = read_clips(tmp_path / "clips.jsonl")
    assert sorted(c.model for c in index) == sorted(f"pretrained#{k}" for k in [0, 1, 2, 3] * 6)
    pairs = pair_up(kept_votes(found.votes, check_raters(found.votes)), index, "votes.jsonl")
    assert len(pairs) == 18 and all(pair.simulated for pair in pairs)
    better = [
        scores["pretrained", p.first.clip_id]["sync_judge"]
        - scores["pretrained", p.second.clip_id]["sync_judge"]
        for p in pairs
    ]
    labels = [pair.label("sync") for pair in pairs]
    assert np.corrcoef(better, [label or 0 for label in labels])[0, 1] > 0.6


@settings(max_examples=20, deadline=None)
@given(clips=st.integers(2, 5), per_case=st.integers(1, 12), seed=st.integers(0, 99))
@example(clips=5, per_case=5, seed=15)
def test_pairs_within_use_all_clips_about_equally_and_never_twice(clips, per_case, seed):
    pairs = pairs_within(own_names([clip("m", "c", f"k{k}") for k in range(clips)]), per_case, seed)
    assert len(pairs) == min(per_case, clips * (clips - 1) // 2) == len({pair.key for pair in pairs})
    used = Counter(one.model for pair in pairs for one in (pair.first, pair.second))
    if per_case >= clips:
        assert len(used) == clips


def test_the_panel_looks_at_judges_and_refuses_what_a_rubric_weighs():
    for name in ("sync_judge", "intelligibility_pocketsphinx_judge"):
        assert CATALOG[name].judge
    assert PictureNoise.name in NAMES and PictureNoise.name.endswith("_judge")
    check_apart(SimulatedRatersConfig(), {"sync_mini": 1.0, "sim_resemblyzer": 0.25, "sync_judge": 0.0})
    for name in ("picture_noise_judge", "sync_judge.rho_zero"):
        with pytest.raises(ValueError, match=f"'{name}' is rewarded, so the panel must not look at it"):
            check_apart(SimulatedRatersConfig(), {name: 1.0})


def test_tastes_differ_and_come_from_the_seed():
    assert simulated_raters(SimulatedRatersConfig()) == simulated_raters(SimulatedRatersConfig())
    assert len({rater.weights for rater in simulated_raters(SimulatedRatersConfig())}) == 12
    assert {rater.weights for rater in simulated_raters(SimulatedRatersConfig(taste_spread=0))} == {
        (1.0, 1.0, 0.5)
    }


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"votes_per_pair": 13}, r"panel\.votes_per_pair: expected 1 to 12"),
        ({"noise": -1.0}, r"panel\.noise: expected a number from 0"),
        ({"lapses": 2.0}, r"panel\.lapses: expected a share"),
        ({"axes": ("overall", "smell")}, r"panel\.axes: unknown 'smell'"),
        ({"features": JUDGES[:1]}, "no feature speaks about 'voice'"),
        ({"features": (JUDGES[0], JUDGES[0])}, "expected distinct judges"),
    ],
)
def test_an_impossible_panel_is_refused_in_one_line(changed, message):
    with pytest.raises(ValueError, match=message) as error:
        SimulatedRatersConfig(**changed)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="unit must not be 0"):
        JudgeFeature("sync_judge", "sync", 0.0)


def test_bad_clips_are_named():
    after, before, scores = before_after(2, 0.0)
    pairs = pairs_between(after, before)
    with pytest.raises(ValueError, match="no scores of clip 'c0' of 'after'"):
        vote(SimulatedRatersConfig(), pairs, {})
    with pytest.raises(ValueError, match="no 'sync_judge' for clip 'c1' of 'before'"):
        vote(SimulatedRatersConfig(), pairs, {**scores, ("before", "c1"): {}})
    with pytest.raises(ValueError, match="is there twice"):
        vote(SimulatedRatersConfig(), [pairs[0], ClipPair(pairs[0].second, pairs[0].first)], scores)
    with pytest.raises(ValueError, match="no pairs"):
        vote(SimulatedRatersConfig(), [], scores)
    with pytest.raises(ValueError, match="on both sides"):
        ClipPair(after[0], after[0])
    with pytest.raises(ValueError, match="do not answer the same case"):
        ClipPair(after[0], before[1])
    with pytest.raises(ValueError, match="no case in common"):
        pairs_between(after[:1], before[1:])
    with pytest.raises(ValueError, match="case 'c0' has 'after' clips of its own"):
        pairs_between([after[0], clip("after", "c0", "other")], before)
    with pytest.raises(ValueError, match="the same case_id"):
        pairs_within(own_names(after), 2, 0)


def test_the_statistics_of_a_clear_improvement_exclude_zero(tmp_path):
    found = votes_of(tmp_path, votes_before_after(SimulatedRatersConfig(), *before_after(60, 0.5)))
    counted = [vote for vote in kept_votes(found.votes, check_raters(found.votes)) if vote.axis == "overall"]
    result = pair_statistics(
        [v.preference("after") for v in counted], [v.user_id for v in counted], [v.case_id for v in counted]
    )
    assert 0 < result.gsb_low < result.gsb < 1
