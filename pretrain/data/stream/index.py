"""The index of an encoded set: one row of numbers per sample in a memory-mapped Arrow file.

36 million samples are a file of about 2.5 GB that all processes of a machine share; as Python objects they
would take 20 GB in each. pyarrow is imported late, for a fast `nava --help`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

ROWS_PER_BATCH = 1 << 16
_SIZES = ("frames", "height", "width", "tokens")  # of the latents; 0 = the sample has no video, or no audio
_INT32 = ("shard", "row", *_SIZES, "text", "spans", "bucket")


class IndexWriter:
    """Context manager; `add` streams rows to the file. `bucket`: sizes numbered by first appearance."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa

        numbers = [
            *((name, pa.int32()) for name in _INT32),
            ("video_rate_hz", pa.float64()),
            ("crc32", pa.uint32()),
        ]
        fields = [("data_id", pa.string()), *numbers]
        self._schema = pa.schema([pa.field(name, kind, nullable=False) for name, kind in fields])
        self._file = pa.OSFile(str(path), "wb")
        self._writer = pa.ipc.new_file(self._file, self._schema)
        self._rows: list[Mapping[str, Any]] = []
        self._buckets: dict[tuple[int, ...], int] = {}

    def __enter__(self) -> IndexWriter:
        return self

    def add(self, row: Mapping[str, Any]) -> None:
        """`row`: data_id, shard, row, frames, height, width, tokens, text, spans, video_rate_hz, crc32."""
        sizes = tuple(row[name] for name in _SIZES)
        self._rows.append({**row, "bucket": self._buckets.setdefault(sizes, len(self._buckets))})
        if len(self._rows) == ROWS_PER_BATCH:
            self._flush()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._flush()
            self._writer.close()
        finally:
            self._file.close()

    def _flush(self) -> None:
        import pyarrow as pa

        if self._rows:
            columns = [
                pa.array([row[field.name] for row in self._rows], field.type) for field in self._schema
            ]
            self._writer.write_batch(pa.record_batch(columns, schema=self._schema))
            self._rows = []


class LatentIndex:
    """A written index. Raises ValueError where the file is no Arrow file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._open()

    def _open(self) -> None:
        import pyarrow as pa

        try:
            self._file = pa.ipc.open_file(pa.memory_map(str(self.path)))
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(f"{self.path}: not an index ({error}); run `nava encode` again") from None
        batches = self._file.num_record_batches
        self._length = (
            ROWS_PER_BATCH * (batches - 1) + self._file.get_batch(batches - 1).num_rows if batches else 0
        )

    def __len__(self) -> int:
        return self._length

    def row(self, index: int) -> dict[str, Any]:
        """Everything about one sample; negative numbers count from the end."""
        index = int(index) + self._length if index < 0 else int(index)
        if not 0 <= index < self._length:
            raise IndexError(f"{self.path}: sample {index} of {self._length}")
        batch = self._file.get_batch(index // ROWS_PER_BATCH)
        at = index % ROWS_PER_BATCH
        return {name: batch.column(number)[at].as_py() for number, name in enumerate(batch.schema.names)}

    def columns(self, *names: str) -> Iterator[tuple[np.ndarray, ...]]:
        """Views of numeric columns, batch by batch in the order of the samples."""
        for number in range(self._file.num_record_batches):
            batch = self._file.get_batch(number)
            yield tuple(batch.column(name).to_numpy(zero_copy_only=True) for name in names)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}  # a mapped file does not travel to worker processes

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()


def size_key(row: Mapping[str, Any]) -> str:
    """Name of a bucket: latent frames x rows x columns + audio tokens, as `37x44x80+151`; `none` = absent."""
    video = "x".join(str(row[name]) for name in ("frames", "height", "width")) if row["frames"] else "none"
    return f"{video}+{row['tokens'] or 'none'}"


def streams_of(key: str) -> tuple[bool, bool]:
    """Whether the clips of a bucket (`size_key`) have video, and whether they have audio."""
    return not key.startswith("none+"), not key.endswith("+none")
