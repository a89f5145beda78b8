"""JSON lines with errors that name file and line; written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.files import replacing


@dataclass(frozen=True)
class FieldError:
    """What is wrong with one row: where (line, field) and what to do about it."""

    line: int
    field: str
    message: str

    def at(self, path: Path | str) -> str:
        """The one line a user reads: `file:line field: message`."""
        return f"{path}:{self.line} {self.field}: {self.message}"


def scan(path: Path | str) -> Iterator[tuple[int, dict[str, Any] | FieldError]]:
    """(line number from 1, row or what is wrong with it) for every line that is not blank.

    Raises FileNotFoundError when there is no such file, ValueError when it holds no row at all.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; give the path of a JSONL file")
    lines = path.read_bytes().split(b"\n")
    if not any(line.strip() for line in lines):
        raise ValueError(f"{path}:1 json: the file is empty; expected one JSON object per line")
    for number, raw in enumerate(lines, start=1):
        if raw.strip():
            yield number, parse_line(raw, number, last=number == len(lines))


def parse_line(raw: bytes, line: int, last: bool) -> dict[str, Any] | FieldError:
    """One line's object, or what is wrong with it; the last line may have been cut off."""
    try:
        row = json.loads(raw.decode("utf-8-sig" if line == 1 else "utf-8"))
    except UnicodeDecodeError as error:
        return FieldError(line, "json", f"not UTF-8 at byte {error.start}; save the file as UTF-8")
    except (json.JSONDecodeError, RecursionError) as error:
        where = (
            f"{error.msg} at column {error.colno}"
            if isinstance(error, json.JSONDecodeError)
            else "nested too deeply"
        )
        advice = (
            "the last line looks cut off; write the file again"
            if last
            else "put one whole JSON object on each line"
        )
        return FieldError(line, "json", f"not valid JSON ({where}); {advice}")
    if not isinstance(row, dict):
        return FieldError(
            line, "json", f"expected a JSON object, got {type(row).__name__}; put one object on each line"
        )
    return row


def dump(path: Path | str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes one object per line, through a temporary name in the same folder."""
    with replacing(Path(path)) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
