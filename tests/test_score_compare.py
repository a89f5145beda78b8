"""`nava compare`: pairs, intervals and directions against closed forms and an independent bootstrap."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap

from experiments.cli import main
from experiments.scoring.compare import ScoredSet, compare_sets, direction, read_set
from rewards.types import Score


class Buzz:
    name = "buzz"
    lower_is_better = True

    def score(self, clips):
        return [Score(0.0)]


PLUGIN = f"{__name__}:Buzz"


def row(clip, value, group="", reward="snr_estimate_db", reason="", parts=None, **more):
    """A row of `nava score`; `group` is the prompt too."""
    score = {"value": value, "reason": reason, "parts": parts or {}, "text": "", "seconds": 0.0}
    return {"clip": clip, "config": "c", "prompt": group, "group": group, "scores": {reward: score}, **more}


def scored(rows, path="a.jsonl"):
    return ScoredSet(Path(path), {one["clip"]: one for one in rows})


def found_of(a, b, name="snr_estimate_db", **options):
    metrics = {one.metric: one for one in compare_sets(scored(a), scored(b, "b.jsonl"), **options).metrics}
    return metrics[name]


values = st.lists(st.floats(-50, 50) | st.none(), min_size=2, max_size=12)


@settings(max_examples=30, deadline=None)
@given(values, values, st.integers(1, 8), st.sampled_from(["name", "prompt"]))
def test_with_itself_it_is_0_and_swapped_it_is_negated(ours, theirs, num_groups, by):
    def rows(column):
        return [
            row(f"c{i}", value, f"p{i % num_groups}", reason="" if value is not None else "no")
            for i, value in enumerate(column)
        ]

    a, b = rows(ours), rows(theirs)
    same = found_of(a, a, by=by).difference
    assert same.n == 0 or same.mean == 0
    if same.clusters and same.clusters >= 6:
        assert (same.low, same.high) == (0, 0)
    elif same.n:
        assert math.isnan(same.low) and math.isnan(same.high)
    there, back = found_of(a, b, by=by), found_of(b, a, by=by)
    assert there.difference.n == back.difference.n and there.difference.unscored == back.difference.unscored
    expected = (-back.difference.mean, -back.difference.high, -back.difference.low)
    measured = (there.difference.mean, there.difference.low, there.difference.high)
    assert measured == pytest.approx(expected, abs=1e-9, nan_ok=True)
    assert there.difference.mean == pytest.approx(there.mean_b - there.mean_a, abs=1e-9, nan_ok=True)


def test_the_interval_is_that_of_an_independent_paired_bootstrap():
    rng = np.random.default_rng(0)
    a = rng.normal(0, 3, 60)
    b = a + rng.normal(0.5, 0.4, 60)
    found = found_of([row(f"{i}", v) for i, v in enumerate(a)], [row(f"{i}", v) for i, v in enumerate(b)])
    other = bootstrap((b - a,), np.mean, method="percentile", n_resamples=5000, rng=np.random.default_rng(1))
    assert found.difference.mean == pytest.approx((b - a).mean())
    assert found.difference.low == pytest.approx(other.confidence_interval.low, abs=0.03)
    assert found.difference.high == pytest.approx(other.confidence_interval.high, abs=0.03)
    assert found.verdict == "better" and found.higher_is_better


def test_clips_of_one_prompt_are_drawn_together():
    """Copies of each clip add no information: the interval stays; clips by themselves would shrink it."""
    a = [row(f"{i}-{k}", float(i % 5), f"p{i}") for i in range(12) for k in range(4)]
    b = [row(f"{i}-{k}", float(i % 7), f"p{i}") for i in range(12) for k in range(4)]
    whole = found_of(a, b).difference
    once = found_of(a[::4], b[::4]).difference
    assert (whole.mean, whole.low, whole.high) == pytest.approx((once.mean, once.low, once.high))
    assert (whole.n, once.n) == (48, 12)


@pytest.mark.parametrize("by", ["name", "prompt"])
def test_one_prompt_is_no_evidence_however_many_clips_answer_it(by):
    """Noise on both sides, whose means differ by chance: every draw of the one prompt is the same."""
    rng = np.random.default_rng(3)
    a, b = ([row(f"c{i}", value, "p") for i, value in enumerate(rng.normal(20, 5, 8))] for _ in "ab")
    found = found_of(a, b, by=by)
    assert (found.verdict, found.prompts) == ("one prompt", 1)
    told = found.as_json()
    assert (told["low"], told["high"], told["prompts"]) == (None, None, 1)
    assert told["difference"] == pytest.approx(found.mean_b - found.mean_a, abs=1e-5)


@pytest.mark.parametrize(
    ("count", "verdict"), [(2, "too few prompts"), (5, "too few prompts"), (6, "better")]
)
def test_few_prompts_that_agree_may_do_so_by_chance(count, verdict):
    a = [row(f"c{i}", 0.0, f"p{i}") for i in range(count)]
    found = found_of(a, [row(f"c{i}", 10.0 + i % 2, f"p{i}") for i in range(count)])
    assert (found.verdict, found.prompts) == (verdict, count)
    assert found.difference.low < found.difference.mean < found.difference.high
    equal = found_of(a, [row(f"c{i}", 10.0, f"p{i}") for i in range(count)])
    assert math.isnan(equal.difference.low) == (count < 6) and equal.verdict == verdict


def test_noise_is_rarely_told_apart():
    """Of 80 pairs of sets that differ by nothing about one in twenty is told apart, of few prompts none."""
    rng, told = np.random.default_rng(0), {3: 0, 7: 0}
    for count in told:
        for _ in range(80):
            a, b = ([row(f"c{i}", v, f"p{i}") for i, v in enumerate(rng.normal(size=count))] for _ in "ab")
            told[count] += found_of(a, b).verdict in ("better", "worse")
    assert told[3] == 0 and 1 <= told[7] <= 10


def test_clips_of_one_name_and_two_prompts_are_refused_or_said():
    a = [row(f"sample_{i:04}", 1.0, f"a cat {i}") for i in range(7)]
    b = [row(f"sample_{i:04}", 2.0, f"somebody speaks {i}" if i > 1 else f"a cat {i}") for i in range(7)]
    says = r"^[^\n]*sample_0002 answers 'a cat 2' in one and 'somebody speaks 2' in the other, 5 of 7 pairs "
    with pytest.raises(ValueError, match=says + r"differ so[^\n]*--other-prompts\)$"):
        compare_sets(scored(a), scored(b, "b.jsonl"))
    allowed = compare_sets(scored(a), scored(b, "b.jsonl"), other_prompts=True)
    assert allowed.pairs == 7 and "pairs whose two prompts differ: 5 of 7" in allowed.notes
    unknown = [{**one, "prompt": "", "group": ""} for one in b]
    assert compare_sets(scored(a), scored(unknown, "b.jsonl")).notes == []
    groups = [{**one, "group": f"g{i}"} for side in (a, b) for i, one in enumerate(side)]
    with pytest.raises(ValueError, match="g2 answers 'a cat 2'"):
        compare_sets(scored(groups[:7]), scored(groups[7:], "b.jsonl"), by="prompt")


def test_clips_are_drawn_by_the_prompts_of_the_side_that_knows_them():
    """Rewritten anew for every clip, or not known at all, the prompts of one side are those of the other."""
    a = [row(f"c{i}", float(i), f"p{i // 4}") for i in range(8)]
    b = [row(f"c{i}", float(-i), f"rewritten {i}") for i in range(8)]
    for one, other in ((a, b), (b, a), (a, [row(f"c{i}", float(-i)) for i in range(8)])):
        assert found_of(one, other, other_prompts=True).prompts == 2


def test_rows_of_clips_that_are_gone_are_left_out_with_a_note(tmp_path):
    rows = [row("x", 1.0), row("y", 2.0) | {"absent": True}, row("z", 3.0) | {"absent": True}, row("z", 4.0)]
    (tmp_path / "s.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    found = read_set(tmp_path / "s.jsonl")
    assert found.rows.keys() == {"x", "z"} and found.absent == 1
    comparison = compare_sets(found, scored([row(name, 1.0) for name in "xyz"], "b.jsonl"))
    assert (comparison.pairs, comparison.only_b) == (2, 1)
    assert any(
        "s.jsonl: left out 1 rows of clips that are no longer there" in one for one in comparison.notes
    )
    with pytest.raises(ValueError, match=r"no clip is in both \(.*s.jsonl: left out 1 rows"):
        compare_sets(found, scored([row("y", 1.0)]))


def test_by_prompt_every_prompt_counts_once():
    a = [row("x", 1.0, "p"), row("y", 3.0, "p"), row("z", 10.0, "q"), row("n", 5.0), row("o", 1.0, "only")]
    b = [row("k", 4.0, "p"), row("l", 10.0, "q"), row("m", 14.0, "q")]
    comparison = compare_sets(scored(a), scored(b), by="prompt")
    (found,) = comparison.metrics
    assert (found.mean_a, found.mean_b, found.difference.mean) == (6.0, 8.0, 2.0)
    assert (comparison.pairs, comparison.only_a, comparison.only_b, comparison.without_prompt) == (2, 1, 0, 1)


def test_word_errors_are_pooled_and_lower_is_better():
    def words(clip, errors, count):
        return row(clip, errors / count, reward="wer_pocketsphinx", parts={"errors": errors, "words": count})

    a, b = [words("x", 1.0, 2.0), words("y", 0.0, 8.0)], [words("x", 0.0, 2.0), words("y", 0.0, 8.0)]
    pooled = found_of(a, b, "wer_pocketsphinx (errors/words)")
    assert (pooled.mean_a, pooled.mean_b) == (pytest.approx(0.1), 0.0)
    plain = found_of(a, b, "wer_pocketsphinx")
    assert plain.mean_a == 0.25 and plain.higher_is_better is False


def test_what_cannot_be_paired_is_counted():
    a = [row("x", 1.0), row("y", None, reason="silent"), row("z", 2.0)]
    b = [row("x", 2.0), row("y", 1.0), row("w", 2.0), row("v", 2.0)]
    comparison = compare_sets(scored(a), scored(b))
    assert (comparison.pairs, comparison.only_a, comparison.only_b) == (2, 1, 2)
    (found,) = comparison.metrics
    assert (found.difference.n, found.difference.unscored, found.difference.mean) == (1, 1, 1.0)


def test_other_settings_are_refused_or_said():
    a, b = (
        [row("x", 1.0, settings={"snr_estimate_db": "1"})],
        [row("x", 2.0, settings={"snr_estimate_db": "2"})],
    )
    with pytest.raises(ValueError, match="snr_estimate_db scored with other settings"):
        compare_sets(scored(a), scored(b))
    assert "other settings" in compare_sets(scored(a), scored(b), other_settings=True).notes[0]
    alike = row("x", 2.0, settings={"snr_estimate_db": "1"}) | {"config": "with more rewards"}
    assert compare_sets(scored(a), scored([alike])).notes == []
    with pytest.raises(ValueError, match="no reward is in both"):
        compare_sets(scored(a), scored([row("x", 1.0, reward="sync_mini")]))
    with pytest.raises(ValueError, match="no clip is in both"):
        compare_sets(scored(a), scored([row("y", 1.0)]))


@pytest.mark.parametrize(
    ("a", "b", "compared", "says"),
    [
        ({"relative": False, "rubric": "1"}, {"relative": False, "rubric": "1"}, True, ""),
        (
            {"relative": False, "rubric": "1"},
            {"relative": False, "rubric": "2"},
            False,
            "two different rubrics",
        ),
        ({"relative": True, "rubric": "1"}, {"relative": True, "rubric": "1"}, False, "normalise: none"),
        ({}, {}, False, "normalise: none"),  # an older file does not say
    ],
)
def test_totals_are_compared_only_where_they_mean_the_same(a, b, compared, says):
    sides = [
        [row("x", 1.0, total={"value": value, "reason": "", "parts": {}, **more})]
        for value, more in ((1.0, a), (3.0, b))
    ]
    comparison = compare_sets(scored(sides[0]), scored(sides[1]))
    totals = [one for one in comparison.metrics if one.metric == "total"]
    assert bool(totals) == compared and (not compared or totals[0].difference.mean == 2.0)
    assert says in "".join(comparison.notes)


def test_directions_come_from_the_catalog_or_the_class():
    assert direction("snr_estimate_db", {}) is True and direction("picture_noise_judge", {}) is False
    assert (
        direction("sync_judge.sync_d_mini", {}) is False and direction("sync_judge.sync_c_mini", {}) is True
    )
    assert direction("lip_loudness_correlation.lag_frames", {}) is None
    assert direction("buzz", {PLUGIN: "buzz"}) is False and direction("buzz", {}) is None
    assert direction("preference_simulated", {"preference": "preference_simulated"}) is True
    assert direction("buzz", {"no.such:Class": "buzz"}) is None


def test_the_verb_prints_a_table_or_json(tmp_path, capsys):
    for name, shift in (("a", 0.0), ("b", 1.0)):
        rows = [row(f"c{i}", i + shift) for i in range(6)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    assert main(["compare", str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]) == 0
    printed = capsys.readouterr().out
    assert "↑" in printed and "better" in printed and "+1" in printed
    assert "6 pairs of clips, 6 prompts" in printed
    assert main(["compare", str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["prompts"] == found["metrics"][0]["prompts"] == 6
    assert found["metrics"][0]["difference"] == 1.0 and found["metrics"][0]["verdict"] == "better"


def test_wrong_files_are_one_line(tmp_path):
    (tmp_path / "p.jsonl").write_text('{"prompt": "x"}\n')
    with pytest.raises(ValueError, match=r"p.jsonl:1 clip: not a row of scores"):
        read_set(tmp_path / "p.jsonl")
    with pytest.raises(FileNotFoundError):
        read_set(tmp_path / "q.jsonl")


def test_a_later_row_of_a_clip_counts(tmp_path):
    (tmp_path / "s.jsonl").write_text("".join(json.dumps(row("x", value)) + "\n" for value in (1.0, 2.0)))
    assert read_set(tmp_path / "s.jsonl").rows["x"]["scores"]["snr_estimate_db"]["value"] == 2.0
    assert math.isnan(found_of([row("x", None, reason="no")], [row("x", 1.0)]).mean_a)
