"""The index of a set, sets in an object store, and the cache of their shards."""

from __future__ import annotations

import multiprocessing
import pickle
import uuid
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from test_loader_stream import ROWS, loader, rows, sample

from pretrain.data.encoding.writer import LatentWriter
from pretrain.data.stream.index import ROWS_PER_BATCH, IndexWriter, LatentIndex, size_key
from pretrain.data.stream.sample_set import buckets_of_index, open_set
from pretrain.data.stream.shard_cache import ShardCache
from pretrain.data.stream.store import LatentStore
from pretrain.storage import place, writing

SHAPES = [(37, 44, 80, 151), (7, 44, 80, 26), (0, 0, 0, 151), (37, 80, 44, 151)]


def index_row(number: int) -> dict:
    frames, height, width, tokens = SHAPES[number % 7 % 4]
    sizes = {
        "frames": frames,
        "height": height,
        "width": width,
        "tokens": tokens,
        "text": 512,
        "spans": number % 3,
    }
    return {
        "data_id": f"a-fairly-long-data-id-{number:09d}",
        "shard": number // 128,
        "row": number % 128,
        **sizes,
        "video_rate_hz": 6.0,
        "crc32": number * 2654435761 % 2**32,
        "line": 0,
    }


def write_index(path: Path, count: int) -> Path:
    with IndexWriter(path) as writer:
        for number in range(count):
            writer.add(index_row(number))
    return path


@pytest.mark.parametrize("count", [0, 1, ROWS_PER_BATCH, ROWS_PER_BATCH + 3])
def test_the_index_gives_back_its_rows(tmp_path: Path, count: int) -> None:
    index = LatentIndex(write_index(tmp_path / "index.arrow", count))
    assert len(index) == count
    for number in {0, 1, count // 2, count - 2, count - 1} & set(range(count)):
        found = index.row(number)
        expected = index_row(number)
        assert {name: value for name, value in found.items() if name != "bucket"} == {
            name: value for name, value in expected.items() if name != "line"
        }
    with pytest.raises(IndexError):
        index.row(count)
    if count:
        assert pickle.loads(pickle.dumps(index)).row(-1) == index.row(count - 1)
        buckets, starts = buckets_of_index(index)
        assert sorted(number for members in buckets.values() for number in members.tolist()) == list(
            range(count)
        )
        assert all(starts[key][-1] == len(members) for key, members in buckets.items())
        assert all(size_key(index_row(int(members[-1]))) == key for key, members in buckets.items())


def test_an_index_is_the_same_bytes_again_and_damage_is_named(tmp_path: Path) -> None:
    one, two = (write_index(tmp_path / name, 999).read_bytes() for name in ("one", "two"))
    assert one == two
    (tmp_path / "cut").write_bytes(one[:-50])
    with pytest.raises(ValueError, match=r"cut: not an index .*; run `nava encode` again"):
        LatentIndex(tmp_path / "cut")


def _private_bytes(path: Path, count: int, told: Any) -> None:
    """Memory that a process needs for the index of a set: what is not the mapped file."""

    def private() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024

    index = LatentIndex(path)
    assert sum(len(codes) for (codes,) in index.columns("bucket")) == count
    before = private()  # pyarrow itself is there
    buckets, _ = buckets_of_index(index)
    assert sum(map(len, buckets.values())) == count
    told.put((private() - before) / count)


@pytest.mark.slow
def test_a_million_rows_take_a_few_bytes_each(tmp_path: Path) -> None:
    count = 1_000_000
    path = write_index(tmp_path / "index.arrow", count)
    forks = multiprocessing.get_context("spawn")
    told = forks.Queue()
    process = forks.Process(target=_private_bytes, args=(path, count, told))
    process.start()
    per_row = told.get(timeout=60)
    process.join()
    print(f"{path.stat().st_size / count:.1f} bytes a row on disk, {per_row:.1f} in each process")
    assert per_row < 8 and path.stat().st_size / count < 100


@pytest.fixture
def remote(tmp_path: Path) -> Path:
    """A set in an object store, about 12 shards."""
    with LatentWriter(tmp_path / "paired", "codec", max_shard_bytes=40_000) as writer:
        for index in range(ROWS):
            writer.add(sample(index))
    where = place(f"memory://bucket-{uuid.uuid4().hex}/paired")
    for path in (tmp_path / "paired").iterdir():
        with writing(where / path.name) as temporary:
            temporary.write_bytes(path.read_bytes())
    return where


def test_a_remote_set_trains_like_a_local_one_from_a_small_cache(remote: Path, tmp_path: Path) -> None:
    local = open_set(tmp_path / "paired", in_memory_bytes=0, shuffle_shards=3)
    cache = ShardCache(tmp_path / "cache", max_bytes=200_000)
    streamed = open_set(remote, in_memory_bytes=0, shuffle_shards=3, cache=cache)
    assert rows(islice(iter(loader(streamed, prefetch=2)), 10)) == rows(islice(iter(loader(local)), 10))
    held = [path for path in (tmp_path / "cache").iterdir() if not path.name.startswith(".")]
    assert 2 <= len(held) < 12 and sum(path.stat().st_size for path in held) <= 200_000
    assert len(open_set(remote, cache=cache).samples) == ROWS  # and into memory


def test_the_least_recently_used_shard_leaves(tmp_path: Path) -> None:
    import hashlib
    import os

    where = place(f"memory://bucket-{uuid.uuid4().hex}")
    cache = ShardCache(tmp_path / "cache", max_bytes=250)
    sums = []
    for name in "abc":
        content = name.encode() * 100
        sums.append(hashlib.sha256(content).hexdigest())
        with writing(where / f"{name}.bin") as temporary:
            temporary.write_bytes(content)
    a = cache.fetch(where / "a.bin", sums[0], 100)
    b = cache.fetch(where / "b.bin", sums[1], 100)
    os.utime(a, (1, 1))
    os.utime(b, (2, 2))
    assert cache.fetch(where / "a.bin", sums[0], 100) == a  # used again: b is now the older one
    cache.fetch(where / "c.bin", sums[2], 100)
    assert a.exists() and not b.exists()
    b.write_bytes(b"half")  # a copy of another size is none
    assert cache.fetch(where / "b.bin", sums[1], 100).read_bytes() == b"b" * 100
    with pytest.raises(ValueError, match=r"a.bin: sha256 is"):
        cache.fetch(where / "a.bin", "0" * 64, 100)
    assert cache.fetch(tmp_path / "x", "", 0) == tmp_path / "x"


@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_damage_in_the_store_names_the_shard(remote: Path, tmp_path: Path, damage: str) -> None:
    store = LatentStore(remote, cache=ShardCache(tmp_path / "cache"))
    shard = remote / "shard-000003.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.unlink()
    if damage == "changed":
        with writing(shard) as temporary:
            temporary.write_bytes(content)
    says = (
        r"memory://.*shard-000003.safetensors: (shard is missing|damaged shard .*sha256).*--verify, then "
        r"go on"
    )
    with pytest.raises((ValueError, FileNotFoundError), match=says):
        list(store)
