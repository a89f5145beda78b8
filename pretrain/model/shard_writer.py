"""Sharded safetensors, streamed tensor by tensor: headers are planned, so memory holds one tensor.

The bytes of a file are those of the safetensors library: tensors ordered by descending width of their type,
then by name.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import torch
from torch import Tensor

from pretrain.model.shards import DTYPES, INDEX, TensorSource, files_of
from pretrain.progress import track
from pretrain.storage import is_remote, remove_file, writing

SHARD_BYTES = 4 * 2**30
_SHOWN = 2**30  # bytes above which writing shows progress
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_ORDER = list(DTYPES)

Plan = Mapping[str, tuple[torch.Size, torch.dtype]]


def plan_of(source: TensorSource, dtype: torch.dtype | None = None) -> Plan:
    """Shapes and types of a source, or one type for all."""
    return {key: (source.shape(key), dtype or source.dtype(key)) for key in source.keys()}  # noqa: SIM118


def write_order(plan: Plan) -> list[str]:
    """Keys in the order in which a ShardWriter takes them."""
    return sorted(plan, key=lambda key: (_ORDER.index(_NAMES[plan[key][1]]), key))


class ShardWriter:
    """Context manager: `stem.safetensors`, or `stem-00001-of-0000N.safetensors` and an index above max_bytes.

    Tensors are added in `order`. Files take their places at the end and those of an earlier checkpoint of
    this stem go; on failure nothing changes (of an object store, shards that were whole may stay, without
    their index). Raises OSError where it cannot write.
    """

    def __init__(
        self,
        folder: Path,
        stem: str,
        plan: Plan,
        max_bytes: int = SHARD_BYTES,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self.folder, self.stem, self.plan, self.metadata = folder, stem, plan, metadata
        self.order = write_order(plan)
        self.files: dict[str, str] = {}  # name -> sha256, of finished files
        self._shards = _split(self.order, plan, max_bytes)
        self._stack, self._writing, self._file, self._left = ExitStack(), ExitStack(), None, []

    def __enter__(self) -> ShardWriter:
        return self

    def add(self, key: str, tensor: Tensor) -> None:
        """Write the next tensor. Raises ValueError where it is not the next of `order`, or not as planned."""
        if not self._left:
            self._open()
        if key != self._left[0] or (tensor.shape, tensor.dtype) != self.plan[key]:
            raise ValueError(
                f"{key} {tuple(tensor.shape)} {tensor.dtype}: expected {self._left[0]} "
                f"{self.plan[self._left[0]]}"
            )
        if tensor.numel():
            self._write(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        del self._left[0]
        if not self._left:
            self._close()

    def digest(self) -> str:
        """sha256 of the file; of several, of the lines "name sha256"."""
        if len(self.files) == 1:
            return next(iter(self.files.values()))
        return hashlib.sha256(
            "\n".join(f"{name} {digest}" for name, digest in self.files.items()).encode()
        ).hexdigest()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stack:  # files take their places where nothing is raised in here, and vanish otherwise
            with self._writing:
                if error is not None:
                    raise error
                if len(self.files) < len(self._shards):
                    raise ValueError(
                        f"{self.folder}/{self.stem}: {len(self.files)} of {len(self._shards)} shards were "
                        "written"
                    )
            if len(self._shards) > 1:
                index = self._stack.enter_context(writing(self.folder / f"{self.stem}{INDEX}"))
                index.write_text(json.dumps(self._index(), indent=1, sort_keys=True) + "\n")
        self._remove_others()

    def _open(self) -> None:
        number = len(self.files)
        if number == len(self._shards):
            raise ValueError(f"{self.folder}/{self.stem}: everything planned is written")
        self._left, self._hash = list(self._shards[number]), hashlib.sha256()
        # local files take their places together at the end; uploads happen one by one, so that the disk holds
        # one
        stack = self._writing if is_remote(self.folder) else self._stack
        path = stack.enter_context(writing(self.folder / self._name(number)))
        self._file = self._writing.enter_context(path.open("wb"))
        self._write(_header(self._left, self.plan, self.metadata))

    def _write(self, data: bytes | memoryview) -> None:
        file: BinaryIO | None = self._file
        assert file is not None
        try:
            file.write(data)
        except OSError as error:
            raise OSError(
                error.errno or errno.EIO, error.strerror, str(self.folder / self._name(len(self.files)))
            ) from error
        self._hash.update(data)

    def _close(self) -> None:
        number = len(self.files)
        self._writing.close()
        self.files[self._name(number)] = self._hash.hexdigest()

    def _name(self, number: int) -> str:
        count = len(self._shards)
        return (
            f"{self.stem}.safetensors"
            if count == 1
            else f"{self.stem}-{number + 1:05d}-of-{count:05d}.safetensors"
        )

    def _index(self) -> dict[str, object]:
        places = {key: self._name(number) for number, keys in enumerate(self._shards) for key in keys}
        return {
            "metadata": {"total_size": sum(_bytes(self.plan[key]) for key in self.order)},
            "weight_map": places,
        }

    def _remove_others(self) -> None:
        kept = {*self.files, *([f"{self.stem}{INDEX}"] if len(self._shards) > 1 else [])}
        for path in files_of(self.folder, self.stem):
            if path.name not in kept:
                remove_file(path)


def write_tensors(writer: ShardWriter, source: TensorSource, what: str = "tensors written") -> None:
    """Every planned tensor of the source, each converted to its planned type; shows progress above a GiB."""
    total = sum(_bytes(writer.plan[key]) for key in writer.order)
    keys: Iterable[str] = track(writer.order, len(writer.order), what) if total > _SHOWN else writer.order
    for key in keys:
        writer.add(key, source.tensor(key).to(writer.plan[key][1]))


def _bytes(planned: tuple[torch.Size, torch.dtype]) -> int:
    return math.prod(planned[0]) * planned[1].itemsize


def _split(order: list[str], plan: Plan, max_bytes: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    size = 0
    for key in order:
        more = _bytes(plan[key])
        if shards[-1] and size + more > max_bytes:
            shards.append([])
            size = 0
        shards[-1].append(key)
        size += more
    return shards


def _header(keys: list[str], plan: Plan, metadata: Mapping[str, str] | None) -> bytes:
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    begin = 0
    for key in keys:
        (shape, dtype), end = plan[key], begin + _bytes(plan[key])
        entries[key] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
