"""What a file is by its first bytes; names may say what they like."""

from __future__ import annotations

from pathlib import Path

from pretrain.media.errors import MediaError, MissingMediaError

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


def is_still(path: Path) -> bool:
    """A picture that Pillow reads. Raises MediaError for HEIF, of which FFmpeg would give one tile."""
    start = first_bytes(path)
    if start[4:8] == b"ftyp" and start[8:12] in _HEIF:
        raise MediaError(f"{path}: an HEIF still, which is not read; save it as JPEG or PNG")
    return (
        start[:8] == b"\x89PNG\r\n\x1a\n"
        or (start[:3] == b"\xff\xd8\xff" and path.suffix.lower() not in (".mjpeg", ".mjpg"))
        or (start[:4] == b"RIFF" and start[8:12] == b"WEBP")
        or (start[:2] == b"BM" and start[6:10] == bytes(4))
        or start[:4] in (b"II*\0", b"MM\0*")
        or (start[:2] in (b"P1", b"P2", b"P3", b"P4", b"P5", b"P6") and start[2:3].isspace())
        or (start[4:8] == b"ftyp" and start[8:12] == b"avif")
    )


def is_sound(path: Path) -> bool:
    """A sound file that libsndfile reads: wav, flac, or an ogg of that name."""
    start = first_bytes(path)
    return (
        (start[:4] in (b"RIFF", b"RIFX", b"RF64") and start[8:12] == b"WAVE")
        or start[:4] == b"fLaC"
        or (start[:4] == b"OggS" and path.suffix.lower() in (".ogg", ".oga"))
    )
