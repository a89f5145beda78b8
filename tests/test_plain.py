"""Clips as people have them: folders of clip and text, tables, `datasets` folders."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from experiments.preparation import plain_rows
from pretrain.data.manifest import read_manifest, write_manifest
from pretrain.data.plain import is_plain, read_plain, safe_id
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
