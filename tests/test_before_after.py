"""Before and after alignment: closed forms of differences and shares closed, intervals that cover, votes, and
what counts as hacking."""

import json
import math
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.report.before_after import before_after, beyond_codec, beyond_from_the_start
from experiments.report.simulated_gsb import simulated_gsb
from experiments.scoring.statistics import bootstrap_closed, bootstrap_difference, bootstrap_mean
from finetune.gsb.simulated_raters import JudgeFeature, SimulatedRatersConfig
from rewards.guardrails import BOUNDS, UNITS, GuardrailLimits

PANEL = SimulatedRatersConfig(features=(JudgeFeature("sync_judge", "sync", 0.15),), axes=("overall", "sync"))
NONE = GuardrailLimits()


def row(index: int, errors: float | None = 0, words=4, flags=(), **scores: Any) -> dict[str, Any]:
    """A clip's row; `errors` are both recognisers', None = could not be scored."""
    parts = {} if errors is None else {"errors": errors, "words": words}
    wer = {
        name: None if errors is None else errors / words
        for name in ("wer_pocketsphinx", "wer_pocketsphinx_judge")
    }
    return {
        "data_id": f"clip-{index:03d}",
        "prompt": f"prompt {index}",
        "scores": {**wer, **scores},
        "parts": {"wer_pocketsphinx": parts, "wer_pocketsphinx_judge": parts},
        "flags": list(flags),
        "guardrails": {"motion": 0.01},
    }


def rows(count: int, errors: float | None = 0, start=0, **scores: Any) -> list[dict[str, Any]]:
    return [row(start + index, errors, **scores) for index in range(count)]


def mean_of(values):
    return list(values), [1.0] * len(values)


def test_share_closed_of_constant_data_is_exact():
    found = before_after(
        rows(10, errors=2, sync_judge=0.8),
        rows(10, errors=1, sync_judge=0.9),
        rows(12, errors=0, sync_judge=1.2),
        NONE,
    )
    words, sync = (found["metrics"][name]["closed"] for name in ("wer_pocketsphinx_judge", "sync_judge"))
    assert words == {"mean": 0.5, "low": 0.5, "high": 0.5, "n": 10}  # (0.5 - 0.25) / (0.5 - 0)
    assert sync == {"mean": 0.25, "low": 0.25, "high": 0.25, "n": 10}  # (0.8 - 0.9) / (0.8 - 1.2)
    assert found["metrics"]["sync_judge"]["difference"]["mean"] == pytest.approx(0.1)
    assert (
        found["metrics"]["sync_judge"]["role"] == "judge"
        and found["metrics"]["wer_pocketsphinx"]["role"] == "reward"
    )


def test_share_closed_interval_covers_the_truth():
    rng, hits = np.random.default_rng(0), 0
    for trial in range(200):
        easy = rng.normal(0, 0.3, 80)  # of the prompt, on both sides
        before, after = 1.0 + easy + rng.normal(0, 0.2, 80), 0.6 + easy + rng.normal(0, 0.2, 80)
        share = bootstrap_closed(mean_of(before), mean_of(after), mean_of(rng.normal(0, 0.3, 60)), trial, 400)
        hits += share.low <= 0.4 <= share.high
    assert 178 <= hits <= 199


def test_pairing_narrows_the_difference():
    rng = np.random.default_rng(0)
    before = rng.normal(0, 1, 100)
    after = before + 0.1 + rng.normal(0, 0.01, 100)
    paired, shuffled = (
        bootstrap_difference(mean_of(values), mean_of(before)) for values in (after, rng.permutation(after))
    )
    assert paired.low > 0.09 and paired.high < 0.11
    assert shuffled.high - shuffled.low > 20 * (paired.high - paired.low)
    assert paired.mean == pytest.approx(shuffled.mean)


def test_wer_is_errors_over_words_within_each_resample():
    before, after = (
        [row(0, errors=4, words=4), row(1, errors=0, words=12)],
        [row(0, errors=0, words=4), row(1, errors=3, words=12)],
    )
    metric = before_after(before, after, rows(2), NONE)["metrics"]["wer_pocketsphinx_judge"]
    assert metric["before"]["mean"] == 0.25 and metric["after"]["mean"] == pytest.approx(3 / 16)
    assert metric["difference"]["mean"] == pytest.approx(-1 / 16)
    both = [([one for part in side for one in [part] * 6]) for side in (before, after)]
    # each of words of its own, so that none are drawn together
    ours, theirs = (
        [{**one, "data_id": f"c{i:02}", "spans": [f"w{i}"]} for i, one in enumerate(side)] for side in both
    )
    found = before_after(ours, theirs, rows(2), NONE)["metrics"]["wer_pocketsphinx_judge"]["difference"]
    longer = np.random.default_rng(1).binomial(12, 0.5, 20_000)  # how many of 12 draws are of the long one
    drawn = (3 * longer - 4 * (12 - longer)) / (12 * longer + 4 * (12 - longer))
    expected = np.quantile(drawn, (0.025, 0.975))
    assert (found["low"], found["high"]) == pytest.approx(tuple(expected), abs=0.03)


def test_no_gap_has_no_share():
    same = mean_of([0.5, 0.6, 0.4, 0.5] * 3)
    assert math.isnan(bootstrap_closed(same, mean_of([0.4, 0.5, 0.3, 0.4] * 3), same).mean)
    assert bootstrap_closed(same, same, mean_of([0.0] * 10)).mean == 0.0


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 2), st.floats(0, 2)), min_size=2, max_size=12),
    st.randoms(use_true_random=False),
)
def test_the_order_of_the_rows_does_not_matter(pairs, shuffle):
    before = [row(i, sync_judge=old) for i, (old, _) in enumerate(pairs)]
    after = [row(i, sync_judge=new) for i, (_, new) in enumerate(pairs)]
    codec = [row(i, sync_judge=1.0 + i) for i in range(3)]
    found = before_after(before, after, codec, NONE)
    for group in (before, after, codec):
        shuffle.shuffle(group)
    assert before_after(before, after, codec, NONE) == found


def test_unscored_prompts_leave_both_sides_and_are_counted():
    before = [row(0, errors=1), row(1, errors=None), row(2, errors=2)]
    after = [row(0, errors=0), row(1, errors=4), row(2, errors=None)]
    metric = before_after(before, after, rows(2), NONE)["metrics"]["wer_pocketsphinx"]
    assert (
        metric["before"]["mean"] == 0.25 and metric["after"]["mean"] == 0.0 and metric["difference"]["n"] == 1
    )
    assert metric["unscored"] == {"before": 1, "after": 1, "codec": 0}


@pytest.mark.parametrize(
    ("metric", "better", "worse"), [("sync_judge", 1.2, 0.8), ("picture_noise_judge", 0.8, 1.2)]
)
def test_beyond_the_codec_is_beyond_its_interval_on_the_better_side(metric, better, worse):
    codec = [row(i, 0, 4, (), **{metric: 1.0 + 0.1 * (-1) ** i}) for i in range(20)]
    made: dict[float, Any] = {value: rows(6, 0, 0, **{metric: value}) for value in (better, worse, 1.0)}
    driven, within = (before_after(made[1.0], made[value], codec, NONE) for value in (better, worse))
    assert driven["metrics"][metric]["beyond_codec"] is True and beyond_codec(driven) == [metric]
    assert within["metrics"][metric]["beyond_codec"] is False and beyond_codec(within) == []
    stayed = before_after(made[better], made[better], codec, NONE)
    assert stayed["metrics"][metric]["beyond_codec"] is True  # said, but not alignment's doing
    assert beyond_codec(stayed) == [] and beyond_from_the_start(stayed) == [metric]
    further = before_after(made[better], rows(6, 0, 0, **{metric: 2 * better - 1}), codec, NONE)
    assert beyond_codec(further) == [metric]


def test_what_the_rubric_weighs_is_a_reward():
    scores: dict[str, Any] = {"lip_loudness_correlation": 0.5}
    for rewarded, role in (((), "watched"), (("lip_loudness_correlation",), "reward")):
        found = before_after(rows(3, **scores), rows(3, **scores), rows(3, **scores), NONE, rewarded)
        assert found["metrics"]["lip_loudness_correlation"]["role"] == role


def test_guardrails_have_units_limits_and_counts():
    assert UNITS.keys() == BOUNDS.keys()
    still = "motion 0 < 0.0001"
    found = before_after(
        rows(3), [row(0, flags=[still]), *rows(2, start=1)], rows(2), GuardrailLimits(max_lufs=-9.0)
    )
    motion, lufs = found["guardrails"]["motion"], found["guardrails"]["loudness_lufs"]
    assert (motion["flagged_before"], motion["flagged_after"], lufs["flagged_after"]) == (0, 1, 0)
    assert (
        motion["low"] == 1e-4
        and motion["high"] is None
        and lufs["high"] == -9.0
        and motion["before"]["n"] == 3
    )
    assert found["flagged"] == {"before": 0, "after": 1, "codec": 0}
    assert lufs["after"]["mean"] is None  # nothing measured it here


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[1:], "clip-000: there only before"),
        (lambda rows: [*rows, rows[0]], "4 clips after alignment with 3 data_ids"),
        (lambda rows: [{**rows[0], "prompt": "another"}, *rows[1:]], "clip-000: another prompt"),
    ],
)
def test_clips_that_do_not_pair_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        before_after(rows(3), change(rows(3)), rows(3), NONE)


def good(closed=0.6, sim=0.0, after_flags=()):
    """An alignment that passes, unless changed."""
    rng = np.random.default_rng(0)
    clear = "intelligibility_pocketsphinx_judge"
    base: list[dict[str, Any]] = [
        {"errors": 2, "sync_judge": 0.8, clear: 0.5, "sim_resemblyzer": 0.6 + 0.01 * value}
        for value in rng.standard_normal(40)
    ]
    real = {"errors": 0, "sync_judge": 1.2, clear: 0.8, "sim_resemblyzer": 0.7}
    codec = [row(i, **real) for i in range(40)]
    before = [row(i, **values) for i, values in enumerate(base)]
    moved = [
        {
            **v,
            "errors": 2 - 2 * closed,
            "sync_judge": 0.8 + 0.4 * closed,
            clear: 0.5 + 0.3 * closed,
            "sim_resemblyzer": v["sim_resemblyzer"] + sim,
        }
        for v in base
    ]
    after = [row(i, **values, flags=after_flags if i == 0 else ()) for i, values in enumerate(moved)]
    return before, after, codec


def test_votes_are_written_marked_and_of_the_right_side(tmp_path):
    before, after, _ = good()
    votes = tmp_path / "votes.jsonl"
    found = simulated_gsb(PANEL, before, after, votes, {"sync_mini": 1.0})
    assert found["simulated"] is True and set(found["gsb"]) == {"overall", "sync"}
    overall = found["gsb"]["overall"]
    assert (
        overall["good"] > 5 * max(overall["bad"], 1) and overall["gsb_low"] > 0 and overall["sign_p"] < 1e-6
    )
    assert found["gsb_all_raters"]["overall"]["raters"] >= overall["raters"]
    written = [json.loads(line) for line in votes.read_text().splitlines()]
    assert all(vote["simulated"] for vote in written)
    assert {vote["left_model"] for vote in written if not vote.get("attention")} == {"aligned", "pretrained"}
    random.Random(0).shuffle(before)
    assert simulated_gsb(PANEL, before, after, votes, {})["gsb"] == found["gsb"]
    assert simulated_gsb(PANEL, after, before, votes, {})["gsb"]["overall"]["gsb_high"] < 0


def test_all_ties_are_an_answer(tmp_path):
    before, _, _ = good()
    blind = SimulatedRatersConfig(
        features=PANEL.features, axes=("overall",), tie_width=1e9, lapses=0, manner_spread=0
    )
    found = simulated_gsb(blind, before, before, tmp_path / "votes.jsonl", {})
    assert found["gsb"] == {} and "are ties" in found["reason"]


def test_raters_look_at_nothing_rewarded_and_at_what_was_scored(tmp_path):
    before, after, _ = good()
    with pytest.raises(ValueError, match="'sync_judge' is rewarded"):
        simulated_gsb(PANEL, before, after, tmp_path / "v.jsonl", {"sync_judge": 1.0})
    blind = SimulatedRatersConfig(
        features=(JudgeFeature("picture_noise_judge", "picture", -0.3),), axes=("overall",)
    )
    with pytest.raises(ValueError, match="no 'picture_noise_judge' for clip"):
        simulated_gsb(blind, before, after, tmp_path / "v.jsonl", {})


def test_interval_of_a_lone_mean_is_as_before():
    assert bootstrap_difference(mean_of([1.0, 2.0, 4.0]), mean_of([0.0, 0.0, 0.0])) == bootstrap_mean(
        [1.0, 2.0, 4.0]
    )
