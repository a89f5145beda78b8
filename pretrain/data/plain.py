"""Clips as people have them, as training rows: `clip.mp4` beside `clip.txt`, a table, a `datasets` folder.

A text is the caption; what is spoken stands in it between <S> and <E>, or in a column `transcript`.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pretrain.data.manifest import MAX_BAD_FRACTION, ManifestRow, check_rejected, row_of
from pretrain.data.plain_tables import METADATA, TABLES, table_rows
from pretrain.jsonl import FieldError
from pretrain.media.errors import MediaError
from pretrain.media.read import MediaInfo, probe
from pretrain.prompt import parse
from pretrain.prompt.characters import broken_character
from pretrain.prompt.marks import SPEECH_END, SPEECH_START
from pretrain.prompt.names import MAX_NAME_BYTES, name_problem

VIDEOS = (
    *(".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv"),
    *(".flv", ".ogv", ".3gp", ".mxf"),
)
SOUNDS = (".wav", ".flac", ".ogg", ".oga", ".mp3", ".m4a", ".opus", ".aac")
MEDIA = (*VIDEOS, *SOUNDS)
TEXT = ".txt"


@dataclass(frozen=True)
class PlainClip:
    """One clip of a plain set, its file not yet opened."""

    path: Path
    data_id: str  # fit for a file name
    text: str  # the caption with its speech spans
    reference: Path | None = None  # a sound of the speaker
    starts_s: tuple[float, ...] = ()  # one per span, or none
    ends_s: tuple[float, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict)  # `speaker` and columns that are nobody's
    line: int = 0  # of the table; of a folder, the clip's place in its order


def is_plain(place: Path) -> bool:
    """Whether `place` is a table of clips, a `datasets` folder, or a folder with a text beside a clip."""
    if place.is_file():
        return place.suffix.lower() in TABLES and not _is_manifest(place)
    return place.is_dir() and (_metadata(place) is not None or next(_pairs(place), None) is not None)


def plain_rows(place: Path | str, max_bad_fraction: float = MAX_BAD_FRACTION) -> list[ManifestRow]:
    """The rows of a plain set: a folder of `clip.mp4` + `clip.txt`, a CSV, TSV, JSONL or Parquet table with
    columns file_name and text, or a Hugging Face `datasets` folder with its metadata file.

    Paths are absolute. Raises FileNotFoundError, or ValueError with the first bad clip where more than
    `max_bad_fraction` of them are bad.
    """
    rows, rejected = read_plain(place)
    check_rejected(table_of(Path(place)), rejected, len(rows) + len(rejected), max_bad_fraction)
    return rows


def read_plain(place: Path | str) -> tuple[list[ManifestRow], list[FieldError]]:
    """Rows of a plain set, and what is wrong with other clips; files are opened for their length."""
    rows: list[ManifestRow] = []
    rejected: list[FieldError] = []
    for clip in plain_clips(place):
        result = clip if isinstance(clip, FieldError) else _row(clip)
        if isinstance(result, FieldError):
            rejected.append(result)
        else:
            rows.append(result)
    return rows, rejected


def table_of(place: Path) -> Path:
    """The file that says what the clips are, or the folder itself."""
    return (_metadata(place) or place) if place.is_dir() else place


def plain_clips(place: Path | str) -> list[PlainClip | FieldError]:
    """Every clip of a plain set in its order, or what is wrong with it; no clip is opened.

    Raises FileNotFoundError, and ValueError for a set without clips or of another kind.
    """
    place = Path(place)
    if not place.exists():
        raise FileNotFoundError(f"{place}: no such file or folder; give a folder of clips or a CSV")
    table = table_of(place)
    if table.is_dir():
        clips = list(_of_folder(table))
        if not clips:
            raise ValueError(f"{place}: no clips ({', '.join(MEDIA[:4])}, ...) in it; give a folder of clips")
        return clips
    if table.suffix.lower() not in TABLES:
        raise ValueError(f"{place}: not a set of clips; give a folder or a table ({', '.join(TABLES)})")
    if _is_manifest(table):
        raise ValueError(f"{place}: has NAVA rows (video_info), not plain ones; give it as a manifest")
    return list(_of_table(table))


def safe_id(name: str) -> str:
    """A data_id for a relative path: fit for a file name, another one for every other path."""
    kept = re.sub(r"[^\w.+@=-]+", "_", name.replace("/", "-")).strip("._ ")
    kept = kept.encode("utf-8", "replace").decode()[:80]
    same = kept == name and not name_problem(kept) and len(kept.encode()) < MAX_NAME_BYTES - 16
    if same:
        return kept
    digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:8]
    kept = f"{kept.encode()[:160].decode(errors='ignore') or 'clip'}-{digest}"
    return kept if not name_problem(kept) else f"clip-{digest}"


def unused_id(path: Path, name: str, used: set[str]) -> str:
    """The data_id of a file called `name`: of its stem, else of the whole name, else with a number; the first
    that is not in `used`, to which it is added."""
    numbered = (f"{name}~{number}" for number in itertools.count(2))
    names = itertools.chain([name.removesuffix(path.suffix), name], numbered)
    data_id = next(found for found in map(safe_id, names) if found not in used)
    used.add(data_id)
    return data_id


def walk(folder: Path) -> Iterator[Path]:
    """Files below a folder in order; hidden ones and what links to folders lead to are left out."""
    for where, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(where, name) for name in sorted(files) if not name.startswith("."))


def _of_folder(folder: Path) -> Iterator[PlainClip | FieldError]:
    clips = [path for path in walk(folder) if path.suffix.lower() in MEDIA]
    with_text = {path.with_suffix("") for path in walk(folder) if path.suffix.lower() in VIDEOS}
    line, used = 0, set[str]()
    for path in clips:
        if path.suffix.lower() in SOUNDS and path.with_suffix("") in with_text:
            continue  # the clip's own sound as a file, or a reference
        line += 1
        beside = path.with_suffix(TEXT)
        name = path.relative_to(folder).as_posix()
        if not beside.is_file():
            yield FieldError(line, "text", f"{path}: no {beside.name} beside it; write its caption there")
            continue
        try:
            text = beside.read_bytes().decode("utf-8-sig").strip()
        except UnicodeDecodeError as error:
            yield FieldError(line, "text", f"{beside}: not UTF-8 at byte {error.start}; save it as UTF-8")
            continue
        yield _checked(path, name, {"text": text}, line, str(beside), folder, used)


def _of_table(table: Path) -> Iterator[PlainClip | FieldError]:
    folder, seen, used = table.parent, dict[str, int](), set[str]()
    for line, row in table_rows(table):
        if isinstance(row, FieldError):
            yield row
            continue
        name = _path_in(row.pop("file_name"))
        if not isinstance(name, str) or not name.strip() or "\0" in name:
            yield FieldError(line, "file_name", f"expected a path, got {str(name)[:60]!r}")
            continue
        path = folder / name.strip()
        place = os.path.normpath(path)  # ./a.mp4 is a.mp4
        if place in seen:
            yield FieldError(line, "file_name", f"{name!r} is also on line {seen[place]}; keep one of them")
            continue
        seen[place] = line
        yield _checked(path, name.strip(), row, line, "", folder, used)


def _checked(
    path: Path, name: str, row: dict[str, Any], line: int, where: str, folder: Path, used: set[str]
) -> PlainClip | FieldError:
    """The clip of a row with the names of `plain_tables.COLUMNS`, or what is wrong with it."""
    row = dict(row)
    caption, transcript = row.pop("text", ""), row.pop("transcript", "")
    speaker, reference = row.pop("speaker", None), row.pop("reference", None)
    at = f"{where}: " if where else ""
    for column, value in (("text", caption), ("transcript", transcript)):
        if not isinstance(value, str):
            return FieldError(line, column, f"{at}expected a text, got {str(value)[:60]!r}")
        if broken := broken_character(value):
            return FieldError(line, column, f"{at}{broken}")
    try:
        text = _with_speech(caption.strip(), transcript.strip())
    except ValueError as error:
        return FieldError(line, "text", f"{at}{error}")
    try:
        starts, ends = (_times(row.pop(column, None)) for column in ("speech_start", "speech_end"))
    except ValueError as error:
        return FieldError(line, "speech_start", f"{at}{error}")
    if reference and not isinstance(reference, str):
        return FieldError(line, "reference", f"{at}expected a path, got {str(reference)[:60]!r}")
    if reference and not (folder / reference).is_file():
        return FieldError(line, "reference", f"{folder / reference}: no such file; check the path")
    meta = {
        key: value for key, value in row.items() if isinstance(value, (str, int, float, bool)) and value != ""
    }
    if speaker not in (None, ""):
        meta["speaker"] = str(speaker)
    voice = (folder / reference).absolute() if reference else None
    return PlainClip(path.absolute(), unused_id(path, name, used), text, voice, starts, ends, meta, line)


def _with_speech(caption: str, transcript: str) -> str:
    """The caption with the transcript as its one speech span, where it has none itself. Raises ValueError."""
    spans = parse(caption).spans if caption else ()
    if not caption and not transcript:
        raise ValueError("no text; write a caption, with what is spoken between <S> and <E>")
    if not transcript:
        return caption
    parse(marked := f"{SPEECH_START}{transcript}{SPEECH_END}")
    if not spans:
        return f"{caption} {marked}".strip()
    spoken = " ".join(span.text for span in spans)
    if _folded(spoken) != _folded(transcript):
        raise ValueError(f"its speech {spoken[:40]!r} is not its transcript {transcript[:40]!r}; keep one")
    return caption


def _folded(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def _times(value: Any) -> tuple[float, ...]:
    """Seconds of a cell: a number, a list, or either as text. Raises ValueError."""
    if value in (None, ""):
        return ()
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise ValueError(f"expected seconds, got {value[:60]!r}; write 0.5 or [0.5, 2.0]") from None
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(at, (int, float)) and not isinstance(at, bool) for at in values):
        raise ValueError(f"expected seconds, got {str(value)[:60]!r}; write 0.5 or [0.5, 2.0]")
    return tuple(float(at) for at in values)


def _row(clip: PlainClip) -> ManifestRow | FieldError:
    try:
        info = probe(clip.path)
    except (MediaError, OSError) as error:
        return FieldError(clip.line, "file_name", str(error))
    if info.duration_s is None:
        return FieldError(clip.line, "file_name", f"{clip.path}: has no length (a still); give a clip")
    return row_of(_public(clip, info), clip.line, Path())


def _public(clip: PlainClip, info: MediaInfo) -> dict[str, Any]:
    """The clip in the public form of training rows, its paths absolute."""
    spans = len(parse(clip.text).spans)
    voice = {"reference_paths": [str(clip.reference)] * spans} if clip.reference and spans else {}
    has_video = info.fps is not None and bool(info.width)
    return {
        "data_id": clip.data_id,
        "video_info": [
            {
                "data_path": str(clip.path),
                "fps": info.fps if has_video else 0.0,
                "duration": info.duration_s,
                "image_width": info.width or 0,
                "image_height": info.height or 0,
            }
        ],
        "text_list": [
            {"text": clip.text, "speech_start": list(clip.starts_s), "speech_end": list(clip.ends_s)}
        ],
        "meta": {**clip.meta, **voice},
    }


def _metadata(folder: Path) -> Path | None:
    """The metadata file of a `datasets` folder, None where it has none.

    One in a subfolder counts for the folder if no clip lies elsewhere that it does not name. Raises
    ValueError where one does, and for several files.
    """
    places = [folder, *sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")]
    found = [place / name for place in places for name in METADATA if (place / name).is_file()]
    if len(found) > 1:
        names = ", ".join(path.relative_to(folder).as_posix() for path in found)
        raise ValueError(f"{folder}: several metadata files ({names}); name the one that is meant")
    if found and found[0].parent != folder and (beyond := _beyond(found[0], folder)):
        table, inside = (path.relative_to(folder).as_posix() for path in (found[0], found[0].parent))
        first = min(beyond).relative_to(folder).as_posix()
        more = f" and {len(beyond) - 1} more" if len(beyond) > 1 else ""
        raise ValueError(
            f"{folder}: {table} says what the clips are, but {first}{more} lies outside of {inside}; give "
            f"{found[0]} for its clips alone, or move {inside} out of the folder for the others"
        )
    return found[0] if found else None


def _beyond(table: Path, folder: Path) -> set[Path]:
    """Clips of a folder that neither lie where its table does nor are named in it. Sounds are clips where
    the table has no video beside it."""
    beside = [path.suffix.lower() for path in walk(table.parent)]
    kinds = VIDEOS if any(suffix in VIDEOS for suffix in beside) else MEDIA
    outside = {
        path
        for path in walk(folder)
        if path.suffix.lower() in kinds and not path.is_relative_to(table.parent)
    }
    if not outside:
        return outside
    named = named_files(table)
    return {path for path in outside if path.resolve() not in named}


def named_files(table: Path) -> set[Path]:
    """Clips and references that a table names, links followed, also in rows that are wrong otherwise."""
    found = set[Path]()
    for _, row in table_rows(table):
        names = [] if isinstance(row, FieldError) else [_path_in(row["file_name"]), row.get("reference")]
        some = [name.strip() for name in names if isinstance(name, str) and name.strip() and "\0" not in name]
        found |= {(table.parent / name).resolve() for name in some}
    return found


def _path_in(cell: Any) -> Any:
    """The path of a cell; in a media column of `datasets` one of its values."""
    return cell.get("path") if isinstance(cell, Mapping) else cell


def _pairs(folder: Path) -> Iterator[Path]:
    for path in walk(folder):
        if path.suffix.lower() in MEDIA and path.with_suffix(TEXT).is_file():
            yield path


def _is_manifest(table: Path) -> bool:
    """Whether a JSONL holds rows of the public training format."""
    if table.suffix.lower() != ".jsonl":
        return False
    with table.open("rb") as file:
        return b'"video_info"' in next((line for line in file if line.strip()), b"")
