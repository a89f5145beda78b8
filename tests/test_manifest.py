"""Training manifests and mixing files: public formats read as they are, bad rows rejected and counted."""

import json

import pytest

from pretrain.data.manifest import read_manifest, write_manifest
from pretrain.data.mixing import MixEntry, read_mix, write_mix


def _row(data_id, **changes):
    row = {
        "data_id": data_id,
        "video_info": [
            {
                "data_path": f"clips/{data_id}.mp4",
                "fps": 24,
                "duration": 6.04,
                "image_width": 1280,
                "image_height": 704,
            }
        ],
        "text_list": [{"text": "A man says <S>hello<E>.", "speech_start": [0.5], "speech_end": [1.25]}],
        "audio_splits_info_tagging": [{"snr_db": 41.5, "someone_else's_label": "x"}],
        "unknown": 1,
    }
    return {**row, **changes}


def _write(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_public_rows_are_read_as_they_are(tmp_path):
    rows, rejected = read_manifest(
        _write(tmp_path / "m.jsonl", [_row("a"), _row("b", audio_splits_info_tagging=[])])
    )
    assert not rejected
    assert rows[0].data_path == tmp_path / "clips/a.mp4"
    assert (rows[0].fps, rows[0].duration_s, rows[0].width, rows[0].height) == (24.0, 6.04, 1280, 704)
    assert (rows[0].speech_start_s, rows[0].speech_end_s) == ((0.5,), (1.25,))
    assert rows[0].quality["snr_db"] == 41.5
    assert rows[1].quality == {}
    assert [row.line for row in rows] == [1, 2]


def test_written_rows_come_back_from_another_folder(tmp_path):
    rows, _ = read_manifest(_write(tmp_path / "m.jsonl", [_row("a", meta={"words": ["hello"]})]))
    (tmp_path / "other").mkdir()
    write_manifest(tmp_path / "other" / "n.jsonl", rows)
    again, _ = read_manifest(tmp_path / "other" / "n.jsonl")
    assert again[0].data_path.resolve() == rows[0].data_path.resolve()
    assert again[0].meta == rows[0].meta
    assert again[0].speech_end_s == rows[0].speech_end_s
    assert not list((tmp_path / "other").glob("*.tmp"))


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        ('{"data_id": "x", "video', "json"),
        (_row(None), "data_id"),
        (_row("x", video_info=[]), "video_info"),
        (_row("x", video_info=[{"data_path": "x.mp4", "fps": 24, "duration": 0}]), "video_info[0].duration"),
        (_row("x", video_info=[{"data_path": "x.mp4", "fps": "24", "duration": 1}]), "video_info[0].fps"),
        (_row("x", video_info=[{"data_path": "", "fps": 24, "duration": 1}]), "video_info[0].data_path"),
        (_row("x", text_list=[{"text": "<S>open"}]), "text_list[0].text"),
        (
            _row("x", text_list=[{"text": "<S>a<E>", "speech_start": [0, 1], "speech_end": [1, 2]}]),
            "text_list[0].speech_start",
        ),
        (
            _row("x", text_list=[{"text": "<S>a<E>", "speech_start": [1], "speech_end": [1]}]),
            "text_list[0].speech_end[0]",
        ),
        (_row("good0"), "data_id"),
    ],
)
def test_a_bad_row_is_rejected_with_its_line_and_field(tmp_path, bad, field):
    rows = [_row(f"good{i}") for i in range(100)]
    path = _write(tmp_path / "m.jsonl", [*rows[:50], bad, *rows[50:]])
    good, rejected = read_manifest(path)
    if field == "data_id" and len(good) == 100:  # the second of two equal ids is the rejected one
        assert rejected[0].line == 51
    assert len(good) == 100
    assert [(error.line, error.field) for error in rejected] == [(51, field)]


def test_more_than_one_percent_of_bad_rows_stops_unless_told_otherwise(tmp_path):
    path = _write(tmp_path / "m.jsonl", [*(_row(f"g{i}") for i in range(97)), "{", "[]", "nonsense"])
    with pytest.raises(ValueError, match=r"m\.jsonl:98 json: .*3 of 100 rows are bad") as caught:
        read_manifest(path)
    assert "\n" not in str(caught.value)
    rows, rejected = read_manifest(path, max_bad_fraction=0.03)
    assert (len(rows), len(rejected)) == (97, 3)


def test_a_file_with_no_good_row_stops_even_when_all_is_allowed(tmp_path):
    with pytest.raises(ValueError, match=":1 json"):
        read_manifest(_write(tmp_path / "m.jsonl", ["{"]), max_bad_fraction=1.0)


def test_mixing_files_with_and_without_names(tmp_path):
    (tmp_path / "mix.list").write_text("0\tspeech\tsets/speech.jsonl\n1\tsets/silent.jsonl\n")
    (tmp_path / "mix.weight").write_text("silent\t0.5\ttext_to_video\nspeech\t3\ttext_to_av\n")
    first, second = read_mix(tmp_path / "mix.list")
    assert (first.name, first.weight, first.modal, first.path) == (
        "speech",
        3.0,
        "text_to_av",
        tmp_path / "sets/speech.jsonl",
    )
    assert (second.name, second.weight) == ("silent", 0.5)
    write_mix(tmp_path / "again.list", [first, second])
    assert read_mix(tmp_path / "again.list") == [first, second]


@pytest.mark.parametrize(
    ("listed", "weights", "found"),
    [
        ("0 a x.jsonl\n", "a\t1\ttext_to_av\n", "mix.list:1"),
        ("0\ta\tx.jsonl\n", "a\tmuch\ttext_to_av\n", "mix.weight:1 weight"),
        ("0\ta\tx.jsonl\n", "a\t1\ttext_to_avi\n", "'text_to_av'"),
        ("0\tpared\tx.jsonl\n", "paired\t1\ttext_to_av\n", "did you mean 'paired'"),
        ("0\ta\tx.jsonl\n0\ta\ty.jsonl\n", "a\t1\ttext_to_av\n", "listed twice"),
        ("0\ta\tx.jsonl\n", "a\t1\ttext_to_av\nb\t1\ttext_to_av\n", "'b' is not in"),
    ],
)
def test_wrong_mixing_files_name_line_and_cure(tmp_path, listed, weights, found):
    (tmp_path / "mix.list").write_text(listed)
    (tmp_path / "mix.weight").write_text(weights)
    with pytest.raises(ValueError, match=found):
        read_mix(tmp_path / "mix.list")


def test_mix_entry_paths_are_relative_to_the_list(tmp_path):
    write_mix(tmp_path / "mix.list", [MixEntry(0, "a", tmp_path / "a.jsonl", 1.0, "text_to_av")])
    assert (tmp_path / "mix.list").read_text() == "0\ta\ta.jsonl\n"


def test_a_mixing_file_may_name_manifests_in_a_store(tmp_path):
    (tmp_path / "train.list").write_text("0\tfar\tmemory://bucket/sets/far.jsonl\n1\tnear\tnear.jsonl\n")
    (tmp_path / "train.weight").write_text("far\t1\ttext_to_av\nnear\t1\ttext_to_av\n")
    far, near = read_mix(tmp_path / "train.list")
    assert (str(far.path), near.path) == ("memory://bucket/sets/far.jsonl", tmp_path / "near.jsonl")
