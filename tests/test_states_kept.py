"""What clears a folder of training states takes nothing but states, on a disk and in a store alike."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pretrain.storage import create, is_file, list_folder, place, remove_folder
from pretrain.titan.checkpoints import remove_incomplete, retain

STATES = ("__0_0.distcp", "__1_0.distcp", "__12_3.distcp", "__0.metadata", ".metadata.tmp")
FOREIGN = (
    "model.safetensors",
    "notes.md",
    "eval.json",
    "draft.tmp",
    "x.distcp",
    "__0_0.distcp.bak",
    "step-2",
)
numbers = itertools.count()


@pytest.fixture(params=["local", "memory"], scope="module")
def root(request, tmp_path_factory) -> Path:
    if request.param == "local":
        return tmp_path_factory.mktemp("states")
    return place("memory://states-kept/run")


def step_of(root: Path, names: tuple[str, ...], step: int = 2) -> tuple[Path, Path]:
    folder = root / str(next(numbers)) / "stage1"
    for name in names:
        create(folder / f"step-{step}" / name, name)
    return folder, folder / f"step-{step}"


@settings(max_examples=30, deadline=None)
@given(
    states=st.sets(st.sampled_from(STATES), min_size=1),
    foreign=st.sets(st.sampled_from(FOREIGN)),
    whole=st.booleans(),
)
@example(states={"__0_0.distcp"}, foreign={"step-2"}, whole=False)
def test_only_folders_of_states_alone_are_removed(root, states, foreign, whole) -> None:
    names = (*states, *foreign, *([".metadata"] if whole else []))
    folder, step = step_of(root, names)
    assert remove_incomplete(folder) == ([] if whole or foreign else [2])
    assert bool(list_folder(step)) == bool(whole or foreign)
    create(folder / "step-3" / ".metadata", "")
    if whole:
        assert retain(folder, 1, 0) == [3]
    left = {path.name for path in list_folder(step)}
    assert left == (set(names) if foreign else set()), "a folder stays whole or goes"
    assert [path.name for path in list_folder(folder)] == (["step-2"] if foreign else []) + ["step-3"]


def test_a_folder_that_stays_is_named_once(root, caplog) -> None:
    folder, step = step_of(root, ("__0_0.distcp", "notes.md"))
    for _ in range(3):
        assert remove_incomplete(folder) == []
    said = [record.getMessage() for record in caplog.records]
    assert said == [f"{step}: holds 'notes.md', which is no training state, so the whole folder is kept"]


def test_links_and_what_only_looks_like_a_state_stay(tmp_path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "__0_0.distcp").write_text("x")
    run = tmp_path / "run"
    (run / "step-4" / "__0_0.distcp").mkdir(parents=True)  # a folder of that name
    (run / "step-5").symlink_to(elsewhere)
    (run / "step-6").mkdir()
    assert remove_incomplete(run) == [6]
    assert (elsewhere / "__0_0.distcp").is_file() and (run / "step-4" / "__0_0.distcp").is_dir()


def test_what_comes_while_a_state_is_removed_stays(root, monkeypatch) -> None:
    folder, step = step_of(root, ("__0_0.distcp",))

    def listed(path: Path) -> list[Path]:
        found = list_folder(path)
        create(step / "late.txt", "mine")
        return found

    monkeypatch.setattr("pretrain.titan.checkpoints.list_folder", listed)
    remove_incomplete(folder)
    assert is_file(step / "late.txt") and not is_file(step / "__0_0.distcp")
    remove_folder(folder)
