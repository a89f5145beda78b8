"""Scores clip by clip as a table of a run."""

import csv
import io
import math

from hypothesis import given
from hypothesis import strategies as st

from experiments.runs.spool import SpooledRun
from experiments.runs.tracker import SpoolTracker
from experiments.scoring.clip_table import clip_table, log_clip_table
from experiments.scoring.rows import flat_guardrails, flat_scores, full_scores
from experiments.scoring.summary import means
from rewards.types import Score

NAMES = ("sync_mini", "wer_pocketsphinx", "a.b:C")
numbers = st.floats(allow_nan=False, allow_infinity=False, width=32)


@st.composite
def scores(draw):
    found = {}
    for name in draw(st.sets(st.sampled_from(NAMES), min_size=1)):
        scored = draw(st.booleans())
        parts = draw(st.dictionaries(st.sampled_from(["words", "errors"]), numbers)) if scored else {}
        found[name] = Score(draw(numbers), parts=parts) if scored else Score(math.nan, reason='no, "sound"\n')
    return found


def read(text):
    return list(csv.DictReader(io.StringIO(text)))


@given(st.lists(scores(), max_size=5), st.booleans())
def test_both_formats_of_rows_come_back(clips, full):
    rows = [
        {"clip": f"clip {number}", "scores": full_scores(one)}
        if full
        else {"prompt_set": "seen", "source": "real", "data_id": f"clip {number}", **flat_scores(one)}
        for number, one in enumerate(clips)
    ]
    table = read(clip_table(rows))
    assert [line["clip" if full else "data_id"] for line in table] == [f"clip {n}" for n in range(len(clips))]
    for line, one in zip(table, clips, strict=True):
        for name, score in one.items():
            if score.reason:
                assert line[name] == "" and f"{name}: {score.reason}" in line["not_scored"]
            else:
                assert math.isclose(float(line[name]), score.value, abs_tol=1e-6)
                for part, value in score.parts.items():
                    assert math.isclose(float(line[f"{name}.{part}"]), value, abs_tol=1e-6)


def test_totals_guardrails_and_flags_have_columns():
    measured = flat_guardrails({"motion": 0.5, "speech_ratio": math.nan}, ["motion above 0.1"])
    row = {"clip": "a", "scores": {"sync_mini": None}, "total": {"value": 1.5}, **measured}
    (line,) = read(clip_table([row]))
    assert (line["total"], line["motion"], line["speech_ratio"]) == ("1.5", "0.5", "")
    assert line["flags"] == "motion above 0.1"
    assert next(iter(line)) == "clip" and list(line)[-2:] == ["flags", "not_scored"]


def test_the_table_is_an_artifact_of_the_run_whatever_the_names(tmp_path):
    tracker = SpoolTracker(tmp_path / "run")
    tracker.folder.mkdir()
    log_clip_table(tracker, [{"clip": "\udcff.mp4", "scores": {"sync_mini": 1.0}}])
    (event,) = [event for _, event in SpooledRun(tracker.folder).events()]
    assert event["kind"] == "artifact" and event["path"] == str(tmp_path / "run" / "clips.csv")
    assert read((tmp_path / "run" / "clips.csv").read_text("utf-8"))[0]["sync_mini"] == "1.0"


def test_a_table_that_cannot_be_written_is_told(tmp_path, caplog):
    (tmp_path / "run").write_text("in the way")
    log_clip_table(SpoolTracker(tmp_path / "run"), [])
    assert "clips.csv cannot be written" in caplog.text


def test_means_are_flat_and_leave_out_what_was_not_measured():
    interval = {"mean": 0.5, "low": 0.25, "high": None, "n": 4, "eligible": 5, "reasons": {}}
    found = means({"rewards": {"sync_mini": interval}, "guardrails": {"motion": 0.1, "lufs": None}})
    assert found == {"guardrails/motion": 0.1, "sync_mini": 0.5, "sync_mini/low": 0.25, "sync_mini/n": 4.0}
