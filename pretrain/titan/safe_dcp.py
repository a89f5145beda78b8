"""Reading a checkpoint of torch.distributed.checkpoint that may be somebody else's.

DCP's `.metadata` is a pickle, and objects beside tensors are pickles too. Here the first may name only the
classes that DCP's metadata consists of, the others only what torch.load(weights_only=True) takes, and every
file they refer to lies in the checkpoint's own folder.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import state_dict_loader
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import ReadItem

from pretrain.config import one_line

_METADATA = "torch.distributed.checkpoint.metadata"
_ALLOWED = {
    *(
        (_METADATA, name)
        for name in (
            "BytesStorageMetadata",
            "ChunkStorageMetadata",
            "Metadata",
            "MetadataIndex",
            "StorageMeta",
            "TensorProperties",
            "TensorStorageMetadata",
            "_MEM_FORMAT_ENCODING",
        )
    ),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.distributed.checkpoint.filesystem", "_StoragePrefix"),
    ("torch.serialization", "_get_layout"),
    ("torch", "Size"),
    ("collections", "OrderedDict"),
    *(("pathlib", name) for name in ("Path", "PosixPath", "PurePath", "PurePosixPath")),
}
_DTYPES = {name for name in dir(torch) if isinstance(getattr(torch, name), torch.dtype)}
MAX_METADATA_BYTES = 2**30
_ADVICE = "it is no checkpoint of ours; remove it, or start over with --no-resume"


class _Unpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> Any:
        if (module_name, global_name) in _ALLOWED or (module_name == "torch" and global_name in _DTYPES):
            return super().find_class(module_name, global_name)
        raise pickle.UnpicklingError(f"names {module_name}.{global_name}, which no checkpoint needs")


def read_metadata(stream: io.IOBase, where: str) -> Metadata:
    """The `.metadata` of a checkpoint; runs no code of it. Raises ValueError in one line, with `where`."""
    content = stream.read(MAX_METADATA_BYTES + 1)
    try:
        if len(content) > MAX_METADATA_BYTES:
            raise ValueError(f"more than {MAX_METADATA_BYTES >> 20} MiB")
        metadata = _Unpickler(io.BytesIO(content)).load()
        if not isinstance(metadata, Metadata) or not isinstance(metadata.storage_data, dict):
            raise ValueError(f"holds {type(metadata).__name__}, not DCP's metadata")
        for info in metadata.storage_data.values():
            name = info.relative_path
            if not isinstance(name, str) or Path(name).name != name or name in ("", ".", ".."):
                raise ValueError(f"refers to {name!r}, which is not a file of its folder")
    except (OSError, KeyboardInterrupt):
        raise
    except Exception as error:  # a damaged or hostile pickle raises nearly anything
        raise ValueError(f"{where}: cannot be read ({one_line(error, 200)}); {_ADVICE}") from None
    return metadata


class SafeReader(FileSystemReader):
    """A reader of local folders; `StoreReader` is one for object stores."""

    _checked: Metadata | None = None

    def check(self) -> None:
        """Read the metadata before DCP does, which would wrap errors. Raises ValueError, OSError."""
        self._checked = self.read_metadata()

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        if self._checked is not None and kwargs.get("rank") is None:
            return self._checked
        path = self._get_metadata_path(kwargs.get("rank"))
        with self.fs.create_stream(path, "rb") as stream:
            metadata = read_metadata(stream, str(path))
        about = getattr(metadata, "storage_meta", None)
        metadata.storage_meta = about = about if isinstance(about, StorageMeta) else StorageMeta()
        about.load_id = self.load_id
        return metadata


class SafePlanner(DefaultLoadPlanner):
    """DCP's own planner, whose objects beside tensors come without pickled code."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        name = read_item.dest_index.fqn
        try:
            found = torch.load(value, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise ValueError(f"{name}: cannot be read ({one_line(error, 200)}); {_ADVICE}") from None
        plain = io.BytesIO()
        torch.save(found, plain)
        plain.seek(0)
        super().load_bytes(read_item, plain)


def load_states(state: dict[str, Any], reader: SafeReader) -> None:
    """Fill `state` in place, on all ranks. Raises ValueError for what is no checkpoint of ours."""
    reader.check()
    try:
        state_dict_loader.load(state, storage_reader=reader, planner=SafePlanner())
    except CheckpointException as error:  # a BaseException
        for cause, _ in error.failures.values():
            if isinstance(cause, ValueError):
                raise ValueError(one_line(cause, 1000)) from None
        raise
