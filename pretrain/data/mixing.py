"""Data mixing files: sets and their sampling weights (`.list` and `.weight`, nava.md section 5)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pretrain.config import nearest
from pretrain.files import text_lines
from pretrain.storage import place

MODALS = ("text_to_av", "text_to_audio", "text_to_video", "text_to_image")


@dataclass(frozen=True)
class MixEntry:
    """One set of the mixture."""

    index: int
    name: str
    path: Path  # of the set's manifest, local or in a store
    weight: float
    modal: str  # one of MODALS


def read_mix(list_path: Path | str, weight_path: Path | str | None = None) -> list[MixEntry]:
    """Sets with their weights; `weight_path` defaults to the list's name with `.weight`.

    List lines are `idx<TAB>set_name<TAB>path` or `idx<TAB>path` (the name is then the file's), weight lines
    `set_name<TAB>weight<TAB>modal`; blank lines, `#` comments and a byte order mark are skipped.
    Raises ValueError `file:line: ...`.
    """
    list_path = Path(list_path)
    weight_path = Path(weight_path) if weight_path is not None else list_path.with_suffix(".weight")
    weights = _read_weights(weight_path)
    entries: list[MixEntry] = []
    for line, cells in _cells(list_path, (2, 3), "idx<TAB>set_name<TAB>path"):
        name = cells[1] if len(cells) == 3 else Path(cells[1]).stem
        if not (cells[0].isascii() and cells[0].isdigit()):
            raise ValueError(f"{list_path}:{line} idx: expected a whole number, got {cells[0]!r}")
        if name in {entry.name for entry in entries}:
            raise ValueError(f"{list_path}:{line} set_name: {name!r} is listed twice; keep one")
        if name not in weights:
            raise ValueError(
                f"{list_path}:{line} set_name: {name!r} has no line in {weight_path}; "
                f"{nearest(name, weights)}"
            )
        entries.append(MixEntry(int(cells[0]), name, _manifest(list_path, cells[-1]), *weights[name]))
    unused = set(weights) - {entry.name for entry in entries}
    if unused:
        wrong = min(unused)
        raise ValueError(
            f"{weight_path}: set {wrong!r} is not in {list_path}; "
            f"{nearest(wrong, (entry.name for entry in entries))}"
        )
    return entries


def write_mix(list_path: Path | str, entries: Sequence[MixEntry]) -> None:
    """Writes the `.list` and, beside it, the `.weight`; manifest paths relative to the list's folder."""
    list_path = Path(list_path)
    lines = [
        f"{entry.index}\t{entry.name}\t{entry.path.relative_to(list_path.parent).as_posix()}\n"
        for entry in entries
    ]
    list_path.write_text("".join(lines))
    list_path.with_suffix(".weight").write_text(
        "".join(f"{entry.name}\t{entry.weight:g}\t{entry.modal}\n" for entry in entries)
    )


def _manifest(list_path: Path, text: str) -> Path:
    """A URL is absolute, any other path is relative to the list's folder."""
    return place(text) if "://" in text else list_path.parent / text


def _read_weights(path: Path) -> dict[str, tuple[float, str]]:
    weights: dict[str, tuple[float, str]] = {}
    for line, (name, text, modal) in _cells(path, (3,), "set_name<TAB>weight<TAB>modal"):
        try:
            weight = float(text)
        except ValueError:
            weight = math.nan
        if not math.isfinite(weight) or weight < 0:
            raise ValueError(f"{path}:{line} weight: expected a number of 0 or more, got {text!r}")
        if modal not in MODALS:
            raise ValueError(f"{path}:{line} modal: unknown {modal!r}; {nearest(modal, MODALS)}")
        if name in weights:
            raise ValueError(f"{path}:{line} set_name: {name!r} has two weights; keep one")
        weights[name] = (weight, modal)
    return weights


def _cells(path: Path, widths: tuple[int, ...], form: str) -> Iterator[tuple[int, list[str]]]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; give the path of a mixing file with lines {form}")
    for line, text in text_lines(path):
        if text.lstrip().startswith("#"):
            continue
        cells = [cell.strip() for cell in text.split("\t")]
        if len(cells) not in widths or not all(cells):
            raise ValueError(
                f"{path}:{line}: expected {form}, got {text[:80]!r}; separate the columns by tabs"
            )
        yield line, cells
