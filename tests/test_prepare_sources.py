"""What `nava prepare` reads: tables, lists, patterns and folders; what is left out is counted."""

from __future__ import annotations

import glob
import os
from pathlib import Path

import pytest

from experiments.preparation.config import PrepareConfig
from experiments.preparation.duplicates import near_duplicates
from experiments.preparation.prepare import _check_apart, _check_none_within
from experiments.preparation.sources import find_sources
from pretrain.data.plain import is_plain, plain_clips

CONFIG = PrepareConfig()


def test_sources_of_one_stem_have_ids_of_their_own(tmp_path):
    for name in ("a.mov.mp4", "a.avi", "a.mov", "b.mp4"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "all.list").write_text("a.mov.mp4\na.avi\na.mov\nb.mp4\n")
    sources, _, _ = find_sources(str(tmp_path / "all.list"), CONFIG)
    ids = [source.data_id for source in sources]
    assert ids[:2] == ["a.mov", "a"] and ids[3] == "b" and len(set(ids)) == 4
    (tmp_path / "t.csv").write_text("file_name,text\na.avi,x\na.mov,y\n")
    sources, _, _ = find_sources(str(tmp_path / "t.csv"), CONFIG)
    assert [source.data_id for source in sources] == ["a", "a.mov"]


def names_in(place: Path) -> tuple[list[str], dict[str, int]]:
    sources, _, left_out = find_sources(str(place), CONFIG)
    return [source.name for source in sources], dict(left_out)


def fill(folder: Path, *names: str, table: str = "") -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    if table:
        (folder / table).write_text("file_name,text,reference\nx.mp4,a face,\n")


def test_a_table_in_a_subfolder_hides_no_other_video(tmp_path):
    fill(tmp_path, "one.mp4", "two.mov", "old/x.mp4", table="old/metadata.csv")
    for reader in (lambda place: find_sources(str(place), CONFIG), plain_clips, is_plain):
        with pytest.raises(ValueError, match=r"old/metadata.csv .* one.mp4 and 1 more lies outside of old"):
            reader(tmp_path)
    assert names_in(tmp_path / "old") == (["x.mp4"], {})
    for name in ("one.mp4", "two.mov"):
        (tmp_path / name).unlink()
    assert names_in(tmp_path) == (["x.mp4"], {})


def test_what_a_table_in_a_subfolder_names_may_lie_elsewhere(tmp_path):
    fill(tmp_path, "clips/one.mp4", "voices/a.wav", "notes.wav", "train/x.mp4")
    (tmp_path / "train/metadata.csv").write_text(
        "file_name,text,reference\n../clips/one.mp4,a face,../voices/a.wav\nx.mp4,a face,\n"
    )
    assert names_in(tmp_path) == (["../clips/one.mp4", "x.mp4"], {".wav": 1})


def test_videos_that_a_table_does_not_name_are_counted(tmp_path):
    fill(tmp_path, "x.mp4", "y.mp4", "sub/z.mov", "x.txt", table="metadata.csv")
    left_out = {".txt": 1, "video that metadata.csv does not name": 2}
    assert names_in(tmp_path) == (["x.mp4"], left_out)


def test_texts_that_are_used_are_not_left_out(tmp_path):
    fill(tmp_path, "a.mp4", "b.mp4", "other.txt", "b.vtt")
    for name in ("a.txt", "sub/c.txt"):
        fill(tmp_path, name)
    fill(tmp_path, "sub/c.mp4")
    cue = "00:00:01,000 --> 00:00:02,000\nwords"
    (tmp_path / "b.srt").write_text(f"1\n{cue}\n")
    assert names_in(tmp_path) == (["a.mp4", "b.mp4", "sub/c.mp4"], {".txt": 1, ".vtt": 1})


@pytest.mark.parametrize("table", ["data/train/metadata.csv", "metadata.CSV"])
def test_a_table_that_is_not_read_is_said(tmp_path, table):
    fill(tmp_path, "data/train/x.mp4", "notes.csv", table=table)
    names, left_out = names_in(tmp_path)
    assert names == ["data/train/x.mp4"]
    assert left_out == {".csv": 1, f"table of clips that is not read ({table}); give its folder": 1}


def test_names_that_are_shown_alike_are_two(tmp_path):
    fill(tmp_path, "a\\xff.mp4")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/a\xff.mp4")).write_bytes(b"x")
    sources, _, _ = find_sources(str(tmp_path), CONFIG)
    assert [source.name for source in sources] == ["a\\xff.mp4", "a\\xff.mp4~2"]
    assert len({source.data_id for source in sources}) == 2


def test_a_list_may_begin_with_a_byte_order_mark(tmp_path):
    fill(tmp_path, "a.mp4", "b.mp4")
    for begin in ("", "# mine\r\n"):
        (tmp_path / "all.list").write_text(f"\ufeff{begin}a.mp4\r\nb.mp4\r\n", encoding="utf-8")
        assert names_in(tmp_path / "all.list")[0] == ["a.mp4", "b.mp4"]
    (tmp_path / "all.list").write_text("a.mp4\nb.mp4\n", encoding="utf-16")
    with pytest.raises(ValueError, match="UTF-16; save it as UTF-8"):
        names_in(tmp_path / "all.list")


@pytest.mark.parametrize(
    ("pattern", "out", "reads"),
    [
        ("raw/**/*.mp4", "raw/set", True),
        ("raw/**", "raw/set", True),
        ("raw/*/*/*.mp4", "raw/set", True),
        ("*/set/clips/*.mp4", "raw/set", True),
        ("raw/**/../**/*.mp4", "raw/set", True),
        ("raw/*/rejected/*", "raw/set", True),
        ("raw/*/*.mp4", "raw/set", False),
        ("raw/**/*.mov", "raw/set", False),
        ("raw/**/*.mp4", "raw/.set", False),
        ("raw/**/*.mp4", "set", False),
        ("raw/*.mp4", "raw/set", False),
    ],
)
def test_a_pattern_that_finds_what_is_written_is_refused(tmp_path, monkeypatch, pattern, out, reads):
    """The closed rule is `glob`'s own answer once a set lies there."""
    monkeypatch.chdir(tmp_path)
    fill(tmp_path, "raw/a.mp4", "raw/a.mov", "raw/b/c.mp4")
    try:
        _check_apart(pattern, Path(out))
    except ValueError as error:
        assert reads and "beside it" in str(error)
    else:
        assert not reads
    fill(tmp_path, f"{out}/clips/a-0000.mp4", f"{out}/rejected/a-0001.mp4")
    found = [Path(path).resolve() for path in glob.glob(pattern, recursive=True)]  # noqa: PTH207
    assert any({"clips", "rejected"} & set(path.parts) for path in found if path.is_file()) == reads


def test_a_list_that_names_the_output_is_refused(tmp_path):
    fill(tmp_path, "a.mp4", "set/clips/a-0000.mp4")
    (tmp_path / "all.list").write_text("a.mp4\nset/clips/a-0000.mp4\n")
    found, _, _ = find_sources(str(tmp_path / "all.list"), CONFIG)
    with pytest.raises(ValueError, match=r"a-0000.mp4 lies in --to"):
        _check_none_within(found, "all.list", tmp_path / "set")
    _check_none_within(found, "all.list", tmp_path / "other")


def test_a_limit_of_0_keeps_identical_clips():
    bits, prints = [["00" * 40, "ff" * 40]] * 2, [[[0.0] * 40] * 4] * 2
    assert list(near_duplicates(bits, prints, 0.15, 0.9)) == [1]
    assert near_duplicates(bits, prints, 0.0, 0.9) == {}
