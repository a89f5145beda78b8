"""Prompt files in and out: the same rows with another prompt, its source recorded in `meta`."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.rewriter.form import TEMPLATE_ID
from finetune.rewriter.rewrite import Rewrite
from finetune.rewriter.spans import check_spans
from pretrain.jsonl import scan
from pretrain.owned import replaced_file
from pretrain.prompt import read_prompts

PATHS = ("image_path", "video", "spk_wavs")  # fields of a row that are relative to its file


@dataclass(frozen=True)
class SourceRow:
    """A row as read, its prompt field, its prompt, and its name (file and line if it has none)."""

    row: dict[str, Any]
    key: str
    prompt: str
    data_id: str


def read_rows(source: Path, to: Path) -> list[SourceRow]:
    """The rows of an inference JSONL that is to be rewritten into `to`.

    Raises ValueError `file:line field: message` for a bad or already rewritten row, and where `to` is the
    source, holds anything but rewrites, or lies in another folder while rows name files relative to theirs;
    FileNotFoundError without the source; OSError where `to` cannot be written.
    """
    checked = read_prompts(source, own_keys=True)
    if to.exists() and to.samefile(source):
        raise ValueError(f"{to}: is the file to be rewritten; give another one")
    if to.is_dir():
        raise IsADirectoryError(f"{to}: a folder; give the path of a JSONL file")
    if to.is_file() and not _all_rewrites(to):
        raise ValueError(f"{to}: not a file of rewrites (rows with meta.rewrite); give another one")
    raw = {line: row for line, row in scan(source) if isinstance(row, dict)}
    rows, elsewhere = [], to.resolve().parent != source.resolve().parent
    for parsed in checked:
        row, where = raw[parsed.line], f"{source}:{parsed.line}"
        key = "prompt" if "prompt" in row or "text" not in row else "text"
        if wrong := check_spans(parsed.prompt.text, parsed.prompt.text):
            raise ValueError(f"{where} {key}: {wrong}; write it again")
        if "rewrite" in parsed.meta:
            raise ValueError(f"{where} meta.rewrite: this row is a rewrite; give the file it came from")
        if elsewhere and (names := [name for name in _files(row) if not Path(name).is_absolute()]):
            raise ValueError(
                f"{where}: names {names[0]!r} relative to its own folder; put --to into that folder too"
            )
        rows.append(SourceRow(row, key, parsed.prompt.text, parsed.data_id))
    to.parent.mkdir(parents=True, exist_ok=True)
    try:
        tempfile.TemporaryFile(dir=to.parent).close()  # before hours of work, not after
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(to)) from None
    return rows


def _all_rewrites(path: Path) -> bool:
    """Whether nothing is lost of a file that `write_rows` replaces."""
    if not path.read_bytes().strip():
        return True
    metas = [isinstance(row, dict) and row.get("meta") for _, row in scan(path)]
    return all(isinstance(meta, dict) and "rewrite" in meta for meta in metas)


def _files(row: dict[str, Any]) -> list[str]:
    named = [row.get(field) for field in PATHS]
    flat = [name for entry in named for name in (entry if isinstance(entry, list) else [entry])]
    return [name for name in flat if isinstance(name, str) and name]


def write_rows(to: Path, rows: Sequence[SourceRow], rewrites: Sequence[Rewrite], model: str) -> None:
    """Writes the rows with their rewrites atomically. `model`: of the requests ("" = none).

    Every field is kept; `data_id` is put in where a row has none, so that it keeps its name and with it its
    noise; `meta.rewrite` has source, by, reason, tries, template and model. Earlier rewrites that differ go
    to the trash.
    """

    def lines() -> Iterable[str]:
        for source, rewrite in zip(rows, rewrites, strict=True):
            about = {
                "source": source.prompt,
                "by": rewrite.by,
                "reason": rewrite.reason,
                "tries": rewrite.tries,
            }
            made = about | {"template": TEMPLATE_ID, "model": model}
            meta = {**(source.row.get("meta") or {}), "rewrite": made}
            yield _line({**source.row, source.key: rewrite.text, "data_id": source.data_id, "meta": meta})

    with replaced_file(to) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(lines())


def _line(row: dict[str, Any]) -> str:
    """One line of JSON; escaped where a field holds half a surrogate pair, which UTF-8 cannot encode."""
    text = json.dumps(row, ensure_ascii=False)
    return (text if _encodes(text) else json.dumps(row)) + "\n"


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
