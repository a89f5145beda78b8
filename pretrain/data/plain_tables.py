"""Tables of clips that people have: CSV and TSV, JSONL, and the metadata files of Hugging Face `datasets`."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet

from pretrain.files import wide_encoding
from pretrain.jsonl import FieldError, scan

TABLES = (".csv", ".tsv", ".jsonl", ".parquet")
METADATA = tuple(f"metadata{suffix}" for suffix in (".csv", ".jsonl", ".parquet"))  # of a `datasets` folder
# what a column may be called, by what it holds; the first is the one that errors name
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "file_name": (
        *("file_name", "filename", "file", "path", "file_path", "video", "video_path", "video_file_name"),
        *("clip", "clip_path", "media", "media_path", "audio", "audio_path", "audio_file_name"),
    ),
    "text": ("text", "caption", "prompt", "description"),
    "transcript": ("transcript", "transcription", "speech", "words", "sentence"),
    "speaker": ("speaker", "speaker_id", "voice"),
    "reference": ("reference", "spk_wav", "reference_path", "speaker_audio"),
    "speech_start": ("speech_start",),
    "speech_end": ("speech_end",),
}


def table_rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | FieldError]]:
    """(line from 1, row with the names of COLUMNS or what is wrong with it) of a table.

    Other columns keep their own names. Raises FileNotFoundError, and ValueError `file:1 ...` for a table
    without rows or without a column of files, and for two columns that say the same.
    """
    if path.suffix.lower() == ".jsonl":
        rows = scan(path, finite=True)
    elif path.suffix.lower() == ".parquet":
        rows = _parquet(path)
    else:
        rows = _csv(path)
    for line, row in rows:
        yield line, row if isinstance(row, FieldError) else _named(path, line, row)


def _named(path: Path, line: int, row: Mapping[str, Any]) -> dict[str, Any] | FieldError:
    folded = {str(key).strip().lower(): key for key in row if key is not None}
    named: dict[str, Any] = {}
    for name, choices in COLUMNS.items():
        found = [folded.pop(choice) for choice in choices if choice in folded]
        given = [key for key in found if row[key] not in (None, "")]
        if len(given) > 1:
            return FieldError(
                line, name, f"{' and '.join(map(repr, given))} both say it and one can count; keep one"
            )
        if found:
            named[name] = row[given[0]] if given else ""
    if "file_name" not in named:
        return FieldError(line, "file_name", f"missing; found {', '.join(map(str, row)) or 'nothing'}")
    return named | {key: row[original] for key, original in folded.items()}


def _csv(path: Path) -> Iterator[tuple[int, dict[str, Any] | FieldError]]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; give the path of a CSV")
    content = path.read_bytes()
    if wide := wide_encoding(content):
        raise ValueError(f"{path}:1 csv: the file is {wide}; save it as UTF-8")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}:{line} csv: not UTF-8 at byte {error.start}; save the file as UTF-8"
        ) from None
    header = text.split("\n", 1)[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(header), strict=True)
    try:
        columns = [column.strip() for column in next(reader)]
    except (StopIteration, csv.Error):
        raise ValueError(f"{path}:1 csv: the file is empty; expected a line of column names") from None
    _check_columns(path, columns)
    yield from _csv_rows(path, reader, columns)


def _csv_rows(
    path: Path, reader: Any, columns: list[str]
) -> Iterator[tuple[int, dict[str, Any] | FieldError]]:
    count, line = 0, 2
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                count += 1
                if len(cells) != len(columns):
                    found = f"{len(cells)} cells, {len(columns)} columns; quote texts that have commas"
                    yield line, FieldError(line, "csv", found)
                else:
                    yield line, dict(zip(columns, cells, strict=True))
            line = reader.line_num + 1
    except csv.Error as error:
        yield line, FieldError(line, "csv", f"{error}; mend its quotes")
        return
    if not count:
        raise ValueError(f"{path}:1 csv: only a line of column names; add one line per clip")


def _delimiter(header: str) -> str:
    """The sign that parts most column names of a header."""
    return max(",\t;|", key=header.count)


def _check_columns(path: Path, columns: list[str]) -> None:
    twice = [column for column, count in Counter(columns).items() if count > 1]
    if twice:
        raise ValueError(f"{path}:1 csv: column {twice[0]!r} is there twice; rename one")
    if not {column.lower() for column in columns} & set(COLUMNS["file_name"]):
        raise ValueError(
            f"{path}:1 csv: no column of files among {', '.join(columns)}; name it file_name (columns: "
            "file_name, text, and as you have them transcript, speaker, reference, speech_start, speech_end)"
        )


def _parquet(path: Path) -> Iterator[tuple[int, dict[str, Any] | FieldError]]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; give the path of a Parquet table")
    try:
        table = parquet.ParquetFile(path)
        names = table.schema_arrow.names
        rows = [row for batch in table.iter_batches(1024) for row in batch.to_pylist()]
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not a Parquet table ({str(error).splitlines()[0][:120]})") from None
    _check_columns(path, [str(name) for name in names])
    if not rows:
        raise ValueError(f"{path}: a table without rows; add one per clip")
    yield from enumerate(rows, start=1)
