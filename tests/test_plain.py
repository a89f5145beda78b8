"""Clips as people have them: folders of clip and text, tables, `datasets` folders."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from experiments.preparation import plain_rows
from pretrain.data.manifest import read_manifest, write_manifest
from pretrain.data.plain import PlainClip, is_plain, plain_clips, read_plain, safe_id, unused_id
from pretrain.data.plain_tables import table_rows
from pretrain.jsonl import FieldError
from pretrain.media.write import write_mp4, write_wav
from pretrain.prompt.names import name_problem


def make_clip(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed)
    frames = noise.integers(0, 255, (9, 48, 64, 3), dtype=np.uint8)
    write_mp4(path, frames, 24.0, (0.1 * noise.standard_normal(6000)).astype(np.float32), 16_000)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed, name in enumerate(("a", "sub/b")):
        make_clip(tmp_path / f"{name}.mp4", seed)
        (tmp_path / f"{name}.txt").write_text(f"A woman says: <S>hello {seed}<E>\n")
    return tmp_path


SUB_IDS = [safe_id("sub/b"), safe_id("sub/b.webm")]


def clips_of(place: Path) -> list[PlainClip]:
    return [clip for clip in plain_clips(place) if not isinstance(clip, FieldError)]


def test_folder_of_clips_and_texts(folder):
    rows = plain_rows(folder)
    assert [row.data_id[:5] for row in rows] == ["a", "sub-b"]
    assert rows[0].text == "A woman says: <S>hello 0<E>"
    assert (rows[0].width, rows[0].height, rows[0].fps) == (64, 48, 24.0)
    assert rows[0].duration_s == pytest.approx(9 / 24, abs=0.05)


def test_rows_can_be_written_as_a_manifest(folder, tmp_path):
    rows = plain_rows(folder)
    write_manifest(tmp_path / "m.jsonl", rows)
    again, rejected = read_manifest(tmp_path / "m.jsonl")
    assert not rejected and [row.text for row in again] == [row.text for row in rows]
    assert all(row.data_path.is_file() for row in again)


def test_csv_with_transcript_and_reference(folder):
    write_wav(folder / "voice.wav", np.zeros(16_000, np.float32), 16_000)
    (folder / "set.csv").write_text(
        "video,caption,transcript,reference,speech_start,speech_end\n"
        'a.mp4,"A face, near.",good day,voice.wav,0.1,0.3\n'
    )
    (row,) = plain_rows(folder / "set.csv")
    assert row.text == "A face, near. <S>good day<E>"
    assert row.meta["reference_paths"] == [str(folder / "voice.wav")]
    assert (row.speech_start_s, row.speech_end_s) == ((0.1,), (0.3,))


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_datasets_folder(folder, suffix):
    rows = [{"file_name": "a.mp4", "text": "one"}, {"file_name": "sub/b.mp4", "text": "two"}]
    path = folder / f"metadata.{suffix}"
    if suffix == "csv":
        path.write_text("file_name,text\n" + "".join(f"{row['file_name']},{row['text']}\n" for row in rows))
    elif suffix == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        parquet.write_table(pa.Table.from_pylist(rows), path)
    assert [row.text for row in plain_rows(folder)] == ["one", "two"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "empty"),
        ("file_name,text\n", "only a line of column names"),
        ("name,text\na.mp4,x\n", "no column of files among name, text"),
        ("file_name,text\na.mp4,x,y\n", ":2 csv: 3 cells, 2 columns"),
        ("file_name,text\na.mp4,\n", "no text"),
        ("file_name,text\na.mp4,one <S>two\n", "<S>"),
        ("file_name,text,caption\na.mp4,x,y\n", "'text' and 'caption' both"),
        ("file_name,text\nnone.mp4,x\n", "no such file"),
        ("file_name,text,transcript\na.mp4,<S>one<E>,two\n", "is not its transcript"),
        ("file_name,text,speech_start\na.mp4,<S>one<E>,soon\n", "expected seconds, got 'soon'"),
        ("file_name,text,reference\na.mp4,<S>one<E>,no.wav\n", "no.wav: no such file"),
        ("file_name,text\n\xff.mp4,x\n", "not UTF-8"),
    ],
)
def test_bad_tables_are_one_line(folder, content, said):
    path = folder / "set.csv"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError) as raised:
        plain_rows(path)
    assert said in str(raised.value) and "\n" not in str(raised.value) and "set.csv:" in str(raised.value)


@given(
    texts=st.lists(
        st.text("ab ,;\"'\n\r.é", min_size=1, max_size=12).map(lambda text: f"x{text}"), min_size=1
    ),
    bad=st.sampled_from(['"He" says', 'He, says, "so', '"He says', '"a\n"b']),
    place=st.integers(0, 99),
)
def test_a_bad_row_of_a_csv_costs_no_other_row(tmp_path_factory, texts, bad, place):
    """Texts as the csv module quotes them come back, wherever a row stands that is no CSV."""
    path, place = tmp_path_factory.getbasetemp() / "property.csv", place % (len(texts) + 1)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("file_name", "text"))
        for number, text in enumerate(texts):
            if number == place:
                file.write(f"bad.mp4,{bad}\n")
            writer.writerow((f"{number}.mp4", text))
        if place == len(texts):
            file.write(f"bad.mp4,{bad}\n")
    rows = [row for _, row in table_rows(path)]
    read = {row["file_name"]: row["text"] for row in rows if not isinstance(row, FieldError)}
    assert read == {f"{number}.mp4": text for number, text in enumerate(texts)}
    assert any(isinstance(row, FieldError) for row in rows)


def test_a_stray_quote_is_the_reason_of_its_row(tmp_path):
    rows = [f"{number}.mp4,x\n" for number in range(120)]
    rows[103] = '103.mp4,"He" says\n'
    (tmp_path / "s.csv").write_text("file_name,text\n" + "".join(rows))
    clips = plain_clips(tmp_path / "s.csv")
    (wrong,) = [clip for clip in clips if isinstance(clip, FieldError)]
    assert (len(clips), wrong.line) == (120, 105) and "mend its quotes" in wrong.message


def test_a_quote_that_a_later_row_closes_takes_no_row_in(tmp_path):
    (tmp_path / "s.csv").write_text('file_name,text\na.mp4,"hi\nb.mp4,ok"\nc.mp4,"two\nlines, b.mp4"\n')
    read = [
        (row.line if isinstance(row, FieldError) else row.path.name)
        for row in plain_clips(tmp_path / "s.csv")
    ]
    assert read == [2, "b.mp4", "c.mp4"]


def test_a_long_field_is_read_and_one_too_long_is_its_row_s_reason(tmp_path):
    long, longer = "x" * 200_000, "x" * (16 << 20 | 1)
    (tmp_path / "s.csv").write_text(f"file_name,text\na.mp4,{long}\nb.mp4,{longer}\nc.mp4,y\n")
    a, b, c = (row for _, row in table_rows(tmp_path / "s.csv"))
    assert not isinstance(a, FieldError) and a["text"] == long
    assert isinstance(b, FieldError) and "field limit" in b.message
    assert not isinstance(c, FieldError) and c["text"] == "y"


def test_names_of_columns_that_differ_by_case_are_one_column(tmp_path):
    (tmp_path / "s.csv").write_text("file_name,Text,text,ID,id\na.mp4,x,y,1,2\nb.mp4,,z,1,2\n")
    wrong, clip = plain_clips(tmp_path / "s.csv")
    assert isinstance(wrong, FieldError) and "'Text' and 'text' both" in wrong.message
    assert not isinstance(clip, FieldError) and (clip.text, clip.meta) == ("z", {"ID": "1", "id": "2"})


def test_a_clip_twice_and_a_clip_without_text(folder):
    (folder / "set.csv").write_text("file_name,text\na.mp4,x\na.mp4,y\n")
    rows, rejected = read_plain(folder / "set.csv")
    assert len(rows) == 1 and "also on line 2" in rejected[0].message
    (folder / "a.txt").unlink()
    rows, rejected = read_plain(folder)
    assert len(rows) == 1 and "no a.txt beside it" in rejected[0].message


def test_what_is_plain(folder, tmp_path_factory):
    empty = tmp_path_factory.mktemp("empty")
    assert is_plain(folder) and not is_plain(empty)
    (empty / "m.jsonl").write_text('{"data_id": "a", "video_info": []}\n')
    assert not is_plain(empty / "m.jsonl")
    with pytest.raises(ValueError, match="NAVA rows"):
        plain_rows(empty / "m.jsonl")
    with pytest.raises(FileNotFoundError):
        plain_rows(empty / "none")


@pytest.mark.parametrize("name", ["a b", "a/b", "ä", "x" * 300, "a\nb", "\udcff", "con", ".a", "a'\"b", "-"])
def test_ids_are_fit_for_files_and_differ(name):
    assert not name_problem(safe_id(name)), safe_id(name)
    assert safe_id(name) != safe_id(name + "_")


def test_files_of_one_stem_have_ids_of_their_own(folder):
    for name in ("a.mov", "a.mov.mp4", "sub/b.webm"):
        make_clip(folder / f"{name}.mp4", 7).rename(folder / name)
        (folder / name).with_suffix(".txt").write_text("A face.")
    assert [clip.data_id for clip in clips_of(folder)] == ["a", "a.mov", "a.mp4", *SUB_IDS]
    names = ("a.mp4", "a.mov", "a.mov.mp4", "sub/b.mp4", "sub/b.webm")
    (folder / "s.csv").write_text("file_name,text\n" + "".join(f"{name},x\n" for name in names))
    ids = [clip.data_id for clip in clips_of(folder / "s.csv")]
    assert ids == ["a", "a.mov", "a.mov.mp4", *SUB_IDS]
    rows = plain_rows(folder / "s.csv")
    write_manifest(folder / "m.jsonl", rows)
    assert len(read_manifest(folder / "m.jsonl")[0]) == 5


def test_one_file_by_two_names_is_there_twice(folder):
    (folder / "s.csv").write_text("file_name,text\na.mp4,x\n./a.mp4,y\nsub/../a.mp4,z\n")
    clips = plain_clips(folder / "s.csv")
    assert [isinstance(clip, FieldError) for clip in clips] == [False, True, True]


@given(st.lists(st.sampled_from(["a", "a.mov", "a.mp4", "b", "A", "a~2", "ä.mp4"]), min_size=1, max_size=9))
def test_ids_are_those_of_the_stems_and_never_twice(names):
    """Whatever the order: an id by itself is the stem's, and no two are alike."""
    paths = [Path(f"{name}{suffix}") for name in names for suffix in (".mp4", ".mov")]
    used = set[str]()
    ids = [unused_id(path, path.name, used) for path in paths]
    assert len(set(ids)) == len(ids) and not any(map(name_problem, ids))
    first = {path.stem: found for path, found in reversed(list(zip(paths, ids, strict=True)))}
    alone = [stem for stem in first if stem not in {other.name for other in paths}]
    assert all(first[stem] == safe_id(stem) for stem in alone)
