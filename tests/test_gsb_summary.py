import json

import pytest
from gsb_votes import row, simulated_rows, write

from experiments.cli import main
from finetune.gsb.summary import summarise
from finetune.gsb.votes import read_votes

TRUE = {"ours": 0.0, "weak": -0.9, "near": 0.2}


def summary(tmp_path, rows, **options):
    return summarise(read_votes(write(tmp_path / "votes.jsonl", rows)), **options)


def run(*arguments):
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as leave:
        return leave.code


def test_json_has_the_promised_keys(tmp_path, capsys):
    path = write(tmp_path / "votes.jsonl", simulated_rows(300, TRUE, 0.8, 0.3))
    assert run("gsb", "stats", path, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["pairs"]) == {"weak", "near"}
    assert {"good", "same", "bad", "gsb", "gsb_low", "gsb_high", "sign_p"} <= set(found["pairs"]["weak"])
    assert {"strength", "tie", "side", "log_likelihood"} <= set(found["davidson"])
    assert found["davidson"]["strength"]["ours"] == 0 and found["davidson"]["strength"]["weak"] < 0
    assert (
        found["ours"] == "ours"
        and found["simulated"] is True
        and found["votes"]["simulated"] == 300
        and "axes" not in found
    )
    pair = found["pairs"]["weak"]
    assert (
        pair["gsb"] == pytest.approx((pair["good"] - pair["bad"]) / 150)
        and pair["gsb_low"] < pair["gsb"] < pair["gsb_high"]
    )
    assert found["agreement"] is None and any(
        "one vote per case: agreement cannot be computed" in said for said in found["warnings"]
    )


def test_good_and_bad_are_from_the_side_of_ours(tmp_path):
    rows = [
        row("left", case="1"),
        row("right", case="2", left="base", right="ours", side="right"),
        row("tie", case="3"),
        row("right", case="4"),
    ]
    pair = summary(tmp_path, rows)["pairs"]["base"]
    assert (pair["good"], pair["same"], pair["bad"], pair["gsb"]) == (2, 1, 1, 0.25)


def test_axes_are_apart_and_share_holm(tmp_path):
    rows = [row("left", case=str(i)) for i in range(8)] + [row("right", case="x")]
    rows += [row("right", case=str(i), axis="voice") for i in range(6)] + [
        row("left", case="x", axis="voice")
    ]
    found = summary(tmp_path, rows)
    assert set(found["axes"]) == {"overall", "voice"} and found["axes"]["overall"]["pairs"] == found["pairs"]
    overall, voice = found["pairs"]["base"], found["axes"]["voice"]["pairs"]["base"]
    assert overall["gsb"] == pytest.approx(7 / 9) and voice["gsb"] == pytest.approx(-5 / 7)
    assert overall["sign_p_holm"] == pytest.approx(2 * overall["sign_p"])
    alone = summary(tmp_path, rows, axis="voice")
    assert alone["axis"] == "voice" and "axes" not in alone and alone["votes"]["counted"] == 7
    assert alone["pairs"]["base"]["sign_p_holm"] == alone["pairs"]["base"]["sign_p"]


def test_repeats_checks_and_dropped_raters_do_not_count(tmp_path):
    checks = [row("right", user="bad", case=f"a{i}", right="late", attention=True) for i in range(3)]
    rows = [row(), row("right"), row(user="bad", case="d"), row("right", case="e"), *checks]
    rows[1]["repeat"] = 1
    found = summary(tmp_path, rows)
    assert found["votes"] == {
        "read": 7,
        "counted": 2,
        "attention": 3,
        "repeats": 1,
        "of_dropped_raters": 1,
        "simulated": 0,
    }
    assert set(found["pairs"]) == {"base"} and found["pairs"]["base"]["good"] == 1
    assert "rater bad is dropped: passed 0 of 3 attention checks" in found["warnings"]
    assert summary(tmp_path, rows, keep_all_raters=True)["pairs"]["base"]["good"] == 2


def test_several_raters_per_case_have_agreement(tmp_path):
    rows = [
        row(choice, user=user, case=str(i))
        for i, choice in enumerate(("left", "right", "tie"))
        for user in "ab"
    ]
    found = summary(tmp_path, rows)
    assert found["agreement"]["krippendorff_alpha"] == 1 and found["agreement"]["items"] == 3


def test_one_rater_is_said(tmp_path):
    found = summary(tmp_path, [row(case="1"), row("right", case="2")])
    assert any(said.startswith("one rater") for said in found["warnings"])


def test_ties_on_one_pair_or_axis_warn_and_on_all_are_an_error(tmp_path):
    rows = [
        row(case="1"),
        row("right", case="2"),
        row("tie", case="1", right="same"),
        row("tie", case="1", axis="sync"),
    ]
    found = summary(tmp_path, rows)
    assert found["pairs"]["same"]["win_rate"] is None and found["axes"]["sync"]["davidson"] is None
    assert {"overall: all votes on same are ties", "sync: every vote is a tie; no strengths"} <= set(
        found["warnings"]
    )
    with pytest.raises(ValueError, match="all 1 votes on axis 'sync' are ties"):
        summary(tmp_path, rows, axis="sync")


def test_a_baseline_never_compared_is_an_error(tmp_path):
    rows = [row(case="1"), row("right", case="2"), row(case="1", left="other", right="base", side=None)]
    found = summary(tmp_path, rows)
    assert "other was never compared with ours itself; it has a strength but no GSB" in found["warnings"]
    assert set(found["davidson"]["strength"]) == {"ours", "base", "other"} and set(found["pairs"]) == {"base"}
    with pytest.raises(ValueError, match="'other' was never compared with 'ours'"):
        summary(tmp_path, rows, models=("base", "other"))
    apart = [row(case="1"), row(case="1", left="c", right="d", side=None)]
    with pytest.raises(ValueError, match=r"overall: no chain of votes connects c, d with ours"):
        summary(tmp_path, apart)


def test_nothing_to_count_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no vote on axis 'overall' to count; there are votes on sync"):
        summary(tmp_path, [row(axis="sync")])
    with pytest.raises(ValueError, match="ours_side is null in every vote"):
        summary(tmp_path, [row(left="clip a", right="clip b", side=None)])
    with pytest.raises(ValueError, match="no vote is left to count"):
        summary(tmp_path, [row(), *[row("right", case=case, attention=True) for case in "abd"]])


def test_simulated_votes_are_labelled_and_mixtures_warned_of(tmp_path, capsys):
    rows = [row(case="1", simulated=True), row("right", case="2")]
    assert any(
        "1 simulated votes are mixed with 1 of people" in said for said in summary(tmp_path, rows)["warnings"]
    )
    path = tmp_path / "votes.jsonl"
    assert run("gsb", "stats", path) == 0
    printed = capsys.readouterr().out
    assert (
        "SIMULATED VOTES (1 of 2): no person was asked" in printed
        and "tie nu" in printed
        and "+0.00" in printed
        and "base " in printed
    )
    write(
        path,
        [
            row(case="1"),
            row("right", case="2"),
            row("right", case="1", left="base", right="ours", side="right", repeat=1),
        ],
    )
    assert run("gsb", "stats", path) == 0
    printed = capsys.readouterr().out
    assert (
        "SIMULATED" not in printed
        and "raters: 1, same answer in 1 of 1 swapped repeats, no attention checks" in printed
    )


@pytest.mark.parametrize(
    "rows", [[row(side="right"), row(case="2"), row(case="3")], [row("tie")], [row(axis="sync")]]
)
def test_errors_are_one_line(tmp_path, capsys, rows):
    path = write(tmp_path / "votes.jsonl", rows)
    assert run("gsb", "stats", path) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"nava: {path}:") and error.count("\n") == 1
