"""Rows of prompts, votes and manifests: keys that nothing reads, keys given twice, names unfit for files."""

import json

import pytest

from finetune.gsb.votes import read_votes
from pretrain.data.manifest import read_manifest
from pretrain.jsonl import FieldError, scan
from pretrain.prompt import check_prompts, read_prompts
from pretrain.prompt.names import MAX_NAME_BYTES

GOOD = {"prompt": "A man says: <S>seven<E>."}


def errors(tmp_path, *rows):
    path = tmp_path / "p.jsonl"
    lines = [row if isinstance(row, (str, bytes)) else json.dumps(row) for row in rows]
    path.write_bytes(b"\n".join(line.encode() if isinstance(line, str) else line for line in lines))
    return [(error["line"], error["field"], error["message"]) for error in check_prompts(path)["errors"]]


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("spk_wav", ["a.wav"], "did you mean 'spk_wavs'"),
        ("image", "x.png", "did you mean 'image_path'"),
        ("Prompt", "x", "did you mean 'prompt'"),
        ("reference_paths", [], "did you mean 'spk_wavs'"),
        ("num_frame", 25, "did you mean 'num_frames'"),
        ("duration", 4, '"num_frames": 97'),
        ("duration", 1, '"num_frames": 25'),
        ("duration", "long", "1 + 4n"),
        ("task", "T2X", "unknown task 'T2X'; did you mean"),
        ("negative", "blurry", "did you mean 'negative_prompt'"),
        ("negative_prompt", "<S>no<E>", "speech does not belong"),
        ("negative_prompt", " ", "expected a text"),
        ("seed", -1, "expected a whole number from 0"),
        ("seed", True, "expected a whole number from 0"),
        ("fps", 30, "--set generate.fps="),
        ("comment", "x", "unknown key; valid: prompt, "),
    ],
)
def test_a_key_that_nothing_reads_is_an_error_by_line(tmp_path, key, value, says):
    ((line, field, message),) = errors(tmp_path, GOOD, {**GOOD, key: value})
    assert (line, field) == (2, key) and says in message


def test_all_keys_that_are_read_pass(tmp_path):
    row = {**GOOD, "image_path": None, "spk_wavs": ["a.wav"], "data_id": "a", "num_frames": 25, "height": 64}
    assert errors(tmp_path, {**row, "width": 64, "meta": {"a": {"b": 1}}, "video": "a.mp4"}) == []
    assert errors(tmp_path, {**row, "task": "T2A", "seed": 3, "negative_prompt": "noise"}) == []
    assert errors(tmp_path, {"text": "old", "video_path": "a.mp4"}) == []
    found = errors(tmp_path, {"prompt": "a", "text": "b"})
    assert [(line, field) for line, field, _ in found] == [(1, "text")]


def test_keys_of_ones_own_are_carried_where_asked_and_misspelt_ones_are_not(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({**GOOD, "keep": 1}))
    assert len(read_prompts(path, own_keys=True)) == 1
    with pytest.raises(ValueError, match=r"p\.jsonl:1 keep: unknown key"):
        read_prompts(path)
    path.write_text(json.dumps({**GOOD, "spk_wav": ["a.wav"]}))
    with pytest.raises(ValueError, match="did you mean 'spk_wavs'"):
        read_prompts(path, own_keys=True)


def test_a_key_given_twice_is_an_error_everywhere(tmp_path):
    twice = '{"prompt": "a", "prompt": "b"}'
    assert errors(tmp_path, twice)[0][:2] == (1, "prompt")
    assert errors(tmp_path, GOOD, '{"prompt": "a", "meta": {"x": {"y": 1, "y": 1}}}')[0][:2] == (2, "y")
    path = tmp_path / "rows.jsonl"
    path.write_text('{"user_id": "a", "choice": "left", "choice": "right"}')
    with pytest.raises(ValueError, match=r":1 choice: the key is given twice"):
        read_votes(path)
    path.write_text('{"data_id": "a", "video_info": [{"fps": 24, "fps": 25}]}')
    with pytest.raises(ValueError, match=r":1 fps: the key is given twice"):
        read_manifest(path)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "1" * 5000])
def test_numbers_that_json_does_not_have_are_refused(tmp_path, number):
    (found,) = errors(tmp_path, f'{{"prompt": "a", "meta": {{"x": {number}}}}}')
    assert found[:2] == (1, "json")


def test_logs_may_have_nan(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"loss": NaN}\n')
    ((_, row),) = scan(tmp_path / "log.jsonl")
    assert isinstance(row, dict)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_other_encodings_are_named(tmp_path, encoding):
    text = json.dumps(GOOD) + "\n" + json.dumps(GOOD)
    (found,) = errors(tmp_path, text.encode(encoding))
    assert found[:2] == (1, "json") and "save it as UTF-8" in found[2] and "UTF-" in found[2]


def test_byte_order_marks_and_line_ends_of_windows_are_fine(tmp_path):
    line = json.dumps(GOOD).encode()
    assert errors(tmp_path, b"\xef\xbb\xbf" + line + b"\r", b"\xef\xbb\xbf" + line) == []


@pytest.mark.parametrize(
    "name",
    [
        *("", " ", "a/b", "..", ".a", "a\\b", "a ", " a", "a.", "con", "NUL.x", "lpt1", "a\nb", "a\x00"),
        *("a\u200b", "\u200da", "\ud83d", "x" * (MAX_NAME_BYTES + 1), "你" * 80, 5, None),
    ],
)
def test_names_unfit_for_files_are_refused(tmp_path, name):
    found = errors(tmp_path, {**GOOD, "data_id": name})
    assert [(line, field) for line, field, _ in found] == [(1, "data_id")]


@pytest.mark.parametrize("name", ["a b", "a.b", "k#0", "你好", "console", "x" * MAX_NAME_BYTES, "👨\u200d👩"])
def test_other_names_are_fine(tmp_path, name):
    assert errors(tmp_path, {**GOOD, "data_id": name}) == []


@pytest.mark.parametrize(
    ("one", "other"), [("Ann", "ann"), ("caf\u00e9", "cafe\u0301"), ("Straße", "STRASSE"), ("ａ", "a")]
)
def test_names_that_are_one_file_on_some_systems_are_refused(tmp_path, one, other):
    found = errors(tmp_path, {**GOOD, "data_id": one}, {**GOOD, "data_id": other})
    assert [(line, field) for line, field, _ in found] == [(2, "data_id")] and "line 1" in found[0][2]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "A: <S>seven \ud83d<E>"},
        {"prompt": "bell \x07"},
        {**GOOD, "meta": {"a": ["\udc00"]}},
        {**GOOD, "meta": {"\ud800": 1}},
        {**GOOD, "spk_wavs": ["a\x00.wav"]},
        {**GOOD, "image_path": "\ud83d.png"},
    ],
)
def test_half_characters_and_control_characters_are_refused_by_line(tmp_path, row):
    ((line, _, message),) = errors(tmp_path, row)
    assert line == 1 and ("half a surrogate pair" in message or "control character" in message)


def test_a_row_error_is_one_line(tmp_path):
    for _, _, message in errors(tmp_path, {**GOOD, "bad\nkey": 1, "data_id": "a\nb"}, {"prompt": "\x07"}):
        assert "\n" not in message


def test_a_wrong_first_line_does_not_end_the_check(tmp_path):
    found = errors(tmp_path, {**GOOD, "imag": 1}, {"prompt": "<s>a"}, "[")
    assert [line for line, _, _ in found] == [1, 2, 3]
    assert isinstance(found[0][2], str) and FieldError(1, "a", "b").at("f") == "f:1 a: b"
