import pytest
from gsb_votes import row, write

from finetune.gsb.votes import read_votes


def error(tmp_path, rows, **options):
    path = write(tmp_path / "votes.jsonl", rows)
    with pytest.raises(ValueError) as raised:
        read_votes(path, **options)
    message = str(raised.value)
    assert message.startswith(f"{path}:") and "\n" not in message
    return message.removeprefix(f"{path}:")


def test_public_rows_are_read_and_ours_follows_from_its_side(tmp_path):
    rows = [
        row("left", left="nava", right="veo", side="left"),
        row("tie", case=7, left="veo", right="nava", side="right"),
    ]
    found = read_votes(write(tmp_path / "votes.jsonl", rows))
    assert found.ours == "nava" and found.num_simulated == 0
    first, second = found.votes
    assert (first.axis, first.repeat, first.line, first.preference("nava"), first.preference("veo")) == (
        "overall",
        0,
        1,
        1,
        -1,
    )
    assert (second.case_id, second.preference("nava"), second.pair) == ("7", 0, ("nava", "veo"))


def test_our_fields_are_read_and_foreign_ones_ignored(tmp_path):
    given = row(
        axis="sync",
        repeat=1,
        seconds=3.5,
        seed=4,
        left_sha256="a",
        right_sha256="b",
        simulated=True,
        comment="nice",
    )
    (found,) = read_votes(write(tmp_path / "votes.jsonl", [given])).votes
    assert (found.axis, found.repeat, found.seconds, found.seed, found.left_sha256, found.simulated) == (
        "sync",
        1,
        3.5,
        4,
        "a",
        True,
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"choice": "Left"}, "2 choice: unknown value 'Left'; did you mean 'left'"),
        ({"axis": "voise"}, "2 axis: unknown value 'voise'; did you mean 'voice'"),
        ({"choice": ["left"]}, "2 choice: unknown value ['left']"),
        ({"user_id": ""}, "2 user_id: expected a name"),
        ({"left_model": 3}, "2 left_model: expected a name"),
        ({"right_model": "ours"}, "2 right_model: 'ours' on both sides"),
        ({"repeat": -1}, "2 repeat: expected 0, 1, 2"),
        ({"repeat": True}, "2 repeat: expected 0, 1, 2"),
        ({"seconds": -1}, "2 seconds: expected seconds"),
        ({"simulated": "yes"}, "2 simulated: expected true or false"),
        ({"simulatd": True}, "2 simulatd: unknown; did you mean 'simulated'"),
        ({"ours_side": "centre"}, "2 ours_side: unknown value 'centre'"),
        ({"ours_side": "right"}, "2 ours_side: 'right' contradicts the models: 'ours' is left"),
        ({"left_model": "third", "ours_side": None, "right_model": "base"}, None),
        ({"left_model": "third"}, "2 ours_side: 'left' contradicts the models: 'third' is left"),
    ],
)
def test_a_wrong_field_is_named_with_its_line(tmp_path, change, says):
    rows = [row(), {**row(case="d"), **change}, row(case="e")]
    if says is None:
        assert len(read_votes(write(tmp_path / "votes.jsonl", rows)).votes) == 3
    else:
        assert error(tmp_path, rows).startswith(says)


def test_a_missing_field_is_named(tmp_path):
    rows = [{name: value for name, value in row().items() if name != "case_id"}]
    assert error(tmp_path, rows).startswith("1 case_id: missing")


def test_an_unknown_model_names_the_nearest(tmp_path):
    rows = [row(), row(case="d", right="bsae")]
    assert error(tmp_path, rows, models=("ours", "base")).startswith(
        "2 right_model: unknown model 'bsae'; did you mean 'base'"
    )
    assert error(tmp_path, rows, models=("base",), ours="ours").startswith("2 right_model: unknown model")


def test_the_same_question_twice_is_an_error_also_with_sides_swapped(tmp_path):
    swapped = row("right", left="base", right="ours", side="right")
    for second in (row("tie"), swapped):
        assert error(tmp_path, [row(), row(case="d"), second]).startswith(
            "3 repeat: 'u' voted on case 'c', base and ours, overall, repeat 0 on line 1"
        )
    rows = [
        row(),
        {**swapped, "repeat": 1},
        row(axis="sync"),
        row(user="v"),
        row(case="d"),
        row(right="other"),
    ]
    assert len(read_votes(write(tmp_path / "votes.jsonl", rows)).votes) == len(rows)


def test_the_first_wrong_line_is_named(tmp_path):
    rows = [row(), row(case="d", side="right"), row(case="e", choice="none")]
    assert error(tmp_path, rows).startswith("2 ours_side")
    assert error(tmp_path, [rows[0], rows[2], rows[1]]).startswith("2 choice")


def test_a_model_called_ours_is_ours_even_if_every_row_says_otherwise(tmp_path):
    assert error(tmp_path, [row(side="right"), row(case="d", side="right")]).startswith(
        "1 ours_side: 'right' contradicts the models"
    )


def test_ours_given_by_name_is_held_against_every_row(tmp_path):
    assert error(tmp_path, [row()], ours="base").startswith("1 ours_side: 'left' contradicts the models")


def test_an_attention_check_names_the_original(tmp_path):
    check = row("left", left="base", right="late", side="left", case="x", attention=True)
    found = read_votes(write(tmp_path / "votes.jsonl", [row(), check]), models=("ours", "base"))
    assert found.ours == "ours"
    assert error(tmp_path, [row(), {**check, "ours_side": None}]).startswith(
        "2 ours_side: an attention check names"
    )


def test_a_file_that_is_no_jsonl(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_votes(tmp_path / "none.jsonl")
    path = tmp_path / "votes.jsonl"
    path.write_text('{"user_id": "a"\n')
    with pytest.raises(ValueError, match=r":1 json: not valid JSON"):
        read_votes(path)


def test_names_are_folded_and_then_doubles_refused(tmp_path):
    for changes in ({"user": "u "}, {"case": "\u00a0c\u200b"}, {"right": "ba\u00adse "}):
        assert error(tmp_path, [row(), row(**changes)]).startswith("2 repeat: 'u' voted on case 'c'")
    rows = [row(user="ann b", case="caf\u00e9"), row(user=" ann\t b", case="cafe\u0301", axis="sync")]
    found = read_votes(write(tmp_path / "votes.jsonl", rows), ours=" ours ", models=("ours", "base "))
    assert {vote.user_id for vote in found.votes} == {"ann b"} and found.ours == "ours"
    assert {vote.case_id for vote in found.votes} == {"caf\u00e9"} and found.warnings == ()


def test_sixty_votes_of_three_raters_stay_that(tmp_path):
    users = ("ann", "bob", "cyd")
    rows = [row(user=user + " " * (case % 2), case=f"c{case}") for case in range(20) for user in users]
    found = read_votes(write(tmp_path / "votes.jsonl", rows))
    assert len(found.votes) == 60 and {vote.user_id for vote in found.votes} == set(users)


@pytest.mark.parametrize("name", ["", " ", "\u200b", "\ufeff \u2060", "a\ud83d", "a\x07"])
def test_names_with_nothing_to_see_are_refused(tmp_path, name):
    assert error(tmp_path, [row(), row(user=name)]).startswith("2 user_id: ")


def test_names_that_differ_by_case_are_warned_of_in_one_line_a_kind(tmp_path):
    rows = [row(user="ann"), row(user="ANN"), row(user="bob"), row(user="Bob"), row(case="d", right="Base")]
    first, second = read_votes(write(tmp_path / "votes.jsonl", rows)).warnings
    assert first.startswith(
        "raters that differ by case only are counted apart: 'ann' and 'ANN', 'bob' and 'Bob'"
    )
    assert second.startswith("models") and "'base' and 'Base'" in second
