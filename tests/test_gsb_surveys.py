"""Votes of several surveys in one file: nobody is taken for somebody else."""

from __future__ import annotations

import json

import pytest
from gsb_votes import row, write
from hypothesis import given
from hypothesis import strategies as st

from experiments.cli import main
from experiments.runs.dataset_rows import Budget, profile_of_rows
from finetune.gsb.raters import check_raters
from finetune.gsb.summary import summarise
from finetune.gsb.votes import differing_clips, read_votes

NAMES = [f"rater-{number:03d}" for number in range(1, 7)]


def votes_of(survey, cases, names=NAMES, **rest):
    choices = ("left", "tie", "right")
    return [
        row(choices[(index + place) % 3], user=name, case=case, survey=survey, **rest)
        for index, name in enumerate(names)
        for place, case in enumerate(cases)
    ]


def test_raters_of_two_surveys_are_other_people(tmp_path):
    one, two = votes_of("spring", ["a", "b"]), votes_of("autumn", ["c", "d", "e"])
    found = summarise(read_votes(write(tmp_path / "v.jsonl", one + two)))
    assert [check["user_id"] for check in found["raters"]] == sorted(
        f"{survey}/{name}" for survey in ("spring", "autumn") for name in NAMES
    )
    assert found["pairs"]["base"]["raters"] == 12 and len(found["raters"]) == 12
    assert any("2 surveys (spring, autumn)" in warning for warning in found["warnings"])


def test_votes_on_the_same_cases_can_be_pooled(tmp_path):
    """As if each survey's raters had names of their own."""
    pooled = votes_of("spring", ["a", "b"]) + votes_of("autumn", ["a", "b"])
    renamed = [
        {
            key: value
            for key, value in {**each, "user_id": f"{each['survey']}/{each['user_id']}"}.items()
            if key != "survey"
        }
        for each in pooled
    ]
    found, same = (summarise(read_votes(write(tmp_path / "v.jsonl", rows))) for rows in (pooled, renamed))
    found["warnings"] = [line for line in found["warnings"] if "surveys" not in line]
    assert found == same and found["agreement"]["raters"] == 12


def test_one_survey_keeps_the_names_of_its_raters(tmp_path):
    rows = votes_of("spring", ["a", "b"], survey_id="ab12cd34")
    read = read_votes(write(tmp_path / "v.jsonl", rows))
    plain = read_votes(
        write(tmp_path / "w.jsonl", [{k: v for k, v in each.items() if "survey" not in k} for each in rows])
    )
    assert [check.user_id for check in check_raters(read.votes)] == NAMES and not read.warnings
    assert {**summarise(read), "votes": 0} == {**summarise(plain), "votes": 0}


def test_surveys_of_one_name_are_told_apart_by_their_id(tmp_path):
    rows = votes_of("survey", ["a"], NAMES[:1], survey_id="aa") + votes_of(
        "survey", ["a"], NAMES[:1], survey_id="bb"
    )
    read = read_votes(write(tmp_path / "v.jsonl", rows))
    assert [vote.user_id for vote in read.votes] == ["survey~aa/rater-001", "survey~bb/rater-001"]


def test_one_survey_exported_twice_is_still_refused(tmp_path):
    rows = votes_of("survey", ["a"], survey_id="aa")
    with pytest.raises(ValueError, match=r"v.jsonl:7 repeat: 'rater-001' voted on .* on line 1 too"):
        read_votes(write(tmp_path / "v.jsonl", rows + rows))


def test_an_export_of_before_beside_one_of_now_is_refused_and_alone_is_read(tmp_path):
    before, now = votes_of("survey", ["a"]), votes_of("survey", ["b"], survey_id="aa")
    with pytest.raises(ValueError, match=r"v.jsonl:7 survey_id: .* line 1, .*export both again"):
        read_votes(write(tmp_path / "v.jsonl", before + now))
    for rows in (before, now, before + votes_of("other", ["b"], survey_id="aa")):
        read_votes(write(tmp_path / "v.jsonl", rows))


def test_raters_without_a_survey_keep_their_names_beside_others(tmp_path):
    rows = [row(user="ann", case="z"), row(user="ann", case="y", survey=None), *votes_of(3, ["a"], NAMES[:1])]
    read = read_votes(write(tmp_path / "v.jsonl", rows))
    assert [vote.user_id for vote in read.votes] == ["ann", "ann", "3/rater-001"] and not read.warnings


def test_clips_of_one_name_that_differ_are_warned_of(tmp_path):
    rows = [row(user=user, left_sha256=digest, right_sha256="b") for user, digest in (("x", "a"), ("y", "c"))]
    read = read_votes(write(tmp_path / "v.jsonl", rows))
    (said,) = differing_clips(read.votes)
    assert not read.warnings and said in summarise(read)["warnings"]
    assert said.startswith("1 clips have several digests, the first is of 'ours' for case 'c'")
    alike = read_votes(write(tmp_path / "v.jsonl", [rows[0], {**rows[0], "user_id": "y"}]))
    assert not differing_clips(alike.votes)


@pytest.mark.parametrize("value", [True, ["a"], {"a": 1}, 1.5, " "])
def test_a_survey_that_is_no_name_is_refused(tmp_path, value):
    with pytest.raises(ValueError, match=r":1 survey: expected a name"):
        read_votes(write(tmp_path / "v.jsonl", [row(survey=value)]))


@given(
    st.lists(
        st.tuples(st.sampled_from(["", "a", "b"]), st.sampled_from(["x", "y", "a/x"])),
        min_size=1,
        max_size=8,
        unique=True,
    )
)
def test_the_number_of_raters_is_that_of_surveys_and_names(tmp_path_factory, people):
    """Also where somebody is called as a rater of a survey would be."""
    path = tmp_path_factory.getbasetemp() / "people.jsonl"
    rows = [row(user=name, **({"survey": survey} if survey else {})) for survey, name in people]
    read = read_votes(write(path, rows))
    assert len({vote.user_id for vote in read.votes}) == len(people)


def test_stats_pairs_and_profiles_agree(tmp_path, capsys):
    rows = votes_of("survey", ["a", "b"], survey_id="aa") + votes_of("survey", ["a", "b"], survey_id="bb")
    path = write(tmp_path / "v.jsonl", rows)
    write(
        tmp_path / "index.jsonl",
        [
            {"data_id": case, "prompt": "Rain.", "model": model, "sha256": f"{case}{model}"}
            for case in "ab"
            for model in ("ours", "base")
        ],
    )
    assert main(["gsb", "stats", str(path), "--json"]) == 0
    stats = json.loads(capsys.readouterr().out)
    out = tmp_path / "pairs.jsonl"
    assert (
        main(["gsb", "export", str(path), "--clips", str(tmp_path / "index.jsonl"), "--out", str(out)]) == 0
    )
    assert "2 surveys (survey~aa, survey~bb)" in capsys.readouterr().err
    counts = [sum(json.loads(line)["counts"]["overall"].values()) for line in out.read_text().splitlines()]
    assert counts == [12, 12] and stats["votes"]["counted"] == 24 and len(stats["raters"]) == 12
    assert profile_of_rows(path, Budget())["profile"]["raters"] == 12
