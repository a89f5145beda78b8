"""Files of prompts: read, or checked with every error of every line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pretrain.jsonl import FieldError, scan
from pretrain.prompt.characters import caseless
from pretrain.prompt.rows import PromptRow, prompt_row


def read_prompts(path: Path | str, own_keys: bool = False) -> list[PromptRow]:
    """Reads an inference JSONL. ValueError `file:line field: message` at the first bad row; no media read.

    `own_keys`: keys that are nobody's are let pass, for commands that carry whole rows along.
    """
    rows: list[PromptRow] = []
    for _, result in _scan_prompts(Path(path), files=False, own_keys=own_keys):
        if isinstance(result, PromptRow):
            rows.append(result)
        else:
            raise ValueError(result[0].at(path))
    return rows


def readable_prompts(path: Path | str) -> list[PromptRow]:
    """The rows of a file that have no error. Raises FileNotFoundError, or ValueError for an empty file."""
    found = (result for _, result in _scan_prompts(Path(path), files=False))
    return [row for row in found if isinstance(row, PromptRow)]


def check_files(rows: Iterable[PromptRow]) -> None:
    """Raises FileNotFoundError for the first image or reference that is missing."""
    for row in rows:
        for named in (row.image_path, *row.reference_paths):
            if named is not None and not named.is_file():
                raise FileNotFoundError(f"{row.where}: {named} does not exist; correct the path or remove it")


def check_plain(rows: Iterable[PromptRow], what: str) -> None:
    """Raises ValueError for a row that says how its clip is made, where `what` makes all alike."""
    for row in rows:
        given = {"task": row.task, "seed": row.seed, "negative_prompt": row.negative}
        if name := next((name for name, value in given.items() if value is not None), ""):
            raise ValueError(f"{row.where} {name}: {what} does not take it from a row; remove it")


def check_prompts(path: Path | str, files: bool = False) -> dict[str, Any]:
    """`{rows, spans, references, errors: [{line, field, message}]}`; the counts are of valid rows.

    With `files`, image and reference files must exist. Raises FileNotFoundError without the JSONL itself.
    """
    num_rows, good, errors = 0, [], []
    for _, result in _scan_prompts(Path(path), files):
        num_rows += 1
        if isinstance(result, PromptRow):
            good.append(result.prompt)
        else:
            errors += [
                {"line": error.line, "field": error.field, "message": error.message} for error in result
            ]
    num_references = sum(reference is not None for prompt in good for reference in prompt.references)
    return {
        "rows": num_rows,
        "spans": sum(len(prompt.spans) for prompt in good),
        "references": num_references,
        "errors": errors,
    }


def _scan_prompts(
    path: Path, files: bool, own_keys: bool = False
) -> Iterator[tuple[int, PromptRow | list[FieldError]]]:
    seen: dict[str, PromptRow] = {}
    for line, row in scan(path, finite=True):
        if isinstance(row, FieldError):
            yield line, [row]
            continue
        errors: list[FieldError] = []
        result = prompt_row(row, line, path, errors, own_keys)
        if result is not None:
            errors += _same_name(result, seen)
            if files:
                errors += _missing_files(result)
        yield line, errors if errors or result is None else result


def _same_name(row: PromptRow, seen: dict[str, PromptRow]) -> list[FieldError]:
    """Names that differ by case or Unicode form only are one file on the systems of Windows and macOS."""
    other = seen.setdefault(caseless(row.data_id), row)
    if other is row:
        return []
    if other.data_id == row.data_id:
        message = f"{row.data_id!r} is also on line {other.line}; make it unique"
    else:
        message = (
            f"{row.data_id!r} and {other.data_id!r} of line {other.line} are one file where names do not "
            "differ by case or Unicode form; rename one"
        )
    return [FieldError(row.line, "data_id", message)]


def _missing_files(row: PromptRow) -> list[FieldError]:
    named = [("image_path", row.image_path)] + [
        (f"spk_wavs[{i}]", path) for i, path in enumerate(row.reference_paths)
    ]
    return [
        FieldError(row.line, name, f"no such file: {path}")
        for name, path in named
        if path is not None and not path.is_file()
    ]
