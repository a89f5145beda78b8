"""What a file is by its first bytes; names may say what they like."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pretrain.media.errors import AGAIN, MediaError, MissingMediaError

Reader = Literal["still", "sound", "stream"]
START_BYTES = 32
_HEIF = (b"heic", b"heix", b"mif1", b"msf1", b"heim", b"heis")


def check_present(path: Path) -> None:
    if not path.is_file():
        raise MissingMediaError(
            f"{path}: no such file; check the path (relative ones start at the JSONL's folder)"
        )
    if not path.stat().st_size:
        raise MediaError(f"{path}: empty file (0 bytes); write it again or drop its row")


def first_bytes(path: Path) -> bytes:
    """Raises MediaError for a file that may not be read."""
    try:
        with path.open("rb") as file:
            return file.read(START_BYTES)
    except OSError as error:
        raise MediaError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None


def kind_of(path: Path) -> Reader:
    """Who reads a file: Pillow (`still`), libsndfile (`sound`), FFmpeg (`stream`).

    Raises MediaError for a file that may not be read, a GIF that is cut off, and HEIF, of which FFmpeg would
    give one tile.
    """
    start, suffix = first_bytes(path), path.suffix.lower()
    if start[4:8] == b"ftyp" and start[8:12] in _HEIF:
        raise MediaError(f"{path}: an HEIF still, which is not read; save it as JPEG or PNG")
    if start[:3] == b"GIF" and not _ends_as_gif(path):
        raise MediaError(f"{path}: truncated, a GIF without its end; {AGAIN}")
    if _is_still(start, suffix):
        return "still"
    return "sound" if _is_sound(start, suffix) else "stream"


def _ends_as_gif(path: Path) -> bool:
    """FFmpeg reads the part of a GIF that is there, without a word."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 64))
        return file.read().rstrip(b"\0").endswith(b";")


def _is_still(start: bytes, suffix: str) -> bool:
    return (
        start[:8] == b"\x89PNG\r\n\x1a\n"
        or (start[:3] == b"\xff\xd8\xff" and suffix not in (".mjpeg", ".mjpg"))
        or (start[:4] == b"RIFF" and start[8:12] == b"WEBP")
        or (start[:2] == b"BM" and start[6:10] == bytes(4))
        or start[:4] in (b"II*\0", b"MM\0*")
        or (start[:2] in (b"P1", b"P2", b"P3", b"P4", b"P5", b"P6") and start[2:3].isspace())
        or (start[4:8] == b"ftyp" and start[8:12] == b"avif")
    )


def _is_sound(start: bytes, suffix: str) -> bool:
    return (
        (start[:4] in (b"RIFF", b"RIFX", b"RF64") and start[8:12] == b"WAVE")
        or start[:4] == b"fLaC"
        or (start[:4] == b"OggS" and suffix in (".ogg", ".oga"))
    )
