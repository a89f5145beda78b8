"""Encoded sets, local or remote: safetensors shards, `index.arrow` (a row per sample), `manifest.json`.

Not webdataset's tar: a tar is read front to back, so an exact global shuffle, or going on exactly on another
number of ranks, means reading everything again; a safetensors shard gives any sample by its key, mapped into
memory. Nothing here is a pickle.

Checksums: manifest.json has a SHA-256 of every shard, compared when a copy arrives from an object store and
by `nava encode --verify`; the index has a CRC-32 of every sample, compared at each read, so that damage is
located and no start reads a whole set.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from pretrain.data.encoding.parts import FORMAT, INDEX, MANIFEST, shard_name
from pretrain.data.stream.index import LatentIndex
from pretrain.data.stream.sample import Sample, checksum, tensor_names, unpack
from pretrain.data.stream.shard_cache import ShardCache
from pretrain.files import read_json, sha256_of
from pretrain.storage import is_file, place

_REPAIR = "run its `nava encode` again with --verify, then go on"
_OPEN_SHARDS = 64


class LatentStore:
    """A written set as a sequence of `Sample`; tensors are read on access, or up front with `in_memory`.

    Raises FileNotFoundError for a folder that is not a set, ValueError for another codec, a damaged shard or
    index.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        in_memory: bool = False,
        codec_id: str | None = None,
        cache: ShardCache | None = None,
    ) -> None:
        self.folder, self.cache = place(folder), cache or ShardCache()
        path = self.folder / MANIFEST
        if not is_file(path):
            raise FileNotFoundError(f"{path}: no encoded set here; run `nava encode` first")
        self.manifest: Mapping[str, Any] = read_json(path, "run `nava encode` again")
        if self.manifest.get("format") != FORMAT:
            raise ValueError(
                f"{path} format: {self.manifest.get('format')!r}, this code reads {FORMAT!r}; run `nava "
                "encode` again"
            )
        if wrong := _misses(self.manifest):
            raise ValueError(f"{path} {wrong}: missing or of another kind; run `nava encode` again")
        self.codec_id: str = self.manifest["codec_id"]
        if codec_id is not None and codec_id != self.codec_id:
            raise ValueError(
                f"{path} codec_id: encoded by {self.codec_id}, the codec here is {codec_id}; run `nava "
                "encode` again"
            )
        self.index = self._open_index()
        self._open: OrderedDict[int, Any] = OrderedDict()
        self._samples = [self._read(number) for number in range(len(self.index))] if in_memory else None

    @property
    def num_bytes(self) -> int:
        """Of all shards."""
        return sum(shard["bytes"] for shard in self.manifest["shards"].values())

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: int) -> Sample:
        return self._samples[index] if self._samples is not None else self._read(index)

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}  # open files do not travel to worker processes

    def _open_index(self) -> LatentIndex:
        path, sha256 = self.folder / INDEX, self.manifest["index_sha256"]
        local = self.cache.fetch(path, sha256, self.manifest["index_bytes"])
        if not local.is_file() or sha256_of(local) != sha256:
            raise ValueError(
                f"{path}: missing or damaged (its checksum differs from {MANIFEST}); run `nava encode` again"
            )
        return LatentIndex(local)

    def _read(self, number: int) -> Sample:
        row = self.index.row(number)
        names = tensor_names(bool(row["frames"]), bool(row["tokens"]))
        shard = self._shard(row["shard"])
        try:
            tensors = {name: shard.get_tensor(f"{row['row']:07d}.{name}") for name in names}
        except SafetensorError as error:
            raise self._damaged(row["shard"], f"{row['data_id']} is not in it, {error}") from None
        if checksum(tensors) != row["crc32"]:
            raise self._damaged(row["shard"], f"the checksum of {row['data_id']} differs from the index")
        return unpack(tensors, row["video_rate_hz"])

    def _shard(self, number: int) -> Any:
        """The open shard; its size is checked on opening, its samples' checksums on reading."""
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        name = shard_name(number)
        path, facts = self.folder / name, self.manifest["shards"][name]
        try:
            local = self.cache.fetch(path, facts["sha256"], facts["bytes"])
            size = local.stat().st_size
        except FileNotFoundError:
            raise FileNotFoundError(f"{path}: shard is missing; {_REPAIR}") from None
        except ValueError as error:  # another checksum on arrival
            raise self._damaged(number, str(error)) from None
        if size != facts["bytes"]:
            raise self._damaged(number, f"{size} bytes, expected {facts['bytes']}")
        try:
            self._open[number] = safe_open(local, framework="pt")
        except SafetensorError as error:
            raise self._damaged(number, f"not a safetensors file, {error}") from None
        if len(self._open) > _OPEN_SHARDS:
            self._open.popitem(last=False)
        return self._open[number]

    def _damaged(self, number: int, why: str) -> ValueError:
        return ValueError(f"{self.folder / shard_name(number)}: damaged shard ({why}); {_REPAIR}")


def _misses(manifest: Mapping[str, Any]) -> str:
    """The first field of a manifest that is missing or of another kind, "" where it is whole."""
    kinds = {"codec_id": str, "index_sha256": str, "index_bytes": int, "shards": Mapping}
    wrong = [name for name, kind in kinds.items() if not isinstance(manifest.get(name), kind)]
    for name, facts in {} if wrong else manifest["shards"].items():
        found = facts if isinstance(facts, Mapping) else {}
        if not isinstance(found.get("sha256"), str) or not isinstance(found.get("bytes"), int):
            wrong.append(f"shards.{name}")
    return wrong[0] if wrong else ""
