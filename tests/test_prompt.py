"""Prompts: what parses, what is refused, and where the refusal points."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.prompt import (
    SPEECH_END,
    SPEECH_START,
    TIMBRE,
    check_prompts,
    parse,
    read_prompts,
    with_timbre_tokens,
)

plain = st.text(alphabet="aSE é中/<\n.,", max_size=12).filter(
    lambda text: "<S" not in text and "<E" not in text and not text.endswith("<")
)
words = plain.filter(lambda text: any(sign.isalnum() for sign in text))


@given(before=plain, spans=st.lists(st.tuples(words, plain), max_size=4))
def test_any_balanced_text_parses_and_spans_point_into_it(before, spans):
    text = before + "".join(f"{SPEECH_START}{spoken}{SPEECH_END}{after}" for spoken, after in spans)
    parsed = parse(text)
    assert [span.text for span in parsed.spans] == [spoken for spoken, _ in spans]
    assert all(text[span.start : span.end] == span.text for span in parsed.spans)
    assert parsed.references == (None,) * len(spans)


@given(
    before=plain,
    spans=st.lists(st.tuples(words, plain), min_size=1, max_size=4),
    num_references=st.integers(0, 4),
)
def test_timbre_tokens_follow_every_opening_mark_and_come_off_again(before, spans, num_references):
    text = before + "".join(f"{SPEECH_START}{spoken}{SPEECH_END}{after}" for spoken, after in spans)
    references = [f"{i}.wav" for i in range(min(num_references, len(spans)))]
    parsed = parse(text, references)
    marked = with_timbre_tokens(parsed)
    assert marked.count(SPEECH_START + TIMBRE) == len(spans)
    assert marked.replace(TIMBRE, "") == text
    assert parsed.references[: len(references)] == tuple(references)
    assert len(parsed.references) == len(spans)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("says <S>hello", "without <E>"),
        ("says hello<E>", "without <S>"),
        ("<S>one <S>two<E><E>", "inside an open span"),
        ("<S>  <E>", "empty speech span"),
        ("<S><extra_id_2>one<E>", "remove it"),
    ],
)
def test_broken_spans_are_refused(text, found):
    with pytest.raises(ValueError, match=found):
        parse(text)


def test_more_references_than_spans_are_refused():
    with pytest.raises(ValueError, match="2 references for 1 speech spans"):
        parse("<S>one<E>", ["a.wav", "b.wav"])


def _write(path, rows):
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return path


def test_public_format_and_legacy_key_are_read(tmp_path):
    path = _write(
        tmp_path / "p.jsonl",
        [{"prompt": "<S>a<E> <S>b<E>", "spk_wavs": ["x.wav"]}, {"text": "quiet", "image_path": "i.png"}],
    )
    first, second = read_prompts(path)
    assert first.reference_paths == (tmp_path / "x.wav", None)
    assert (first.line, second.line) == (1, 2)
    assert second.image_path == tmp_path / "i.png"
    assert first.data_id != second.data_id


def test_check_names_line_and_field_of_every_error(tmp_path):
    rows = [
        {"prompt": "<S>a<E>", "spk_wavs": ["x.wav"], "data_id": "one"},
        '{"prompt": "<S>a<E',
        {"prompt": "<S>a"},
        {"prompt": "<S>a<E>", "spk_wavs": ["x", "y"]},
        {"prompt": "a", "num_frames": 24},
        {"spk_wavs": []},
        [1],
        {"prompt": "a", "data_id": "one"},
        {"prompt": "a", "data_id": "../up"},
    ]
    checked = check_prompts(_write(tmp_path / "p.jsonl", rows))
    assert (checked["rows"], checked["spans"], checked["references"]) == (9, 1, 1)
    found = [(error["line"], error["field"]) for error in checked["errors"]]
    expected = [
        (2, "json"),
        (3, "prompt"),
        (4, "spk_wavs"),
        (5, "num_frames"),
        (6, "prompt"),
        (7, "json"),
        (8, "data_id"),
        (9, "data_id"),
    ]
    assert found == expected
    assert json.loads(json.dumps(checked)) == checked


def test_files_are_looked_for_only_when_asked(tmp_path):
    path = _write(tmp_path / "p.jsonl", [{"prompt": "<S>a<E>", "spk_wavs": ["x.wav"], "image_path": "i.png"}])
    assert check_prompts(path)["errors"] == []
    assert [error["field"] for error in check_prompts(path, files=True)["errors"]] == [
        "image_path",
        "spk_wavs[0]",
    ]


def test_first_error_of_a_file_is_one_line_with_file_and_line(tmp_path):
    path = _write(tmp_path / "p.jsonl", [{"prompt": "fine"}, {"prompt": "<S>a"}])
    with pytest.raises(ValueError) as caught:
        read_prompts(path)
    assert str(caught.value).startswith(f"{path}:2 prompt: ")
    assert "\n" not in str(caught.value)


def test_missing_and_empty_files_say_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_prompts(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(ValueError, match="empty"):
        read_prompts(tmp_path / "empty.jsonl")
