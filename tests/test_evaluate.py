"""Bootstrap intervals, and a small evaluation from files to JSON."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from clips_to_score import WORDS, decode_nothing, write_clips_to_score
from hypothesis import given
from hypothesis import strategies as st

from experiments.report.evaluate import EvaluateConfig, evaluate, metrics_to_log
from experiments.report.report import report
from experiments.scoring.rows import said_by
from experiments.scoring.sets import ALIGN_JUDGES, ALIGN_SET, MAIN_SET, ScoreConfig, score_sets
from experiments.scoring.statistics import (
    bootstrap_closed,
    bootstrap_difference,
    bootstrap_mean,
    bootstrap_ratio,
)
from pretrain.statistics import cluster_bootstrap

ONE = ScoreConfig(num_processes=1)


def test_interval_of_a_known_mean_covers_it_about_95_of_100_times():
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        interval = bootstrap_mean(rng.normal(1.0, 2.0, 60).tolist(), seed=trial, num_resamples=500)
        hits += interval.low <= 1.0 <= interval.high
    assert 178 <= hits <= 198


@given(st.lists(st.floats(-5, 5), min_size=10, max_size=40))
def test_interval_holds_the_mean_and_lies_in_the_range(values):
    interval = bootstrap_mean(values, num_resamples=200)
    assert interval.mean == pytest.approx(np.mean(values), abs=1e-9)
    assert min(values) - 1e-9 <= interval.low <= interval.high <= max(values) + 1e-9
    assert interval == bootstrap_mean(values, num_resamples=200)


def test_constant_values_have_no_width_and_nan_is_counted_not_averaged():
    interval = bootstrap_mean([0.5, math.nan, *[0.5] * 5])
    assert (interval.mean, interval.low, interval.high) == (0.5, 0.5, 0.5)
    assert (interval.n, interval.unscored) == (6, 1)


def test_ratio_is_of_sums():
    interval = bootstrap_ratio([1, 0, math.nan], [1, 3, 5])
    assert interval.mean == 0.25 and interval.n == 2


@given(st.lists(st.tuples(st.integers(0, 11), st.floats(-3, 3)), max_size=30))
def test_clustered_interval_is_that_of_the_cluster_bootstrap(drawn):
    names, values = zip(*drawn, *((name, 1.0) for name in range(10)), strict=True)
    order = {name: code for code, name in enumerate(dict.fromkeys(names))}
    codes = np.array([order[name] for name in names])
    found = bootstrap_ratio([*values, float("nan")], [1.0] * (len(values) + 1), clusters=[*names, 99])
    assert (found.low, found.high) == pytest.approx(cluster_bootstrap(np.array(values), codes), abs=1e-9)
    assert found.n == len(values) and found.clusters == len(order)


def test_clips_that_fail_together_are_no_more_evidence_than_one():
    values, clusters = [1.0, 0.0, 0.0, 1.0], ["a", "b", "c", "d"]
    once = bootstrap_ratio(values, [1.0] * 4, clusters=clusters)
    six = bootstrap_ratio(values * 6, [1.0] * 24, clusters=clusters * 6)
    alone = bootstrap_ratio(values * 6, [1.0] * 24)
    assert (six.low, six.high) == (once.low, once.high) and six.n == 24
    assert alone.high - alone.low < six.high - six.low


def test_repeated_clips_make_no_difference_or_share_surer():
    rng, ones, said = np.random.default_rng(0), [1.0] * 12, range(12)
    once, twice, goal = ((list(rng.normal(mean, 0.2, 12)), ones) for mean in (1.0, 0.5, 0.0))
    many = [tuple([*part] * 5 for part in terms) for terms in (once, twice, goal)]
    clusters = [*said] * 5
    for together, alone in (
        (bootstrap_difference(*many[:2], clusters=clusters), bootstrap_difference(once, twice)),
        (
            bootstrap_closed(*many, clusters=clusters, reference_clusters=clusters),
            bootstrap_closed(once, twice, goal),
        ),
    ):
        assert (together.mean, together.low, together.high) == pytest.approx(
            (alone.mean, alone.low, alone.high)
        )
        assert (together.n, together.clusters, alone.clusters) == (60, 12, 12)
        assert together.low < together.high


def test_of_a_single_cluster_there_is_no_interval():
    found = bootstrap_mean([0.0, 1.0, 3.0], clusters=["a"] * 3)
    assert math.isnan(found.low) and math.isnan(found.high) and (found.n, found.clusters) == (3, 1)


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        ({"spans": ["one", "two"], "voices": ["a", "b"]}, (("one", "two"), ("a", "b"))),
        ({"spans": ["one"], "group": "g"}, (("one",), ())),
        ({"spans": [], "voices": [], "group": "g", "prompt": "p"}, "g"),
        ({"group": "", "prompt": "p"}, "p"),
        ({"prompt": ""}, "clip-0"),
    ],
)
def test_clips_that_say_the_same_are_known_by_it(known, expected):
    assert said_by({"data_id": "clip-0", **known}) == expected


def test_clips_of_the_same_word_and_voice_are_drawn_together_in_every_set(tmp_path):
    def rows(prompt_set, source):
        for index in range(24):
            word, voice = f"word {index % 4}", f"voice {index % 2}"
            scores = {"sync_judge": 1.0 + index % 4 + (source == "aligned") * (index % 4)}
            yield {
                **{"prompt_set": prompt_set, "source": source, "data_id": f"{index:02d}"},
                **{"prompt": f"p {index}", "spans": [word], "voices": [voice], "scores": scores},
                **{"parts": {}, "guardrails": {"motion": 0.1 * (index % 4)}, "flags": []},
            }

    sides = [(MAIN_SET, "codec"), (MAIN_SET, "generated"), (ALIGN_SET, "generated"), (ALIGN_SET, "aligned")]
    scores = tmp_path / "clips.jsonl"
    scores.write_text("".join(json.dumps(row) + "\n" for side in sides for row in rows(*side)))
    metrics = evaluate(EvaluateConfig(), scores, tmp_path / "demo.json", tmp_path / "alignment.json")
    found = json.loads((tmp_path / "alignment.json").read_text())
    once = bootstrap_mean([1.0, 2.0, 3.0, 4.0]).as_json()
    expected = {**once, "n": 24, "clusters": 4}
    assert metrics["sync_judge"] == {"codec": expected, "generated": expected}
    metric = found["metrics"]["sync_judge"]
    assert (
        metric["before"] == metric["codec"] == metrics["sync_judge_align_held_out"]["generated"] == expected
    )
    moved = bootstrap_mean([0.0, 1.0, 2.0, 3.0]).as_json()
    assert metric["difference"] == {**moved, "n": 24, "clusters": 4}
    assert found["guardrails"]["motion"]["after"]["clusters"] == 4


def test_nothing_scored_is_null_in_json():
    assert bootstrap_mean([math.nan]).as_json() == {"mean": None, "low": None, "high": None, "n": 0}


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Folders of clips to score, and where the metrics go."""
    decode_nothing(monkeypatch)
    return *write_clips_to_score(tmp_path), tmp_path / "reports/demo.json"


def test_evaluate_writes_metrics_and_what_was_heard(files):
    torch.set_num_threads(1)
    metrics = evaluate(EvaluateConfig(), score_sets(ONE, *files[:4], out=files[4].parent), files[4])
    written = json.loads(files[4].read_text())
    assert written == metrics
    wer = metrics["wer_pocketsphinx"]
    assert wer["real"]["mean"] == 0.0 and wer["real"]["n"] == 4
    assert wer["generated"]["n"] == 3 and wer["generated"]["mean"] == pytest.approx(1 / 3, abs=1e-5)
    assert metrics["lip_loudness_correlation"]["codec"]["mean"] > 0.9
    assert metrics["lip_loudness_lag_frames"]["real"]["mean"] == 0.0
    assert set(wer["codec"]) == {"mean", "low", "high", "n"}
    clips = [json.loads(line) for line in files[4].with_name("clips.jsonl").read_text().splitlines()]
    silent = next(clip for clip in clips if clip["data_id"] == "g0")
    assert silent["scores"]["wer_pocketsphinx"] is None and silent["reasons"]["wer_pocketsphinx"] == "silent"
    assert next(clip for clip in clips if clip["data_id"] == "g1")["texts"]["wer_pocketsphinx"] == "orange"
    assert len(clips) == 12


def test_missing_generated_set_is_one_line_and_writes_nothing(files):
    (files[3] / "pretrain_seen/index.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match="run `nava generate`"):
        score_sets(ONE, *files)
    assert not files[4].exists()


def test_cut_off_index_names_file_and_line(files):
    index = files[3] / "pretrain_seen/index.jsonl"
    index.write_text(index.read_text()[:-20])
    with pytest.raises(ValueError, match=r"index\.jsonl:4 json"):
        score_sets(ONE, *files)
    assert not files[4].exists()


def with_alignment(files, out):
    """Scores with a held-out set beside: before = the generated clips, after = the real ones under their
    names."""
    corpus, codec, syncnet, generated, _ = files
    for root in (generated, out / "aligned"):
        shutil.copytree(generated / "pretrain_seen", root / "align_held_out", dirs_exist_ok=True)
    for i in range(len(WORDS)):
        shutil.copy(corpus / f"clips/{i}.mp4", out / f"aligned/align_held_out/g{i}.mp4")
    return score_sets(
        ONE, corpus, codec, syncnet, generated, out / "scores", out / "aligned", {"min_motion": 2.0}
    )


def test_before_and_after_alignment_from_clips_to_page(files, tmp_path, caplog, monkeypatch):
    torch.set_num_threads(1)
    for picture in ("cards.clip_png", "report.contact_sheet"):  # tests/test_report.py draws them
        monkeypatch.setattr(f"experiments.report.{picture}", lambda *clips: b"png")
    corpus, codec, _, generated, metrics_path = files
    half = score_sets(ONE, *files[:4], out=tmp_path / "half", aligned=tmp_path / "aligned")
    assert (
        "before and after alignment is left out" in caplog.text and "align_held_out" not in half.read_text()
    )
    alone = [json.loads(line) for line in half.read_text().splitlines()]
    scores = with_alignment(files, tmp_path)
    rows = [json.loads(line) for line in scores.read_text().splitlines()]
    watched = [row for row in rows if "guardrails" in row]
    assert {(row["prompt_set"], row["source"]) for row in watched} == {
        ("pretrain_seen", "codec"),
        ("align_held_out", "generated"),
        ("align_held_out", "aligned"),
    }
    assert all({*ALIGN_JUDGES} <= row["scores"].keys() for row in watched)
    assert all(not {*ALIGN_JUDGES} & row["scores"].keys() for row in rows if row not in watched)
    assert all(
        any(flag.startswith("motion") and flag.endswith("< 2") for flag in row["flags"]) for row in watched
    )  # the config's limit
    assert [
        row for row in rows if row["source"] in ("real", "generated") and row["prompt_set"] == "pretrain_seen"
    ] == [row for row in alone if row["source"] != "codec"]
    alignment, votes = metrics_path.with_name("alignment.json"), tmp_path / "gsb/votes.jsonl"
    limits = {"min_motion": 2.0}
    metrics = evaluate(EvaluateConfig(), scores, metrics_path, alignment, votes, {"sync_mini": 1.0}, limits)
    wer = metrics["wer_pocketsphinx_align_held_out"]
    assert wer["generated"]["mean"] == pytest.approx(1 / 3, abs=1e-5) and wer["aligned"]["mean"] == 0.0
    found = json.loads(alignment.read_text())
    paired = found["metrics"]["wer_pocketsphinx_judge"]
    assert paired["after"]["mean"] == 0.0 and paired["difference"]["n"] == 3  # one clip before is silent
    assert paired["unscored"] == {"before": 1, "after": 0, "codec": 0}
    assert (
        found["flagged"] == {"before": 4, "after": 4, "codec": 4}
        and found["guardrails"]["motion"]["low"] == 2.0
    )
    assert found["raters"]["simulated"] is True and found["prompts"] == 4
    logged, votes_of = metrics_to_log(metrics, found), found["raters"]["gsb"]["sync"]
    assert logged["alignment/simulated_gsb/sync"] == votes_of["gsb"]
    assert logged["alignment/simulated_gsb/sync/n"] == sum(votes_of[part] for part in ("good", "same", "bad"))
    assert logged["alignment/guardrails/flagged_after"] == 4.0
    assert all(json.loads(line)["simulated"] for line in votes.read_text().splitlines())
    given = ({}, generated, corpus, codec, tmp_path / "page", {}, alignment)
    page = report(metrics_path, scores.parent, *given, tmp_path / "aligned")
    html = page.read_text()
    # name and picture of four prompts
    assert html.count("After alignment") == html.count("Before alignment") == 8
    assert "SIMULATED RATERS" in html and page.with_name("before_after.png").is_file()
    evaluate(EvaluateConfig(), half, metrics_path, alignment)
    assert "no comparison is written" in caplog.text and not alignment.exists()  # it was of other clips
    page = report(metrics_path, half.parent, *given)
    assert "Before and after" not in page.read_text()


def test_unknown_guardrail_is_refused_before_any_work(files):
    with pytest.raises(
        ValueError, match=r"align\.guardrails\.min_montion: unknown option; did you mean 'min_motion'"
    ):
        score_sets(ONE, *files, limits={"min_montion": 1.0})
