"""A manifest as units of consecutive rows; only unit offsets are held: 36 million rows exceed memory."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pretrain.data.manifest import ManifestRow, row_of
from pretrain.jsonl import FieldError, parse_line


@dataclass(frozen=True)
class ManifestUnits:
    """Unit i is rows [i * rows_per_unit, (i + 1) * rows_per_unit) of the manifest, blank lines excluded."""

    path: Path  # a local file
    folder: Path  # that the rows' paths are relative to
    sha256: str
    num_rows: int
    num_lines: int
    rows_per_unit: int
    offsets: array[int]  # byte at which each unit starts
    lines: array[int]  # number of that line, from 1

    def __len__(self) -> int:
        return len(self.offsets)

    def size(self, unit: int) -> int:
        """Rows of a unit, good or bad."""
        return min(self.rows_per_unit, self.num_rows - unit * self.rows_per_unit)

    def rows(self, unit: int) -> Iterator[ManifestRow | FieldError]:
        """A unit's rows in order, each typed or with what is wrong with it."""
        left, line = self.size(unit), self.lines[unit]
        with self.path.open("rb") as file:
            file.seek(self.offsets[unit])
            while left:
                raw = file.readline()
                if raw.strip():
                    content = parse_line(raw.removesuffix(b"\n"), line, last=line == self.num_lines)
                    yield content if isinstance(content, FieldError) else row_of(content, line, self.folder)
                    left -= 1
                line += 1


def split(path: Path, rows_per_unit: int, folder: Path | None = None) -> ManifestUnits:
    """One pass over the file. Raises FileNotFoundError, ValueError where it has no row."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; give the path of a JSONL file")
    digest, offsets, lines = hashlib.sha256(), array("Q"), array("Q")
    rows = offset = line = 0
    with path.open("rb") as file:
        for line, raw in enumerate(file, start=1):
            digest.update(raw)
            if raw.strip():
                if rows % rows_per_unit == 0:
                    offsets.append(offset)
                    lines.append(line)
                rows += 1
            offset += len(raw)
    if not rows:
        raise ValueError(f"{path}:1 json: the file is empty; expected one JSON object per line")
    return ManifestUnits(
        path, folder or path.parent, digest.hexdigest(), rows, line, rows_per_unit, offsets, lines
    )
