"""Training manifests in the public JSONL format (nava.md section 5), read as they are.

A bad row is rejected with its reason and counted; too many of them stop the run.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pretrain.jsonl import FieldError, dump, scan
from pretrain.prompt import parse

MAX_BAD_FRACTION = 0.01


@dataclass(frozen=True)
class ManifestRow:
    """One clip of a manifest. Paths are resolved against the manifest's folder; times in seconds."""

    data_id: str
    data_path: Path
    fps: float  # 0 = a sound without picture
    duration_s: float
    width: int  # pixels; 0 = unknown or a sound without picture
    height: int
    text: str
    speech_start_s: tuple[float, ...]  # one per speech span of the text, or none at all
    speech_end_s: tuple[float, ...]
    quality: dict[str, Any] = field(default_factory=dict)  # audio_splits_info_tagging[0]
    meta: dict[str, Any] = field(default_factory=dict)  # ours; absent in other people's files
    line: int = 0

    @property
    def has_video(self) -> bool:
        return self.fps > 0 and self.width > 0

    def to_json(self, folder: Path) -> dict[str, Any]:
        """The public form, paths relative to `folder`."""
        info = {
            "fps": self.fps,
            "duration": self.duration_s,
            "image_width": self.width,
            "image_height": self.height,
        }
        return {
            "data_id": self.data_id,
            "video_info": [{"data_path": _relative(self.data_path, folder), **info}],
            "text_list": [
                {
                    "text": self.text,
                    "speech_start": list(self.speech_start_s),
                    "speech_end": list(self.speech_end_s),
                }
            ],
            "audio_splits_info_tagging": [self.quality],
            "meta": self.meta,
        }


def read_manifest(
    path: Path | str, max_bad_fraction: float = MAX_BAD_FRACTION
) -> tuple[list[ManifestRow], list[FieldError]]:
    """Valid rows and the errors of the rejected ones (media are not opened here).

    Raises FileNotFoundError, or ValueError `file:line field: ...` when more than `max_bad_fraction` of the
    rows are bad.
    """
    path = Path(path)
    rows: list[ManifestRow] = []
    rejected: list[FieldError] = []
    seen: dict[str, int] = {}
    for line, content in scan(path, finite=True):
        result = content if isinstance(content, FieldError) else row_of(content, line, path.parent)
        if isinstance(result, ManifestRow) and result.data_id in seen:
            result = FieldError(
                line, "data_id", f"{result.data_id!r} is also on line {seen[result.data_id]}; make it unique"
            )
        if isinstance(result, FieldError):
            rejected.append(result)
        else:
            seen[result.data_id] = line
            rows.append(result)
    check_rejected(path, rejected, len(rows) + len(rejected), max_bad_fraction)
    return rows, rejected


def check_rejected(
    path: Path | str, rejected: list[FieldError], num_rows: int, max_bad_fraction: float
) -> None:
    """Raises ValueError, naming the first bad row, when more than the allowed part of a set is rejected."""
    if rejected:
        check_bad(path, rejected[0], len(rejected), num_rows, max_bad_fraction)


def check_bad(
    path: Path | str, first: FieldError, num_bad: int, num_rows: int, max_bad_fraction: float
) -> None:
    """Raises ValueError with the first bad row where `num_bad` exceeds the allowed share, or is all rows."""
    if num_bad > max_bad_fraction * num_rows or num_bad == num_rows:
        share = f"{num_bad} of {num_rows} rows are bad, more than {max_bad_fraction:.0%}"
        raise ValueError(f"{first.at(path)} ({share}; mend them or allow more)")


def write_manifest(path: Path | str, rows: Iterable[ManifestRow]) -> None:
    """Writes rows in the public format; the file appears whole or not at all."""
    folder = Path(path).parent
    dump(path, (row.to_json(folder) for row in rows))


def row_of(content: dict[str, Any], line: int, folder: Path) -> ManifestRow | FieldError:
    """The typed row of one line's object, or what is wrong with it; its paths are relative to `folder`."""
    try:
        return _typed_row(content, line, folder)
    except _Wrong as error:
        return FieldError(line, error.field, error.message)


class _Wrong(Exception):
    def __init__(self, name: str, message: str) -> None:
        super().__init__(name, message)
        self.field, self.message = name, message


def _typed_row(content: dict[str, Any], line: int, folder: Path) -> ManifestRow:
    data_id = content.get("data_id")
    if isinstance(data_id, int) and not isinstance(data_id, bool):
        data_id = str(data_id)
    if not isinstance(data_id, str) or not data_id:
        raise _Wrong("data_id", f"expected a text, got {data_id!r}")
    info, texts = _first(content, "video_info"), _first(content, "text_list")
    data_path = info.get("data_path")
    if not isinstance(data_path, str) or not data_path:
        raise _Wrong("video_info[0].data_path", f"expected a path, got {data_path!r}")
    text = texts.get("text")
    if not isinstance(text, str):
        raise _Wrong("text_list[0].text", f"expected a text, got {text!r}")
    try:
        num_spans = len(parse(text).spans)
    except ValueError as error:
        raise _Wrong("text_list[0].text", str(error)) from None
    duration_s = _number(info, "duration", "video_info[0].duration")
    if duration_s <= 0:
        raise _Wrong("video_info[0].duration", f"expected more than 0 seconds, got {duration_s}")
    width, height = (
        int(_number(info, key, f"video_info[0].{key}", 0.0)) for key in ("image_width", "image_height")
    )
    starts, ends = _speech_times(texts, num_spans)
    quality = _first(content, "audio_splits_info_tagging") if content.get("audio_splits_info_tagging") else {}
    meta = content.get("meta") or {}
    if not isinstance(meta, dict):
        raise _Wrong("meta", f"expected an object, got {meta!r}")
    fps = _number(info, "fps", "video_info[0].fps", 0.0)
    return ManifestRow(
        data_id, folder / data_path, fps, duration_s, width, height, text, starts, ends, quality, meta, line
    )


def _first(content: dict[str, Any], key: str) -> dict[str, Any]:
    items = content.get(key)
    if not isinstance(items, list) or not items or not isinstance(items[0], dict):
        raise _Wrong(
            key, f"expected a list with one object, got {str(items)[:60] if key in content else 'nothing'}"
        )
    return items[0]


def _number(content: dict[str, Any], key: str, name: str, absent: float | None = None) -> float:
    value = content.get(key)
    if value is None and absent is not None:
        return absent
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not math.isfinite(value)
        or value < 0
    ):
        raise _Wrong(name, f"expected a number, got {value!r}")
    return float(value)


def _speech_times(texts: dict[str, Any], num_spans: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Starts and ends; both empty where a file gives none. One per span otherwise."""
    times = []
    for key in ("speech_start", "speech_end"):
        values = texts.get(key)
        values = [] if values is None else values if isinstance(values, list) else [values]
        times.append(
            tuple(_number({"at": value}, "at", f"text_list[0].{key}[{i}]") for i, value in enumerate(values))
        )
    starts, ends = times
    if len(starts) != len(ends) or len(starts) not in (0, num_spans):
        raise _Wrong(
            "text_list[0].speech_start",
            f"{len(starts)} starts, {len(ends)} ends, {num_spans} spans; give one of each per span",
        )
    for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
        if end <= start:
            raise _Wrong(f"text_list[0].speech_end[{i}]", f"{end} s is not after the start, {start} s")
    return starts, ends


def _relative(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path, folder)).as_posix()
