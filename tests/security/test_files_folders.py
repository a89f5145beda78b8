"""A command replaces its own output folder, and nothing that is somebody else's."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
from canary import digest, unchanged
from hypothesis import given
from hypothesis import strategies as st

from experiments.cli import main
from experiments.commands.trash import in_trash
from pretrain.data.corpus.build import build_corpus
from pretrain.data.corpus.config import CorpusConfig
from pretrain.data.encoding.encode_launch import _check_set
from pretrain.owned import MARKER, check_owned, owned_folder
from pretrain.storage import TRASH, move_aside

pytestmark = pytest.mark.security


def make(out: Path, text: str, command: str = "generate") -> None:
    with owned_folder(out, command) as fresh:
        (fresh / "a.mp4").write_text(text)
        (fresh / "sub").mkdir()
        (fresh / "sub" / "b.wav").write_text(text)


def user_data(folder: Path) -> Path:
    (folder / "photos").mkdir(parents=True)
    (folder / "photos" / "1.jpg").write_text("years of work")
    return folder


def test_a_folder_that_is_not_there_is_no_way_to_another(tmp_path):
    """The first finding: `--to nope/../userdata`."""
    user_data(tmp_path / "userdata")
    with unchanged(tmp_path):
        with pytest.raises(ValueError, match="not empty and not marked"):
            check_owned(tmp_path / "nope" / ".." / "userdata", "generate")
        with pytest.raises(ValueError, match="not empty and not marked"):
            make(tmp_path / "nope" / ".." / "userdata", "new")
    make(tmp_path / "nope" / ".." / "mine", "new")
    assert (tmp_path / "mine" / "a.mp4").read_text() == "new" and not (tmp_path / "nope").exists()


@pytest.mark.parametrize("marker", ["", "{}", "[]", "null", "[" * 50_000, '{"command": "generate"}', "\0"])
def test_an_index_or_a_strange_marker_makes_no_folder_ours(tmp_path, marker):
    out = user_data(tmp_path / "out")
    (out / "index.jsonl").write_text('{"data_id": "a", "video": "photos/1.jpg"}\n')
    if marker:
        (out / MARKER).write_text(marker)
    with unchanged(tmp_path), pytest.raises(ValueError, match="give another folder, or move that one away"):
        make(out, "new")


def test_another_commands_folder_and_a_file_are_refused(tmp_path):
    make(tmp_path / "out", "old", "codec")
    (tmp_path / "file").write_text("text")
    with unchanged(tmp_path):
        with pytest.raises(ValueError, match="made by `nava codec`, not by `nava generate`"):
            make(tmp_path / "out", "new")
        with pytest.raises(ValueError, match="is not a folder"):
            make(tmp_path / "file", "new")


def test_a_file_of_the_users_among_ours_stops_it_before_work_begins(tmp_path):
    make(tmp_path / "out", "old")
    for name in ("notes.txt", "sub/notes.txt", "empty"):
        path = tmp_path / "out" / name
        path.mkdir() if name == "empty" else path.write_text("of the user")
        with (
            unchanged(tmp_path),
            pytest.raises(ValueError, match=f"holds '{name}', which `nava generate` did not"),
        ):
            make(tmp_path / "out", "new")
        path.rmdir() if name == "empty" else path.unlink()
    make(tmp_path / "out", "new")
    assert (tmp_path / "out" / "a.mp4").read_text() == "new"


def test_a_file_that_comes_while_it_runs_stays_and_so_does_what_was_made(tmp_path):
    for begun in (False, True):
        out = tmp_path / f"out{begun}"
        if begun:
            make(out, "old")
        with (
            pytest.raises(ValueError, match="what was made lies in") as error,
            owned_folder(out, "generate") as fresh,
        ):
            (fresh / "a.mp4").write_text("new")
            out.mkdir(exist_ok=True)
            (out / "thesis.txt").write_text("of the user")
        kept = Path(str(error.value).rpartition(" ")[2])
        assert (kept / "a.mp4").read_text() == "new" and kept.parent == tmp_path
        assert (out / "thesis.txt").read_text() == "of the user"
        assert not begun or (out / "a.mp4").read_text() == "old"


def test_a_folder_that_comes_between_the_check_and_the_exchange_stays(tmp_path, monkeypatch):
    out = tmp_path / "out"
    make(out, "old")
    before, rename = digest(out), Path.rename

    def late(path: Path, target: Path) -> Path:
        if target == out and not out.exists() and path.name.endswith(".partial"):
            user_data(out)
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", late)
    with pytest.raises(ValueError, match="something else was put there"):
        make(out, "new")
    assert (out / "photos" / "1.jpg").read_text() == "years of work"
    (aside,) = [one.path for one in in_trash(tmp_path / TRASH)]
    assert digest(aside) == before


def test_a_file_that_comes_at_the_very_last_is_found_in_what_was_moved_and_put_back(tmp_path, monkeypatch):
    out = tmp_path / "out"
    make(out, "old")
    rename = Path.rename

    def late(path: Path, target: Path) -> Path:
        if path == out:
            (out / "thesis.txt").write_text("of the user")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", late)
    with pytest.raises(ValueError, match=r"holds 'thesis\.txt'"):
        make(out, "new")
    assert (out / "thesis.txt").exists() and (out / "a.mp4").read_text() == "old"


def test_a_failure_leaves_everything_as_it_was(tmp_path, monkeypatch):
    make(tmp_path / "out", "old")
    with (
        unchanged(tmp_path),
        pytest.raises(KeyboardInterrupt),
        owned_folder(tmp_path / "out", "generate") as fresh,
    ):
        (fresh / "a.mp4").write_text("new")
        raise KeyboardInterrupt
    rename = Path.rename

    def refused(path: Path, target: Path) -> Path:
        if path.name.endswith(".partial"):
            raise PermissionError(13, "no", str(path))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refused)
    before = digest(tmp_path / "out")
    with pytest.raises(PermissionError):
        make(tmp_path / "out", "new")
    assert digest(tmp_path / "out") == before


def test_a_link_stays_and_its_target_is_replaced_each_time(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    for text in ("first", "second"):
        make(tmp_path / "out", text)
        assert (tmp_path / "out").is_symlink() and (tmp_path / "disk" / "a.mp4").read_text() == text
    user_data(tmp_path / "other")
    (tmp_path / "out").unlink()
    (tmp_path / "out").symlink_to(tmp_path / "other")
    with unchanged(tmp_path), pytest.raises(ValueError, match="not marked"):
        make(tmp_path / "out", "third")


def test_a_link_that_is_turned_while_it_runs_is_not_followed(tmp_path):
    (tmp_path / "disk").mkdir()
    other = user_data(tmp_path / "other")
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    with (
        unchanged(other),
        pytest.raises(ValueError, match="leads elsewhere"),
        owned_folder(tmp_path / "out", "generate") as fresh,
    ):
        (fresh / "a.mp4").write_text("new")
        (tmp_path / "out").unlink()
        (tmp_path / "out").symlink_to(other)


def test_folders_named_like_copies_of_ours_stay(tmp_path):
    """The second finding: `.out.partial` and the name of the copy that is moved aside."""
    for name in (
        ".out.partial",
        ".out.1.tmp",
        f".nava-{os.getpid()}-00000000.partial",
        ".nava-1-aaaaaaaa.partial",
    ):
        user_data(tmp_path / name)
    make(tmp_path / "out", "old")
    with unchanged(tmp_path / ".out.partial"):
        make(tmp_path / "out", "new")
    moved = move_aside(user_data(tmp_path / "x"), tmp_path / TRASH, "out")
    make(tmp_path / "out", "newer")
    assert moved and len(in_trash(tmp_path / TRASH)) == 3
    assert sum((path / "photos").is_dir() for path in tmp_path.iterdir() if path.name.startswith(".")) == 4


def test_what_a_killed_process_left_goes_to_the_trash(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from pretrain.owned import owned_folder\n"
        "with owned_folder(Path(sys.argv[1]), 'generate') as fresh:\n"
        "    (fresh / 'half.mp4').write_text('half'); os._exit(9)\n"
    )
    process = os.spawnl(os.P_WAIT, sys.executable, sys.executable, "-c", code, str(tmp_path / "out"))
    assert process == 9 and not (tmp_path / "out").exists()
    make(tmp_path / "out", "new")
    (left,) = in_trash(tmp_path / TRASH)
    assert (left.path / "half.mp4").read_text() == "half"
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".partial")]


def test_a_corpus_is_no_way_to_delete_a_folder_with_a_summary(tmp_path):
    out = user_data(tmp_path / "corpus")
    (out / "summary.json").write_text("{}")
    with unchanged(tmp_path), pytest.raises(ValueError, match="not marked as made by `nava corpus`"):
        build_corpus(CorpusConfig(), out)


def test_encoding_anew_moves_sets_and_nothing_else(tmp_path):
    ours = tmp_path / "ours"
    (ours / "parts").mkdir(parents=True)
    names = (
        "manifest.json",
        "index.arrow",
        "encode.json",
        "shard-000001.safetensors",
        MARKER,
        ".x.json.1.tmp",
    )
    for name in names:
        (ours / name).write_text("")
    _check_set(ours)
    _check_set(tmp_path / "absent")
    user_data(tmp_path / "set")
    with pytest.raises(ValueError, match="holds 'photos', which `nava encode` did not make"):
        _check_set(tmp_path / "set")


def test_emptying_the_trash_leaves_what_no_command_moved_there(tmp_path):
    user_data(tmp_path / "out" / TRASH / "mine")
    move_aside(user_data(tmp_path / "x"), tmp_path / "out" / TRASH)
    assert main(["trash", "empty", "--out", str(tmp_path / "out")]) == 0
    assert [path.name for path in (tmp_path / "out" / TRASH).iterdir()] == ["mine"]


NAMES = ("a", "b", "out", "photos")
PARTS = st.lists(st.sampled_from([*NAMES, "..", ".", "nope"]), min_size=1, max_size=5)
STEPS = st.lists(
    st.tuples(st.sampled_from(["file", "folder", "link", "ours", "dangling"]), PARTS, PARTS), max_size=8
)


def inside(root: Path, parts: list[str]) -> Path:
    return root.joinpath(*parts)


def is_inside(path: Path, root: Path) -> bool:
    return root in [real := Path(os.path.realpath(path)), *real.parents]  # resolve() raises on circles


def grow(root: Path, steps: list[tuple[str, list[str], list[str]]]) -> None:
    """A tree of files, folders, links and folders of ours; what cannot be made is left out."""
    for kind, parts, other in steps:
        path = inside(root, parts)
        if not is_inside(path, root):
            continue
        try:
            if kind == "file":
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text("of the user")
            elif kind == "folder":
                path.mkdir(parents=True, exist_ok=True)
            elif kind == "ours":
                make(path, "old")
            else:
                path.symlink_to(inside(root, other) if kind == "link" else root / "nowhere")
        except (OSError, ValueError, RuntimeError):
            continue


def users_files(root: Path) -> dict[str, int]:
    """Contents of the user's files, wherever they lie, and links, with how many there are of each."""
    found: dict[str, int] = {}
    for where, folders, files in os.walk(root):
        for name in [*files, *folders]:
            path = Path(where) / name
            key = ""
            if path.is_symlink():
                key = f"{path}>{os.readlink(path)}"  # noqa: PTH115
            elif path.is_file() and path.read_bytes() == b"of the user":
                key = str(path)
            if key:
                found[key] = found.get(key, 0) + 1
    return found


@given(STEPS, PARTS, st.one_of(st.none(), st.tuples(PARTS, st.booleans())))
def test_no_tree_of_links_dots_and_files_loses_what_is_the_users(steps, target, race):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder).resolve() / "root"
        root.mkdir()
        grow(root, steps)
        out = inside(root, target)
        if not is_inside(out, root):
            return
        before = users_files(root)
        try:
            with owned_folder(out, "generate") as fresh:
                (fresh / "a.mp4").write_text("new")
                if race:
                    grow(root, [("file" if race[1] else "link", race[0], ["a"])])
                    before |= users_files(root)
        except (ValueError, OSError, RuntimeError):
            pass
        else:
            assert (Path(os.path.realpath(out)) / "a.mp4").read_text() == "new"
        after = users_files(root)
        assert {key for key in before if key not in after} == set()
        assert not [path for path in root.rglob("*.partial")]
        shutil.rmtree(root)
