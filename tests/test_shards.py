"""Sharded safetensors: the bytes are the library's, memory holds a tensor, nothing half-written, also in an
object store."""

import hashlib
import json
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from pretrain.model.shard_writer import ShardWriter, plan_of, write_tensors
from pretrain.model.shards import DTYPES, InMemory, ShardReader
from pretrain.storage import place

shapes = st.lists(
    st.tuples(st.lists(st.integers(0, 4), max_size=3), st.sampled_from(sorted(DTYPES))),
    min_size=1,
    max_size=6,
)


def filled(chosen) -> dict[str, torch.Tensor]:
    return {
        f"k{index}.ä": (10 * torch.rand(shape)).to(DTYPES[dtype])
        for index, (shape, dtype) in enumerate(chosen)
    }


def write(folder: Path, tensors: dict[str, torch.Tensor], max_bytes: int = 1 << 30) -> ShardWriter:
    with ShardWriter(folder, "x", plan_of(InMemory(tensors)), max_bytes) as writer:
        write_tensors(writer, InMemory(tensors))
    return writer


@settings(max_examples=40, deadline=None)
@given(chosen=shapes)
def test_a_file_has_the_bytes_that_the_library_writes(chosen, tmp_path_factory) -> None:
    folder, tensors = tmp_path_factory.mktemp("s"), filled(chosen)
    writer = write(folder, tensors)
    save_file(tensors, folder / "library")
    expected = (folder / "library").read_bytes()
    assert (folder / "x.safetensors").read_bytes() == expected and writer.digest() == hashlib.sha256(
        expected
    ).hexdigest()


@settings(max_examples=40, deadline=None)
@given(chosen=shapes, max_bytes=st.integers(1, 200), stem=st.booleans())
def test_what_is_written_in_shards_is_read_back(chosen, max_bytes, stem, tmp_path_factory) -> None:
    folder, tensors = tmp_path_factory.mktemp("s"), filled(chosen)
    writer = write(folder, tensors, max_bytes)
    reader = ShardReader(folder, "x" if stem else "")
    assert set(reader.keys()) == set(tensors) and reader.sha256() == writer.files
    for key, value in tensors.items():
        assert torch.equal(reader.tensor(key), value) and (reader.dtype(key), reader.shape(key)) == (
            value.dtype,
            value.shape,
        )
    library = {key: value for file in reader.files for key, value in load_file(file).items()}
    assert all(torch.equal(library[key], value) for key, value in tensors.items())


def test_fewer_shards_take_the_place_of_more() -> None:
    folder = place("memory://shards/model")
    tensors = {f"k{index}": torch.full((10,), float(index)) for index in range(4)}
    write(folder, tensors, 40)
    assert len(ShardReader(folder, "x").files) == 4
    write(folder, {"k0": torch.ones(3)})
    assert [path.name for path in sorted(folder.iterdir())] == ["x.safetensors"]
    assert torch.equal(ShardReader(folder).tensor("k0"), torch.ones(3))


def test_failure_leaves_the_earlier_checkpoint(tmp_path) -> None:
    tensors = {f"k{index}": torch.full((10,), float(index)) for index in range(4)}
    write(tmp_path, tensors, 40)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(KeyError), ShardWriter(tmp_path, "x", plan_of(InMemory(tensors)), 40) as writer:
        for key in writer.order[:3]:
            writer.add(key, tensors[key] + 1)
        raise KeyError("stop")
    with (
        pytest.raises(ValueError, match="of 4 shards were written"),
        ShardWriter(tmp_path, "x", plan_of(InMemory(tensors)), 40) as writer,
    ):
        writer.add("k0", tensors["k0"])
    with (
        pytest.raises(ValueError, match="expected k0"),
        ShardWriter(tmp_path, "x", plan_of(InMemory(tensors)), 40) as writer,
    ):
        writer.add("k1", tensors["k1"])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_disk_that_fills_up_is_named_and_nothing_stays(tmp_path) -> None:
    """What is left in the buffer fails once more when the file is closed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(OSError) as error:
            write(tmp_path, {"k": torch.ones(900), "l": torch.ones(300), "m": torch.ones(10_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert error.value.filename == str(tmp_path / "x.safetensors") and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [0, 5, 8, 60, -1])
def test_a_truncated_file_is_named_before_anything_is_read(size: int, tmp_path) -> None:
    write(tmp_path, {"k": torch.ones(100)})
    path = tmp_path / "x.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"x\.safetensors: not a whole safetensors file") as error:
        ShardReader(path)
    assert "\n" not in str(error.value)


MEASURE = """
import json, sys, tracemalloc
from pathlib import Path
from pretrain.convert.importing import ImportConfig, plan_import, run_import
from pretrain.model.args import ModelArgs
from pretrain.model.flavors import FLAVORS

FLAVORS["big_published"] = ModelArgs(
    width=512, num_heads=4, ffn_width=2048, num_alignment_blocks=2, num_fusion_blocks=6, text_width=64,
    audio_embed_hidden=256, attend_text_padding=True, dropped_text_is_zeros=True,
)
def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024
planned = plan_import(ImportConfig(kind="wan2.2", flavor="big_published"), Path(sys.argv[1]))
before = peak()
run_import(planned, Path(sys.argv[2]), max_bytes=int(sys.argv[3]))
print(json.dumps(peak() - before))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak memory from /proc")
def test_an_import_stays_below_two_shards(tmp_path) -> None:
    """Of a checkpoint of eight shards."""
    from convert_cases import write_checkpoint

    from pretrain.convert.account import sizes_of, their_shapes
    from pretrain.convert.layouts import rules
    from pretrain.model.args import ModelArgs

    args = ModelArgs(
        width=512,
        num_heads=4,
        ffn_width=2048,
        num_alignment_blocks=2,
        num_fusion_blocks=6,
        text_width=64,
        audio_embed_hidden=256,
        attend_text_padding=True,
    )
    sizes = sizes_of(args)
    expected = their_shapes(rules("wan", args, sizes.shapes), sizes)
    path = write_checkpoint(
        tmp_path / "s", {key: torch.zeros(shape) for key, shape in expected.items()}, shards=8
    )
    largest = max(file.stat().st_size for file in path.glob("*.safetensors"))
    command = [sys.executable, "-c", MEASURE, str(path), str(tmp_path / "m"), str(largest)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    grown = json.loads(done.stdout)
    assert len(list((tmp_path / "m").glob("*.safetensors"))) > 3
    assert grown < 2 * largest, f"{grown / 2**20:.0f} MiB for shards of {largest / 2**20:.0f} MiB"
    print(
        f"peak grew by {grown / 2**20:.1f} MiB; largest shard {largest / 2**20:.1f} MiB, checkpoint "
        f"{8 * largest / 2**20:.0f} MiB"
    )


def test_files_of_other_checkpoints_stay(tmp_path) -> None:
    for name in ("x-tuned.safetensors", "x-00001-of-2.safetensors", "x.safetensors.bak", "xy.safetensors"):
        (tmp_path / name).write_bytes(b"of somebody else")
    before = {path.name for path in tmp_path.iterdir()}
    write(tmp_path, {f"k{index}": torch.ones(10) for index in range(3)}, 40)
    write(tmp_path, {"k": torch.ones(3)})
    assert {path.name for path in tmp_path.iterdir()} == before | {"x.safetensors"}


def entry(shape, begin, end, dtype="F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


HEADERS: dict[str, object] = {
    "overlapping": {"a": entry([2], 0, 8), "b": entry([2], 0, 8)},
    "a hole": {"a": entry([2], 8, 16)},
    "beyond the end": {"a": entry([4], 10**30, 10**30 + 16)},
    "negative place": {"a": entry([4], -16, 0)},
    "fractional place": {"a": entry([4], 0.0, 16.0)},
    "negative shape": {"a": entry([-2, -2], 0, 16)},
    "endless shape": {"a": entry([4], 0, 16), "b": entry([2**70, 0], 16, 16)},
    "other type": {"a\nb": entry([4], 0, 16, "Q\n")},
    "no object": [1],
    "deep": "[" * 100_000,
}


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_headers_that_lie_are_refused_in_one_line(header, tmp_path) -> None:
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    (tmp_path / "x.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(16))
    with pytest.raises(ValueError, match=r"x\.safetensors: not a whole safetensors file") as error:
        ShardReader(tmp_path / "x.safetensors")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["../x.safetensors", "/x.safetensors", "..\\x.safetensors", "weights.bin"])
def test_an_index_names_files_of_its_own_folder_alone(name: str, tmp_path) -> None:
    (tmp_path / "i").mkdir()
    write(tmp_path, {"k": torch.ones(3)})
    write(tmp_path / "i", {"k": torch.ones(3)})
    (tmp_path / "i" / "x.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "-x.safetensors", "k": name}})
    )
    with pytest.raises(ValueError, match="not an index") as error:
        ShardReader(tmp_path / "i")
    assert "'-x.safetensors'" not in str(error.value) and "\n" not in str(error.value)
