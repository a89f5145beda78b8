"""Sharded safetensors, read tensor by tensor: one file, or several with Hugging Face's index.

Only headers are held; a tensor's bytes are read on access, also from an object store, so memory
holds one tensor.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from pretrain.files import strict_json
from pretrain.progress import track
from pretrain.storage import is_file, is_remote, list_folder
from pretrain.storage_errors import named_errors

DTYPES = {
    "I64": torch.int64,
    "F64": torch.float64,
    "F32": torch.float32,
    "I32": torch.int32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
INDEX = ".safetensors.index.json"
_LARGEST_HEADER = 100_000_000  # bytes, the format's own limit
_LARGEST_NUMBER = 2**62
_PART = re.compile(r"-\d{5}-of-\d{5}\.safetensors$")
_CHUNK = 8 * 2**20
_SHOWN = 2**30  # bytes above which reading all shows progress


@runtime_checkable
class TensorSource(Protocol):
    """Named tensors that come one at a time; shapes and dtypes are known before."""

    def keys(self) -> Collection[str]: ...

    def shape(self, key: str) -> torch.Size: ...

    def dtype(self, key: str) -> torch.dtype: ...

    def tensor(self, key: str) -> Tensor: ...


class InMemory:
    """A TensorSource of tensors at hand."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = tensors

    def keys(self) -> Collection[str]:
        return self.tensors.keys()

    def shape(self, key: str) -> torch.Size:
        return self.tensors[key].shape

    def dtype(self, key: str) -> torch.dtype:
        return self.tensors[key].dtype

    def tensor(self, key: str) -> Tensor:
        return self.tensors[key]


@dataclass(frozen=True)
class _Entry:
    file: Path
    dtype: torch.dtype
    shape: torch.Size
    start: int  # bytes from the start of the file
    size: int  # bytes


class ShardReader:
    """A checkpoint: a .safetensors file, an index, or a folder that holds one (`stem`: of that name).

    A TensorSource. Raises FileNotFoundError where nothing or a shard is missing, ValueError where a file is
    truncated or not safetensors, or the index does not say what the shards hold; all in one line.
    """

    def __init__(self, path: Path, stem: str = "", dtypes: Mapping[str, torch.dtype] = DTYPES) -> None:
        self.path, self._last = path, None
        index, self.files = _find(path, stem)
        self._entries: dict[str, _Entry] = {}
        for file in self.files:
            found = _read_header(file, dtypes)
            if twice := self._entries.keys() & found.keys():
                raise ValueError(
                    f"{file}: {sorted(twice)[0]} stands in another shard too; copy the checkpoint again"
                )
            self._entries |= found
        if index is not None:
            self._check_index(index)

    def keys(self) -> Collection[str]:
        return self._entries.keys()

    def shape(self, key: str) -> torch.Size:
        return self._entries[key].shape

    def dtype(self, key: str) -> torch.dtype:
        return self._entries[key].dtype

    def shapes(self) -> dict[str, torch.Size]:
        return {key: entry.shape for key, entry in self._entries.items()}

    def tensor(self, key: str) -> Tensor:
        """Raises KeyError, ValueError where the file ends early, OSError where it cannot be read."""
        entry = self._entries[key]
        if not entry.size:
            return torch.empty(entry.shape, dtype=entry.dtype)
        buffer = bytearray(entry.size)
        with named_errors(entry.file), self._opened(entry.file) as file:
            file.seek(entry.start)
            if file.readinto(buffer) != entry.size:
                raise ValueError(
                    f"{entry.file}: not a whole safetensors file (ends inside {key}); copy or export it again"
                )
        return torch.frombuffer(buffer, dtype=entry.dtype).reshape(entry.shape)

    def sha256(self) -> dict[str, str]:
        """Of every file, by name; reads them all."""
        large = sum(entry.size for entry in self._entries.values()) > _SHOWN
        files = track(self.files, len(self.files), "files checksummed") if large else self.files
        return {file.name: self._digest(file) for file in files}

    @contextmanager
    def _opened(self, path: Path) -> Iterator[Any]:
        """The file; the last remote one stays open: opening requests the size, and read-ahead helps."""
        if not is_remote(path):
            with path.open("rb") as file:
                yield file
            return
        if self._last is None or self._last[0] != path:
            self._last = (path, path.open("rb"))
        yield self._last[1]

    def _digest(self, path: Path) -> str:
        digest = hashlib.sha256()
        with named_errors(path), path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
        return digest.hexdigest()

    def _check_index(self, index: Mapping[str, str]) -> None:
        for key, name in index.items():
            if key not in self._entries or self._entries[key].file.name != name:
                raise ValueError(
                    f"{self.path}: the index puts {key} into {name}, which does not hold it; copy the "
                    "checkpoint again"
                )
        for key, entry in self._entries.items():
            if key not in index:
                raise ValueError(
                    f"{self.path}: {entry.file.name} holds {key}, which the index does not name; copy the "
                    "checkpoint again"
                )


def files_of(folder: Path, stem: str) -> list[Path]:
    """Files of checkpoint `stem`: one, or shards and index; stem-other.safetensors is another's."""
    ends = {".safetensors", INDEX}
    rests = (
        (path, path.name.removeprefix(stem)) for path in list_folder(folder) if path.name.startswith(stem)
    )
    return [path for path, rest in rests if rest in ends or _PART.fullmatch(rest)]


def _find(path: Path, stem: str) -> tuple[dict[str, str] | None, list[Path]]:
    """(the index, None where there is one file only; the files)."""
    if is_file(path):
        return _of_index(path) if path.name.endswith(".json") else (None, [path])
    names = [item.name for item in list_folder(path)]
    if stem:
        if f"{stem}.safetensors" in names:
            return None, [path / f"{stem}.safetensors"]
        if f"{stem}{INDEX}" in names:
            return _of_index(path / f"{stem}{INDEX}")
        held = [name for name in names if name.endswith(".safetensors")]
        raise FileNotFoundError(f"{path / stem}.safetensors: missing; the folder holds {held}")
    if "transformer" in names and not any(".safetensors" in name for name in names):
        return _find(path / "transformer", stem)  # a diffusers pipeline
    candidates = [name for name in names if name.endswith(INDEX)] or [
        name for name in names if name.endswith(".safetensors")
    ]
    if not candidates:
        raise FileNotFoundError(
            f"{path}: no .safetensors file or index here; give a checkpoint file or its folder"
        )
    if len(candidates) > 1 or _PART.search(candidates[0]):
        lacks = "shards without their index" if all(map(_PART.search, candidates)) else "several checkpoints"
        raise ValueError(
            f"{path}: {lacks} ({', '.join(candidates[:3])}, ...); give one file or a whole checkpoint with "
            "its index"
        )
    return _find(path / candidates[0], stem)


def _of_index(path: Path) -> tuple[dict[str, str], list[Path]]:
    try:
        with named_errors(path):
            index = strict_json(path.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(index.values()))
        if outside := [
            name for name in names if "/" in name or "\\" in name or not name.endswith(".safetensors")
        ]:
            raise TypeError(f"it names {outside[0]!r}")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{path}: not an index of safetensors shards ({error!r}); copy the checkpoint again"
        ) from None
    for name in names:
        if not is_file(path.parent / name):
            raise FileNotFoundError(
                f"{path.parent / name}: missing; {path.name} names it; copy the whole checkpoint"
            )
    return index, [path.parent / name for name in names]


def _read_header(path: Path, dtypes: Mapping[str, torch.dtype]) -> dict[str, _Entry]:
    with named_errors(path):
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            text = file.read(length) if length <= min(size, _LARGEST_HEADER) else b""
    try:
        header = strict_json(text)
        header.pop("__metadata__", None)
        entries = dict(_entries(header, path, 8 + length, dtypes))
        _check_places(entries, 8 + length, size)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path}: not a whole safetensors file ({error}); copy or export it again") from None
    return entries


def _check_places(entries: Mapping[str, _Entry], start: int, end: int) -> None:
    """Raises ValueError where the tensors do not fill the file from start to end, one behind the other."""
    for key, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].size)):
        if entry.start != start:
            raise ValueError(f"{key!r} does not begin where the tensor before it ends")
        start += entry.size
    if start != end:
        raise ValueError(f"{end} bytes are not what its header says")


def _entries(
    header: Mapping[str, Any], path: Path, start: int, dtypes: Mapping[str, torch.dtype]
) -> Iterator[tuple[str, _Entry]]:
    for key, item in header.items():
        if item["dtype"] not in dtypes:
            raise ValueError(f"{key!r} is {item['dtype']!r}, not one of {', '.join(dtypes)}")
        dtype, shape, (begin, end) = dtypes[item["dtype"]], item["shape"], item["data_offsets"]
        if not all(type(number) is int and 0 <= number < _LARGEST_NUMBER for number in (begin, end, *shape)):
            raise ValueError(f"{key!r} has a size or place that cannot be")
        if end - begin != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{key!r} does not have the size of its shape")
        yield key, _Entry(path, dtype, torch.Size(shape), start + begin, end - begin)
