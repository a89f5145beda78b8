"""A folder's media: everything is taken or counted, names do not clash, circles end."""

import json
import os

import numpy as np
import pytest

from experiments.cli import main
from experiments.scoring.clips import read_source
from pretrain.media.write import write_mp4, write_wav
from rewards.media_folder import MEDIA_SUFFIXES, left_out_line, scan_folder


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def names_of(folder):
    found = read_source(folder)
    return [clip.name for clip in found.clips], dict(found.left_out)


def test_every_entry_is_taken_or_counted(tmp_path):
    touch(
        tmp_path,
        "a.mp4",
        "b.M4V",
        "c.ts",
        "d.wav",
        "sub/e.opus",
        "x.txt",
        "y.TXT",
        "z.json",
        "README",
        ".h.mp4",
    )
    touch(tmp_path, ".git/f.mp4", "sub/list.jsonl")
    (tmp_path / "linked").symlink_to(tmp_path / "sub")
    (tmp_path / "circle").symlink_to(tmp_path)
    (tmp_path / "gone.mp4").symlink_to(tmp_path / "nowhere.mp4")
    (tmp_path / "l.mp4").symlink_to(tmp_path / "a.mp4")
    os.mkfifo(tmp_path / "pipe.mp4")
    names, left_out = names_of(tmp_path)
    assert names == ["a", "b", "c", "d", "l", "sub/e"]
    assert left_out == {
        ".json": 1,
        ".jsonl": 1,
        ".txt": 2,
        "file without suffix": 1,
        "hidden file": 1,
        "hidden folder": 1,
        "link to a folder": 2,
        "link to nothing": 1,
        "special file": 1,
    }
    assert left_out_line({".m4v": 3, "link to a folder": 1}) == "left out: 3 .m4v, 1 link to a folder"
    assert left_out_line({}) == ""


@pytest.mark.parametrize("suffix", sorted(MEDIA_SUFFIXES))
def test_every_suffix_that_the_reader_knows_is_taken(tmp_path, suffix):
    touch(tmp_path, f"a{suffix}", f"b{suffix.upper()}")
    assert names_of(tmp_path) == (["a", "b"], {})


def test_names_that_differ_by_the_suffix_do_not_clash(tmp_path):
    touch(tmp_path, "a.mp4", "a.mov", "a.wav", "b.wav", "b.flac", "c.mp4", "c.wav", "s/a.mp4")
    assert names_of(tmp_path) == (
        ["a.mov", "a.mp4", "b.flac", "b.wav", "c", "s/a"],
        {"sound beside a video of its name": 2},
    )


def test_beside_an_index_the_rest_is_counted(tmp_path):
    row = {"data_id": "a", "prompt": "Rain.", "video": "a.mp4", "reference_paths": [], "meta": {}}
    touch(tmp_path, "g/a.mp4", "g/a.wav", "g/old.mp4", "g/sheet.png", "free.mp4")
    (tmp_path / "g/index.jsonl").write_text(json.dumps(row) + "\n")
    assert names_of(tmp_path) == (
        ["g/a", "free"],
        {".mp4 not in index.jsonl": 1, ".png": 1, "sound beside a video of its name": 1},
    )
    inside = {**row, "video": "deep/a.mp4"}
    touch(tmp_path, "g/deep/a.mp4")
    (tmp_path / "g/index.jsonl").write_text(json.dumps(inside) + "\n")
    assert names_of(tmp_path)[0] == ["g/a", "free"]


def test_a_folder_of_nothing_says_what_is_there(tmp_path):
    touch(tmp_path, "a.txt", "b.txt")
    with pytest.raises(FileNotFoundError, match=r"no index.jsonl and no .* \(left out: 2 .txt\)"):
        read_source(tmp_path)


def test_a_folder_that_may_not_be_read_is_counted(tmp_path, monkeypatch):
    touch(tmp_path, "a.mp4", "sub/b.mp4")
    real = os.scandir

    def scandir(path):
        if str(path).endswith("sub"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr("rewards.media_folder.os.scandir", scandir)
    assert scan_folder(tmp_path).left_out == {"folder that may not be read": 1}


def test_the_command_says_it_in_the_table_and_in_the_json(tmp_path, capsys):
    clips = tmp_path / "clips"
    frames = np.zeros((5, 16, 16, 3), np.uint8)
    write_mp4(clips / "a.mp4", frames, 25.0, np.full(3200, 0.1, np.float32), 16_000)
    write_wav(clips / "b.wav", np.full(3200, 0.1, np.float32), 16_000)
    touch(clips, "a.txt", "b.srt", "c.srt")
    command = ["score", str(clips), "--rewards", "snr_estimate_db", "--out", str(tmp_path / "s.jsonl")]
    main(command)
    assert "left out: 2 .srt, 1 .txt" in capsys.readouterr().out
    main([*command, "--json"])
    assert json.loads(capsys.readouterr().out)["left_out"] == {".srt": 2, ".txt": 1}
