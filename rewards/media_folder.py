"""The media files of a folder, and what lies there beside them: nothing is left out without being counted."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

_VIDEO = "mp4 m4v mov mkv webm avi ts m2ts mts flv mpg mpeg 3gp ogv"
_SOUND = "wav flac ogg mp3 m4a aac opus wma aiff aif"
VIDEO_SUFFIXES = frozenset(f".{suffix}" for suffix in _VIDEO.split())
SOUND_SUFFIXES = frozenset(f".{suffix}" for suffix in _SOUND.split())
MEDIA_SUFFIXES = VIDEO_SUFFIXES | SOUND_SUFFIXES
BESIDE = "sound beside a video of its name"


@dataclass(frozen=True)
class MediaFolder:
    """`files`: those taken, sorted by path. `left_out`: what else is there (a suffix or a kind) and how
    many of it."""

    folder: Path
    files: tuple[Path, ...]
    left_out: Mapping[str, int]


def scan_folder(
    folder: Path, suffixes: Collection[str] = MEDIA_SUFFIXES, subfolders: bool = True
) -> MediaFolder:
    """Files of these suffixes (in lower case) in a folder and, with `subfolders`, below it.

    Links to files are read as files. Links to folders are not followed (their files may be there already,
    and a circle has no end) but counted, as are hidden files and folders and links to nothing.
    Raises OSError for a folder that cannot be read.
    """
    files: list[Path] = []
    left_out: Counter[str] = Counter()
    waiting = [folder]
    while waiting:
        for entry in _entries(waiting.pop(), folder, left_out):
            what = _left_out(entry, suffixes, subfolders)
            if what:
                left_out[what] += 1
            elif entry.is_dir():
                waiting.append(Path(entry.path))
            else:
                files.append(Path(entry.path))
    return MediaFolder(folder, tuple(sorted(files)), dict(sorted(left_out.items())))


def _entries(inside: Path, root: Path, left_out: Counter[str]) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(inside) as entries:
            return list(entries)
    except PermissionError:
        if inside == root:
            raise
        left_out["folder that may not be read"] += 1
        return []


def _left_out(entry: os.DirEntry[str], suffixes: Collection[str], subfolders: bool) -> str:
    """What an entry is counted as; "" for a file that is taken and a folder that is looked into."""
    is_folder = entry.is_dir()
    if entry.name.startswith("."):
        return "hidden folder" if is_folder else "hidden file"
    if is_folder:
        return "link to a folder" if entry.is_symlink() else "" if subfolders else "subfolder"
    if not entry.is_file():
        return "link to nothing" if entry.is_symlink() else "special file"
    suffix = Path(entry.name).suffix.lower()
    return "" if suffix in suffixes else suffix or "file without suffix"


def left_out_line(left_out: Mapping[str, int]) -> str:
    """`left out: 3 .m4v, 1 link to a folder`; "" where nothing was."""
    return f"left out: {', '.join(f'{count} {what}' for what, count in left_out.items())}" if left_out else ""


def unique_names(files: Collection[Path], folder: Path) -> dict[Path, str]:
    """A name for each file: its path in `folder` without suffix, with it where another has the same."""
    bare = {path: path.relative_to(folder).with_suffix("").as_posix() for path in files}
    counts = Counter(bare.values())
    return {
        path: name if counts[name] == 1 else path.relative_to(folder).as_posix()
        for path, name in bare.items()
    }
