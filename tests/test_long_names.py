"""Names up to the file system's limit, with temporary names around them, also of one within another."""

import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from pretrain.files import MAX_FILE_NAME_BYTES, TEMPORARY, replacing, save_tensors
from pretrain.media.write import write_mp4, write_wav
from pretrain.prompt.names import MAX_NAME_BYTES, name_problem
from pretrain.storage import writing

LONG = ["n" * MAX_NAME_BYTES, "一" * (MAX_NAME_BYTES // 3)]
PROCESSES = (7, 4_194_304)  # of Linux at most


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("name", LONG, ids=["ascii", "three bytes"])
def test_files_of_the_longest_names_are_written(name: str, process: int, tmp_path, monkeypatch) -> None:
    """Each writer puts a temporary name around the one that it is given, as clips are written."""
    monkeypatch.setattr(os, "getpid", lambda: process)
    assert not name_problem(name)
    with writing(tmp_path / f"{name}.mp4") as path:
        write_mp4(path, np.zeros((2, 32, 32, 3), np.uint8), 24.0, None, 16_000)
    with writing(tmp_path / f"{name}.wav") as path:
        write_wav(path, np.zeros(100, np.float32), 16_000)
    with writing(tmp_path / f"{name}.safetensors") as path:
        save_tensors({"video": torch.ones(1)}, path)
    made = {path.name for path in tmp_path.iterdir()}
    assert made == {f"{name}.{ending}" for ending in ("mp4", "wav", "safetensors")}
    assert load_file(tmp_path / f"{name}.safetensors")["video"].item() == 1


@settings(max_examples=40)
@given(st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=255))
def test_a_temporary_name_fits_and_is_known_as_one(tmp_path_factory, name: str) -> None:
    path = tmp_path_factory.getbasetemp() / name
    if name in (".", "..") or len(name.encode()) > MAX_FILE_NAME_BYTES:
        return
    with pytest.raises(KeyError), replacing(path) as temporary:
        assert len(os.fsencode(temporary.name)) <= MAX_FILE_NAME_BYTES
        if "\n" not in name:
            assert TEMPORARY.fullmatch(temporary.name)[1] == str(os.getpid())  # type: ignore[index]
        raise KeyError


def test_long_names_that_differ_at_their_end_have_temporary_names_of_their_own(tmp_path) -> None:
    names = [f"{'n' * 250}{number}" for number in range(3)]
    with replacing(tmp_path / names[0]) as one, replacing(tmp_path / names[1]) as two:
        assert one != two
        one.write_text("one")
        two.write_text("two")
    assert [(tmp_path / name).read_text() for name in names[:2]] == ["one", "two"]
