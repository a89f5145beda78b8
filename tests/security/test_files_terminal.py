"""Names and texts from data do not steer the terminal, and JSON stays what it is."""

from __future__ import annotations

import io
import json
import sys
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.cli import main
from experiments.errors import MAX_LINE, as_line, one_line_errors
from pretrain.media.write import write_wav
from pretrain.terminal import EscapedStream, escaped_output, plain, shown, shown_all

pytestmark = pytest.mark.security
STEERING = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202egnp.exe\u2066\r\x08\x7f"
FORBIDDEN = [
    *map(chr, (*range(9), 11, 12, *range(14, 32), *range(127, 160))),
    *"\u202a\u202e\u2066\u2069\u200f\u061c",
]


def assert_harmless(text: str) -> None:
    assert not [sign for sign in FORBIDDEN if sign in text], ascii(text)


@given(st.text(alphabet=st.characters(codec=None, exclude_categories=()), max_size=40))
def test_what_is_shown_is_harmless_printable_and_the_same_where_nothing_steers(text):
    found = shown(text)
    assert_harmless(found)
    found.encode("utf-8")
    assert shown(found) == found and "\r" not in found.replace("\r\n", "")
    if text.isprintable():
        assert found == text


@given(st.dictionaries(st.text(max_size=5), st.text(max_size=20), max_size=3))
def test_json_that_is_printed_is_read_as_before(values):
    stream = io.StringIO()
    EscapedStream(stream).write(json.dumps(values, ensure_ascii=False))
    assert json.loads(stream.getvalue()) == values
    assert shown_all({"a": ["\x1b", {"\x9b": 1}]}) == {"a": ["\\u001b", {"\\u009b": 1}]}


def test_streams_are_as_before_afterwards(capsys):
    before = sys.stdout, sys.stderr
    with escaped_output(), escaped_output():
        assert plain(sys.stdout) is before[0] and plain(sys.stderr) is before[1]
        print(STEERING, "\ttab")
        print(STEERING, file=sys.stderr)
    assert (sys.stdout, sys.stderr) == before
    said = capsys.readouterr()
    assert_harmless(said.out + said.err)
    assert "\\u001b]0;owned\\u0007" in said.out and "\ttab\n" in said.out


@pytest.mark.parametrize(
    "error", [ValueError(STEERING), FileNotFoundError(2, "no such file", STEERING), ValueError("x" * 10**6)]
)
def test_errors_are_one_harmless_line(capsys, error):
    with pytest.raises(SystemExit), one_line_errors():
        raise error
    said = capsys.readouterr().err
    assert_harmless(said)
    assert said.count("\n") == 1 and len(as_line(error)) <= MAX_LINE + 10


def test_names_of_files_reach_no_terminal_as_they_are(tmp_path, capsys):
    folder = tmp_path / "clips"
    folder.mkdir()
    for name in (f"a{STEERING}.wav".replace("/", ""), "[/red]b.wav"):
        write_wav(folder / name, np.sin(np.arange(8000, dtype=np.float32)), 16_000)
    (folder / f"broken{STEERING}.wav").write_text("nothing")
    out = tmp_path / "scores.jsonl"
    arguments = ["score", str(folder), "--rewards", "snr_estimate_db", "--out", str(out)]
    main([*arguments, "--max-unreadable", "1"])
    main([*arguments, "--max-unreadable", "1", "--json"])
    said = capsys.readouterr()
    assert_harmless(said.out + said.err)
    for missing in (
        ["prompt", "check", f"no{STEERING}.jsonl"],
        ["gsb", "stats", f"no{STEERING}"],
        [f"{STEERING}"],
    ):
        with pytest.raises(SystemExit):
            main(missing)
        assert_harmless(capsys.readouterr().err)


def test_texts_of_data_reach_no_terminal_as_they_are(tmp_path, capsys):
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps({"prompt": f"{STEERING} <S>x", "data_id": STEERING, STEERING: 1}) + "\n")
    votes = tmp_path / "votes.jsonl"
    votes.write_text(json.dumps({"user_id": STEERING, "choice": STEERING}) + "\n")
    for arguments in (["prompt", "check", str(path)], ["gsb", "stats", str(votes)]):
        with suppress(SystemExit):
            main(arguments)
        said = capsys.readouterr()
        assert said.out + said.err
        assert_harmless(said.out + said.err)
