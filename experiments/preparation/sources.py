"""What is to be prepared: videos of a folder, list or pattern, and the texts that lie beside them."""

from __future__ import annotations

import codecs
import glob
import hashlib
import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from experiments.preparation.config import PrepareConfig
from experiments.preparation.records import GivenText, RawVideo, Rejection, printable
from experiments.preparation.remote import is_address, listed_videos
from experiments.preparation.subtitles import subtitles
from pretrain.data.plain import PlainClip, is_plain, named_files, plain_clips, table_of, unused_id, walk
from pretrain.data.plain_tables import METADATA, TABLES
from pretrain.files import wide_encoding
from pretrain.jsonl import FieldError
from pretrain.prompt import parse
from pretrain.prompt.characters import broken_character
from rewards.media_folder import VIDEO_SUFFIXES, scan_folder

SUBTITLES = (".srt", ".vtt")
LISTS = (".txt", ".list")
_SOME = f"{', '.join(sorted(VIDEO_SUFFIXES)[:5])}, ..."
ReadText = Callable[[Path, int], bytes | None]
_MAX_TEXT_BYTES = 4 << 20


def find_sources(
    place: str, config: PrepareConfig
) -> tuple[list[RawVideo], list[Rejection], Mapping[str, int]]:
    """(sources in order, those whose texts are wrong, what else lies there by kind).

    `place`: a folder, a pattern such as 'raw/*.mp4', one video, a file with a path on each line, a plain set
    (`pretrain.data.plain`), or a prefix, pattern or object of a store (s3://bucket/raw). Texts that are used
    are nothing else; videos of a `datasets` folder that its table does not name are. Raises
    FileNotFoundError, ValueError where there is no video, OSError where a store does not answer.
    """
    if is_address(place):
        return _of_store(place, config)
    path = Path(place)
    if path.is_file() and path.suffix.lower() in TABLES:
        return *_plain(path), {}
    if path.is_dir():
        if (table := table_of(path)) != path:
            return *_plain(path), _not_named(table, path)
        return _of_folder(path, config)
    if path.is_file():
        files, base = ([path], path.parent) if path.suffix.lower() not in LISTS else _listed(path)
    elif glob.has_magic(place):
        found = map(Path, glob.glob(place, recursive=True))  # noqa: PTH207 (patterns may be absolute)
        files = sorted(file for file in found if file.is_file())
        base = Path(os.path.commonpath([str(file.parent) for file in files])) if files else path
    else:
        raise FileNotFoundError(
            f"{place}: no such file or folder; give a folder of videos, a list or a pattern"
        )
    if not files:
        raise ValueError(f"{place}: no video in it ({_SOME})")
    return *_beside(files, base, config, _content), {}


def _of_folder(
    path: Path, config: PrepareConfig
) -> tuple[list[RawVideo], list[Rejection], Mapping[str, int]]:
    folder, used = scan_folder(path, VIDEO_SUFFIXES), set[Path]()
    if not folder.files:
        raise ValueError(f"{path}: no video in it ({_SOME})")
    found = _beside(folder.files, path, config, _noting(_content, used))
    tables = [file for file in walk(path) if file.name.lower() in METADATA]  # not where `table_of` looks
    first = tables[0].relative_to(path).as_posix() if tables else ""
    what = {f"table of clips that is not read ({first}); give its folder": len(tables)} if tables else {}
    return *found, {**_without(folder.left_out, {*used, *tables}), **what}


def _not_named(table: Path, place: Path) -> Mapping[str, int]:
    """What lies in a `datasets` folder and is neither its table nor named in it."""
    folder, named = scan_folder(place, VIDEO_SUFFIXES), named_files(table)
    others = sum(file.resolve() not in named for file in folder.files)
    there = {path for path in named if path.is_file() and path.suffix.lower() not in VIDEO_SUFFIXES}
    inside = {path for path in there if path.is_relative_to(place.resolve())}
    what = {f"video that {table.name} does not name": others} if others else {}
    return {**_without(folder.left_out, {*inside, table}), **what}


def _without(left_out: Mapping[str, int], used: Iterable[Path]) -> Mapping[str, int]:
    """`left_out` by suffix, less the files that are used."""
    counts = Counter(path.suffix.lower() for path in used if not path.name.startswith("."))
    return {what: count - counts[what] for what, count in left_out.items() if count > counts[what]}


def _of_store(place: str, config: PrepareConfig) -> tuple[list[RawVideo], list[Rejection], Mapping[str, int]]:
    videos, left_out, texts = listed_videos(place)
    if not videos:
        raise ValueError(f"{place}: no video in it ({_SOME})")
    used = set[Path]()
    found = _with_texts(videos, config, _noting(texts.read, used))
    return *found, _without(left_out, used)


def _listed(path: Path) -> tuple[list[Path], Path]:
    """Paths of a list, one a line, relative to it."""
    content = path.read_bytes()
    if wide := wide_encoding(content):
        raise ValueError(f"{path}: the list is {wide}; save it as UTF-8")
    lines = content.removeprefix(codecs.BOM_UTF8).split(b"\n")
    names = [os.fsdecode(line.strip()) for line in lines if line.strip() and not line.startswith(b"#")]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"{path}: {twice[0]!r} is there twice; keep one of them")
    return [path.parent / name for name in names], path.parent


def _plain(place: Path) -> tuple[list[RawVideo], list[Rejection]]:
    """The clips of a table as sources; its captions count."""
    assert is_plain(place) or place.suffix.lower() in TABLES
    sources, wrong, table = [], [], table_of(place)
    for clip in plain_clips(place):
        if isinstance(clip, FieldError):
            reason = f"{table.name}:{clip.line} {clip.field}: {clip.message}"
            wrong.append(
                Rejection("text", clip.field, None, None, reason, source=f"{table.name}:{clip.line}")
            )
        else:
            sources.append(_of_row(clip, table))
    return sources, wrong


def _of_row(clip: PlainClip, table: Path) -> RawVideo:
    try:
        name = clip.path.relative_to(table.parent.absolute()).as_posix()
    except ValueError:
        name = str(clip.path)
    given = GivenText(
        caption=clip.text,
        cues=_given_times(clip),
        speaker=str(clip.meta.get("speaker", "")),
        reference=str(clip.reference or ""),
        digest=hashlib.sha256(repr((clip.text, clip.starts_s, clip.ends_s)).encode()).hexdigest(),
    )
    return RawVideo(clip.path, name, clip.data_id, given)


def _given_times(clip: PlainClip) -> tuple[tuple[float, float, str], ...]:
    spans = parse(clip.text).spans
    if len(spans) != len(clip.starts_s):
        return ()
    return tuple(
        (start, end, span.text) for start, end, span in zip(clip.starts_s, clip.ends_s, spans, strict=True)
    )


def _beside(
    files: Sequence[Path], base: Path, config: PrepareConfig, read: ReadText
) -> tuple[list[RawVideo], list[Rejection]]:
    names = [Path(os.path.relpath(file, base)).as_posix() for file in files]
    videos = [RawVideo(file, name, "") for file, name in zip(files, names, strict=True)]
    return _with_texts(videos, config, read)


def _with_texts(
    videos: Iterable[RawVideo], config: PrepareConfig, read: ReadText
) -> tuple[list[RawVideo], list[Rejection]]:
    """Videos with ids and the texts beside them, and those whose texts are wrong."""
    sources, wrong, used, shown = [], [], set[str](), set[str]()
    for video in videos:
        name = video.name
        data_id = unused_id(video.path, name, used)
        name = _unlike(printable(name), shown)
        try:
            given = given_text(video.path, config, read)
            sources.append(replace(video, name=name, data_id=data_id, given=given))
        except ValueError as error:
            wrong.append(Rejection("text", "text", None, None, str(error), source=name))
    return sources, wrong


def _unlike(name: str, shown: set[str]) -> str:
    """`name`, or with a number where another file is shown by it: results are kept by these names."""
    names = itertools.chain([name], (f"{name}~{number}" for number in itertools.count(2)))
    unlike = next(found for found in names if found not in shown)
    shown.add(unlike)
    return unlike


def given_text(video: Path, config: PrepareConfig, read: ReadText | None = None) -> GivenText:
    """Texts beside a video: .srt or .vtt, and .txt, a caption (with speech marks) or a transcript.

    `read` answers the first bytes of a file, None where there is none. Raises ValueError in one line for a
    text that cannot be read.
    """
    found: dict[str, object] = {}
    digest, read = hashlib.sha256(), read or _content
    for suffix in SUBTITLES:
        beside = video.with_suffix(suffix)
        if (text := _read(beside, read)) is not None:
            digest.update(text.encode())
            found["cues"] = subtitles(text, beside)
            break
    beside = video.with_suffix(".txt")
    if (text := _read(beside, read)) is not None:
        text = text.strip()
        digest.update(b"\0" + text.encode())
        try:
            spans = parse(text).spans
        except ValueError as error:
            raise ValueError(f"{beside}: {error}") from None
        if spans or config.text_beside == "caption" or "cues" in found:
            found["caption"] = text
        elif text:  # `auto`: a transcript where it can be aligned, which the worker finds out
            found["transcript"] = text
    return GivenText(**found, digest=digest.hexdigest() if found else "")  # type: ignore[arg-type]


def _noting(read: ReadText, used: set[Path]) -> ReadText:
    """`read`, which adds to `used` what is there."""

    def noted(path: Path, limit: int) -> bytes | None:
        if (content := read(path, limit)) is not None:
            used.add(path)
        return content

    return noted


def _content(path: Path, limit: int) -> bytes | None:
    """The first `limit` + 1 bytes of a local file, None where there is none."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return file.read(limit + 1)


def _read(path: Path, read: ReadText) -> str | None:
    content = read(path, _MAX_TEXT_BYTES)
    if content is None:
        return None
    if len(content) > _MAX_TEXT_BYTES:
        raise ValueError(
            f"{path}: more than {_MAX_TEXT_BYTES >> 20} MiB are no text beside a video; move it away"
        )
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8") from None
    if broken := broken_character(text):
        raise ValueError(f"{path}: {broken}")
    return text
