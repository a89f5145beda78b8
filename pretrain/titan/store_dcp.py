"""torch.distributed.checkpoint through `pretrain.storage`: multipart upload per rank, `.metadata` last."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, cast

from torch.distributed.checkpoint.filesystem import FileSystemBase, FileSystemWriter
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner
from torch.futures import Future

from pretrain.storage import is_file, move_file, place, reading, remove_file, uploading
from pretrain.titan.safe_dcp import SafeReader


class StoreFiles(FileSystemBase):
    """What DCP asks of files, by URL. Errors are OSErrors of one line, which also travel between ranks."""

    @contextmanager
    def create_stream(self, path: str | os.PathLike, mode: str) -> Iterator[io.IOBase]:
        with (reading if mode == "rb" else uploading)(place(str(path))) as stream:
            yield cast(io.IOBase, stream)

    def concat_path(self, path: str | os.PathLike, suffix: str) -> str:
        return f"{path}/{suffix}"

    def init_path(self, path: str | os.PathLike) -> str:
        return str(path)

    def rename(self, path: str | os.PathLike, new_path: str | os.PathLike) -> None:
        move_file(place(str(path)), place(str(new_path)))

    def mkdir(self, path: str | os.PathLike) -> None:
        """Stores make folders with their first file."""

    def exists(self, path: str | os.PathLike) -> bool:
        return is_file(place(str(path)))

    def rm_file(self, path: str | os.PathLike) -> None:
        remove_file(place(str(path)))

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike) -> bool:
        return "://" in str(checkpoint_id)


class StoreWriter(FileSystemWriter):
    """A checkpoint in a store. A rank holds one tensor and one upload part at a time."""

    def __init__(self, folder: Path) -> None:
        super().__init__(".", sync_files=False)
        self.fs = StoreFiles()
        self.path = str(folder)


class StoreReader(SafeReader):
    """A checkpoint out of a folder of a store, each file read once from front to back."""

    def __init__(self, folder: Path) -> None:
        super().__init__(".")
        self.fs = StoreFiles()
        self.path = str(folder)

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        items = sorted(plan.items, key=lambda item: self.storage_data[item.storage_index].offset)
        return super().read_data(replace(plan, items=items), planner)

    def _slice_file(self, file: Any, sinfo: Any) -> IO[bytes]:
        file.seek(sinfo.offset)
        return io.BytesIO(file.read(sinfo.length))  # torch.load jumps about in it
