"""JSON lines with errors that name file and line; written whole or not at all."""

from __future__ import annotations

import codecs
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.files import replacing, strict_json, whole_number, wide_encoding


@dataclass(frozen=True)
class FieldError:
    """What is wrong with one row: where (line, field) and what to do about it."""

    line: int
    field: str
    message: str

    def at(self, path: Path | str) -> str:
        """The one line a user reads: `file:line field: message`."""
        return f"{path}:{self.line} {self.field}: {self.message}"


def scan(path: Path | str, finite: bool = False) -> Iterator[tuple[int, dict[str, Any] | FieldError]]:
    """(line number from 1, row or what is wrong with it) for every line that is not blank.

    With `finite`, NaN and infinite numbers are refused; our own logs have them. Raises FileNotFoundError when
    there is no such file, ValueError when it holds no row at all.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; give the path of a JSONL file")
    content = path.read_bytes()
    if wide := wide_encoding(content):
        yield 1, FieldError(1, "json", f"the file is {wide}; save it as UTF-8")
        return
    lines = content.removeprefix(codecs.BOM_UTF8).split(b"\n")
    if not any(line.strip() for line in lines):
        raise ValueError(f"{path}:1 json: the file is empty; expected one JSON object per line")
    for number, raw in enumerate(lines, start=1):
        if raw.strip():
            yield number, parse_line(raw, number, number == len(lines), finite)


def parse_line(raw: bytes, line: int, last: bool, finite: bool = False) -> dict[str, Any] | FieldError:
    """One line's object, or what is wrong with it; the last line may have been cut off.

    A key given twice in one object is refused, since readers differ in which one they take; with `finite`, so
    are NaN and infinite numbers. A byte order mark in front of the line is skipped.
    """
    numbers: dict[str, Any] = {"parse_constant": _refuse_number, "parse_float": _finite} if finite else {}
    try:
        row = strict_json(raw.decode("utf-8-sig"), whole_number, object_pairs_hook=_unique, **numbers)
    except UnicodeDecodeError as error:
        wide = wide_encoding(raw)
        found = f"the file is {wide}; save it" if wide else f"not UTF-8 at byte {error.start}; save the file"
        return FieldError(line, "json", f"{found} as UTF-8")
    except _Refused as error:
        return FieldError(line, error.field, str(error))
    except ValueError as error:
        return FieldError(line, "json", _not_json(error, raw, last))
    if not isinstance(row, dict):
        return FieldError(
            line, "json", f"expected a JSON object, got {type(row).__name__}; put one object on each line"
        )
    return row


class _Refused(Exception):
    """JSON that is well formed and ambiguous."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        twice = next(key for key, count in counts.items() if count > 1)
        raise _Refused(
            _shown(twice), "the key is given twice in one object and only one can count; keep one of them"
        )
    return found


def _shown(key: str) -> str:
    """A key as it may stand in a one-line message."""
    return key if key.isprintable() and key.strip() else ascii(key)


def _refuse_number(text: str) -> float:
    raise _Refused("json", f"{text} is no number of JSON; write null or leave the key out")


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _refuse_number(text)


def _not_json(error: ValueError, raw: bytes, last: bool) -> str:
    where = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
    advice = "put one whole JSON object on each line"
    if b"\0" in raw:
        advice = "the line holds zero bytes, as UTF-16 text and damaged files do; save the file as UTF-8"
    elif last:
        advice = "the last line looks cut off; write the file again"
    return f"not valid JSON ({where}); {advice}"


def dump(path: Path | str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes one object per line, through a temporary name in the same folder."""
    with replacing(Path(path)) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
