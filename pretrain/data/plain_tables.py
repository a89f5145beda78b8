"""Tables of clips that people have: CSV and TSV, JSONL, and the metadata files of Hugging Face `datasets`."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pyarrow import parquet

from pretrain.files import wide_encoding
from pretrain.jsonl import FieldError, scan

csv.field_size_limit(max(csv.field_size_limit(), 16 << 20))  # a column of something else may be long

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
    folded: dict[str, list[Any]] = {}
    for key in row:
        if key is not None:
            folded.setdefault(str(key).strip().lower(), []).append(key)
    named: dict[str, Any] = {}
    for name, choices in COLUMNS.items():
        found = [key for choice in choices for key in folded.pop(choice, [])]
        given = [key for key in found if row[key] not in (None, "")]
        if len(given) > 1:
            return FieldError(
                line, name, f"{' and '.join(map(repr, given))} both say it and one can count; keep one"
            )
        if found:
            named[name] = row[given[0]] if given else ""
    if "file_name" not in named:
        return FieldError(line, "file_name", f"missing; found {', '.join(map(str, row)) or 'nothing'}")
    others = {key: row[same[0]] for key, same in folded.items() if len(same) == 1}
    return named | others | {str(key): row[key] for same in folded.values() if len(same) > 1 for key in same}


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
    lines = list(io.StringIO(text, newline=""))
    delimiter = _delimiter(lines[0] if lines else "")
    reader = _reader(lines, 0, delimiter)
    try:
        columns = [column.strip() for column in next(reader)]
    except StopIteration:
        raise ValueError(f"{path}:1 csv: the file is empty; expected a line of column names") from None
    except csv.Error as error:
        raise ValueError(f"{path}:1 csv: {error}; mend the quotes of the column names") from None
    _check_columns(path, columns)
    count = 0
    for line, row in _csv_rows(lines, reader.line_num, columns, delimiter):
        count += 1
        yield line, row
    if not count:
        raise ValueError(f"{path}:1 csv: only a line of column names; add one line per clip")


def _reader(lines: Sequence[str], begin: int, delimiter: str) -> Any:
    return csv.reader((lines[at] for at in range(begin, len(lines))), delimiter=delimiter, strict=True)


def _csv_rows(
    lines: Sequence[str], begin: int, columns: list[str], delimiter: str
) -> Iterator[tuple[int, dict[str, Any] | FieldError]]:
    """Rows from line `begin` (from 0). A row that is wrong costs its first line alone: a quote too many takes
    in what is below it, up to the next quote or the end, and that is read anew."""
    while begin < len(lines):
        reader, done = _reader(lines, begin, delimiter), 0
        try:
            for cells in reader:
                at, done = begin + done, reader.line_num
                if not any(cell.strip() for cell in cells):
                    continue
                if wrong := _wrong_cells(cells, columns, delimiter, lines[at : begin + done]):
                    yield at + 1, FieldError(at + 1, "csv", wrong)
                    begin = at + 1
                    break
                yield at + 1, dict(zip(columns, cells, strict=True))
            else:
                return
        except csv.Error as error:
            begin += done + 1
            yield begin, FieldError(begin, "csv", f"{error}; mend its quotes")


def _wrong_cells(cells: list[str], columns: list[str], delimiter: str, lines: Sequence[str]) -> str:
    """What is wrong with the cells of a row, which takes these lines; "" for nothing."""
    if len(cells) != len(columns):
        return f"{len(cells)} cells, {len(columns)} columns; quote texts that have commas"
    if len(lines) == 1:
        return ""
    of_file = next(at for at, column in enumerate(columns) if column.lower() in COLUMNS["file_name"])
    suffix = Path(cells[of_file].strip()).suffix
    parts = [line.strip().split(delimiter) for line in lines]
    alike = [part for part in parts if len(part) == len(columns) and Path(part[of_file]).suffix == suffix]
    if suffix and len(alike) > 1:
        return "takes in rows below it, up to the next quote; mend its quotes"
    return ""


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
