"""States of others are read without running what is pickled in them; nothing but states is removed."""

from __future__ import annotations

import collections
import io
import os
import pickle
import warnings
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from canary import unchanged
from torch.distributed.checkpoint import state_dict_saver
from torch.distributed.checkpoint.filesystem import FileSystemReader

from pretrain.titan.checkpoints import remove_incomplete, retain
from pretrain.titan.safe_dcp import SafePlanner, SafeReader, load_states, read_metadata
from pretrain.titan.store_dcp import StoreReader

pytestmark = [pytest.mark.security, pytest.mark.filterwarnings("ignore:torch.distributed is")]


class Touch:
    """Its unpickling writes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (os.system, (f"touch {self.mark}",))


def state() -> dict:
    return {
        "weight": torch.arange(6.0).reshape(2, 3),
        "half": torch.ones(3, dtype=torch.bfloat16),
        "nested": {
            "steps": 7,
            "betas": (0.9, 0.95),
            "judge": '{"a": 1}',
            "raw": b"123",
            "off": None,
            "on": True,
        },
        "ordered": collections.OrderedDict(lr=1e-3),
    }


def saved(folder: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state_dict_saver.save(state(), checkpoint_id=folder, no_dist=True)
    return folder


def load(folder: Path, reader=SafeReader) -> dict:
    into = {
        "weight": torch.zeros(2, 3),
        "half": torch.zeros(3, dtype=torch.bfloat16),
        "nested": {"steps": 0, "betas": (0.0, 0.0), "judge": "", "raw": b"", "off": None, "on": False},
        "ordered": collections.OrderedDict(lr=0.0),
    }
    load_states(into, reader(folder))
    return into


def rewritten(folder: Path, change) -> None:
    path = folder / ".metadata"
    content = pickle.loads(path.read_bytes())
    path.write_bytes(pickle.dumps(change(content), protocol=4))


def test_our_own_states_come_back_as_they_were(tmp_path):
    for reader in (SafeReader, StoreReader):
        found = load(saved(tmp_path / "step-1"), reader)
        wanted = state()
        assert torch.equal(found.pop("weight"), wanted.pop("weight"))
        assert torch.equal(found.pop("half"), wanted.pop("half"))
        assert found == wanted


@pytest.mark.parametrize("place", ["alone", "planner_data", "storage_data", "storage_meta", "properties"])
def test_a_pickle_in_the_metadata_is_not_run(tmp_path, place):
    folder, mark = saved(tmp_path / "step-1"), tmp_path / "code_ran"

    def put(metadata):
        if place == "alone":
            return Touch(mark)
        if place == "storage_data":
            metadata.storage_data[next(iter(metadata.storage_data))] = Touch(mark)
        elif place == "properties":
            metadata.state_dict_metadata["weight"].size = Touch(mark)
        else:
            setattr(metadata, place, Touch(mark))
        return metadata

    rewritten(folder, put)
    with (
        unchanged(folder),
        pytest.raises(ValueError, match=r"names (posix|os|nt)\.system, which no checkpoint"),
    ):
        load(folder)
    assert not mark.exists()
    with suppress(AttributeError):
        FileSystemReader(folder).read_metadata()  # torch's own reader runs it: the attack is one
    assert mark.exists()


def test_a_pickle_beside_the_tensors_is_not_run(tmp_path):
    mark = tmp_path / "code_ran"
    value = io.BytesIO()
    torch.save(Touch(mark), value)

    class Item:
        class dest_index:
            fqn = "nested.judge"

    planner = SafePlanner()
    planner.original_state_dict, planner.mappings = {}, {"nested.judge": ("nested", "judge")}
    value.seek(0)
    with pytest.raises(ValueError, match=r"nested\.judge: cannot be read"):
        planner.load_bytes(Item, value)  # type: ignore[arg-type]
    assert not mark.exists()


@pytest.mark.parametrize("name", ["../other.bin", "/etc/hostname", "sub/x", "..", "", ".", 3, None])
def test_states_lie_in_their_own_folder(tmp_path, name):
    folder = saved(tmp_path / "step-1")

    def elsewhere(metadata):
        for info in metadata.storage_data.values():
            info.relative_path = name
        return metadata

    rewritten(folder, elsewhere)
    with pytest.raises(ValueError, match="no checkpoint of ours"):
        load(folder)


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"\x80\x04.", b"\x80\x04}.", b"garbage", b"\x80\x04N.", b"c", b"\x80\x04" + b"(" * 100_000),
        b"\x80\x04\x8e" + (2**62).to_bytes(8, "little"),  # a bytes object of 4 EiB
        b"\x80\x04cbuiltins\neval\n(V1\ntR.",
        b"\x80\x04ctorch\nload\n(V1\ntR.",
        b"\x80\x04cpathlib\nos.system\n(V1\ntR.",
        b"\x80\x04\x8c\x07pathlib\x8c\x0dPath.__class__\x93.",
    ],
)
def test_what_is_no_metadata_is_one_line(content):
    with pytest.raises(ValueError, match=r"^where: cannot be read \(.*no checkpoint of ours") as error:
        read_metadata(io.BytesIO(content), "where")
    assert "\n" not in str(error.value)


def test_a_folder_named_like_a_state_is_not_removed(tmp_path):
    for step, name in ((5, "thesis.txt"), (6, "__0_0.distcp"), (7, ".metadata"), (8, ".metadata")):
        path = tmp_path / f"step-{step}" / name
        path.parent.mkdir()
        path.write_text("x")
    (tmp_path / "step-7" / "notes.md").write_text("of the user")
    (tmp_path / "step-9").symlink_to(tmp_path / "step-5")
    assert remove_incomplete(tmp_path) == [6]
    retain(tmp_path, keep_last=1, keep_every=0)
    assert (tmp_path / "step-7" / "notes.md").exists() and (tmp_path / "step-8").exists()
    assert (tmp_path / "step-5" / "thesis.txt").exists() and (tmp_path / "step-9").is_symlink()
