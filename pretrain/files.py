"""Files appear whole or not at all, and are read with errors that name them."""

from __future__ import annotations

import codecs
import errno
import hashlib
import json
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

if TYPE_CHECKING:
    from torch import Tensor

MAX_WHOLE = 2**64  # of numbers in rows
MAX_DIGITS = 40  # of numbers in other JSON: tokenizers say 10**30 for "no limit"
MAX_FILE_NAME_BYTES = 255  # of ext4, APFS and NTFS
TEMPORARY = re.compile(r"\..+\.(\d+)\.tmp")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` (whose folder is made), renamed to it on success, deleted on failure.

    An OSError of the body that names no file, as a write on a full disk, or the temporary one comes out
    naming `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path, "tmp")
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        if error.errno and error.filename in (None, str(temporary)):
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _beside(path: Path, ending: str) -> Path:
    """`.NAME.PID.ending` of this process; a digest stands for the end of a NAME that leaves it no room."""
    name, around = path.name, f".{os.getpid()}.{ending}"
    if len(os.fsencode(name)) + len(around) + 1 > MAX_FILE_NAME_BYTES:
        digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:16]
        room = MAX_FILE_NAME_BYTES - len(around) - len(digest) - 2
        name = f"{os.fsencode(name)[:room].decode(errors='ignore')}~{digest}"
    return path.with_name(f".{name}{around}")


def path_in_row(path: Path, folder: Path, here: Path = Path()) -> str:
    """A path as a row of an index in `folder` names it: absolute as it is, else from there, after a `./`.

    here: where a relative `path` starts, the working directory."""
    if path.is_absolute():
        return str(path)
    return f"./{Path(os.path.relpath(here / path, os.path.realpath(folder))).as_posix()}"


def path_of_row(text: str, folder: Path) -> Path:
    """What `path_in_row` wrote. A relative path without `./` starts at the working directory: earlier
    versions wrote it so."""
    return folder / text if text.startswith("./") else Path(text)


@contextmanager
def locked(path: Path, otherwise: str) -> Iterator[None]:
    """Holds the lock file `path`, which stays. Raises ValueError saying `otherwise` where another process of
    this machine holds it; a killed one has let go of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, timeout=0, thread_local=False)
    try:
        held = lock.acquire()
    except Timeout:
        raise ValueError(otherwise) from None
    with held:
        yield


def leftovers(folder: Path) -> list[Path]:
    """Temporary files of `replacing` in a local folder whose process is gone: it was killed."""
    found = [(path, TEMPORARY.fullmatch(path.name)) for path in folder.iterdir()] if folder.is_dir() else []
    return [path for path, match in found if match and not is_running(int(match[1]))]


def is_running(process: int) -> bool:
    """Whether this machine has a process of that id."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        pass
    return True


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Writes a safetensors file. Raises OSError naming it, also for safetensors' own error."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(dict(tensors), path)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        code = int(number.group(1)) if number else errno.EIO
        raise OSError(code, os.strerror(code), str(path)) from error
    apply_umask(path)


def apply_umask(path: Path) -> None:
    """Gives a file the permissions of any newly made one; the safetensors library leaves 0600."""
    fresh = _beside(path, "mode")
    try:
        fresh.touch(exist_ok=False)
        path.chmod(stat.S_IMODE(fresh.stat().st_mode))
    finally:
        fresh.unlink(missing_ok=True)


def strict_json(text: str | bytes, parse_int: Callable[[str], int] | None = None, **options: Any) -> Any:
    """`json.loads` of what may be anybody's, with its options.

    Raises ValueError for whole numbers of over MAX_DIGITS digits, which overflow elsewhere, and
    for nesting without end.
    """
    try:
        return json.loads(text, parse_int=parse_int or _short_number, **options)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def whole_number(text: str) -> int:
    """A whole number of a row. Raises ValueError for one beyond 64 bits."""
    if len(text.lstrip("-")) > 20 or abs(value := int(text)) > MAX_WHOLE:
        raise ValueError("a number of too many digits")
    return value


def _short_number(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError("a number of too many digits")
    return int(text)


def read_json(path: Path, advice: str) -> dict[str, Any]:
    """A JSON object. Raises ValueError naming the file, with `advice`, if it is damaged."""
    try:
        content = strict_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}); {advice}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(content).__name__}; {advice}")
    return content


def write_json(
    path: Path,
    values: Mapping[str, Any],
    *,
    through: Callable[[Path], AbstractContextManager[Path]] = replacing,
    indent: int | None = 2,
    **options: Any,
) -> None:
    """Whole or not at all; `through` is `pretrain.storage.writing` where the place may be remote, `options`
    are those of `json.dumps`."""
    with through(path) as temporary:
        temporary.write_text(json.dumps(values, indent=indent, **options) + "\n", encoding="utf-8")


def sha256_of(path: Path) -> str:
    """Digest of a file, which is read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def wide_encoding(content: bytes) -> str:
    """UTF-16 or UTF-32 where the bytes of a text are that, else ""."""
    if content.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "UTF-32"
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "UTF-16"
    head = content[:64]
    return "UTF-16" if len(head) > 3 and 0 in (head[0], head[1]) and head.count(0) >= len(head) // 3 else ""


def text_lines(path: Path) -> list[tuple[int, str]]:
    """(line number from 1, text) of the lines of a UTF-8 text that are not blank.

    A byte order mark is skipped; lines end as on Unix or Windows. Raises ValueError `file:line: ...` for
    another encoding.
    """
    content = path.read_bytes()
    if wide := wide_encoding(content):
        raise ValueError(f"{path}:1: the file is {wide}; save it as UTF-8")
    found = []
    for line, raw in enumerate(content.removeprefix(codecs.BOM_UTF8).split(b"\n"), start=1):
        try:
            text = raw.decode().removeprefix("\ufeff").rstrip("\r")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{path}:{line}: not UTF-8 at byte {error.start}; save the file as UTF-8"
            ) from None
        if text.strip():
            found.append((line, text))
    return found
