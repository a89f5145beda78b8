"""The file layout of JavisBench, read as its own script reads it.

FOLDER/JavisBench.csv or JavisBench-mini.csv: a header and a row a case, of which `text` is the prompt and
`audio_text`, where it is given, describes the sound. Results: sample_0000.mp4 and sample_0000.wav, numbered
by row, in one folder. Source: eval/javisbench of github.com/JavisVerse/JavisDiT.
"""

from __future__ import annotations

import csv
import difflib
from collections.abc import Sequence
from pathlib import Path

from experiments.paper.layouts import BenchItem, answered, check_clips

FILES = ("JavisBench.csv", "JavisBench-mini.csv")
COLUMNS = ("text", "audio_text", "video_text", "path", "audio_path")
_SURELY_MEANT = 0.8  # likeness of names, above which one is a misspelling of the other


def javisbench_file(folder: Path, mini: bool) -> Path:
    """The CSV of a folder. Raises FileNotFoundError in one line."""
    path = folder / FILES[mini]
    if not path.is_file():
        other = folder / FILES[not mini]
        hint = f"{other.name} is there: {'leave out --mini' if mini else 'give --mini'}"
        raise FileNotFoundError(
            f"{path}: no such file; "
            + (hint if other.is_file() else "give the folder of the data set JavisDiT/JavisBench")
        )
    return path


def read_javisbench(path: Path, clips: Path | None) -> list[BenchItem]:
    """Every row in order, sample_0000 first; clips: None where they are not made yet.

    A row without a text is a case with that reason. Raises FileNotFoundError or ValueError in one line, with
    the line where a row has another number of fields than the header.
    """
    check_clips(clips)
    items: list[BenchItem] = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file, strict=True)
            columns = next(rows, [])
            _check_columns(path, columns)
            for fields in rows:
                if len(fields) != len(columns):
                    raise ValueError(
                        f"{path}:{rows.line_num}: {len(fields)} fields, the header has {len(columns)}; "
                        "get the data set again"
                    )
                row = dict(zip(columns, fields, strict=True))
                text = row["text"].strip()
                sound = row.get("audio_text", "").strip() or text
                items.append(
                    BenchItem(
                        f"sample_{len(items):04d}", path.stem, sounds=(sound,) if sound else (), prompt=text
                    )
                )
    except csv.Error as error:
        raise ValueError(f"{path}:{rows.line_num}: not CSV ({error}); get the data set again") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error.reason}); get the data set again") from None
    if not items:
        raise ValueError(f"{path}: no row below the header; get the data set again")
    return answered(items, clips)


def _check_columns(path: Path, columns: Sequence[str]) -> None:
    """Raises ValueError for a header without `text`, with a column twice, or with a misspelt one."""
    for name in columns:
        near = difflib.get_close_matches(name, COLUMNS, n=1, cutoff=_SURELY_MEANT)
        if name not in COLUMNS and near and near[0] not in columns:
            raise ValueError(f"{path}:1: unknown column {name!r}; did you mean {near[0]!r}?")
        if columns.count(name) > 1:
            raise ValueError(f"{path}:1: column {name!r} is there twice; remove one")
    if "text" not in columns:
        raise ValueError(f"{path}:1: no column 'text'; it has {', '.join(columns) or 'none'}")
