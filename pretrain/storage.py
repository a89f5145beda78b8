"""Where data and checkpoints are: local folders and object stores behind one interface.

A place enters as text. A URL such as s3://bucket/run becomes a `upath.UPath`, anything else a `pathlib.Path`,
and the code below uses the methods that both have. Endpoints and credentials come from the environment or
fsspec's configuration (FSSPEC_S3_ENDPOINT_URL, AWS_ACCESS_KEY_ID, ...), never from the URL. Objects of a
store appear whole at the end of their upload.

`exists()` and `is_file()` of a UPath are also False where the store does not answer; `is_file` here raises
instead.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from pretrain.config import nearest
from pretrain.files import leftovers, replacing
from pretrain.storage_errors import named_errors
from pretrain.trash import TRASH, claimed, moved_into, said_moved, stamped

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_COLLAPSED = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/(.*)", re.DOTALL)  # what pathlib makes of a URL
_STORES = (
    *("s3", "s3a", "gs", "gcs", "abfs", "az", "adl", "oci", "oss", "memory", "hdfs", "sftp", "ssh"),
    *("http", "https", "hf", "webdav"),
)
# an object appears when its upload is complete
_WHOLE_UPLOADS = ("s3", "s3a", "gs", "gcs", "abfs", "az", "adl", "oci", "oss")
_DRIVERS = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "abfs": "adlfs",
    "az": "adlfs",
    "adl": "adlfs",
    "oci": "ocifs",
    "oss": "ossfs",
    "hdfs": "pyarrow",
    "sftp": "paramiko",
    "ssh": "paramiko",
    "http": "aiohttp",
    "https": "aiohttp",
    "hf": "huggingface_hub",
    "webdav": "webdav4",
}
_OPTIONS = {"use_listings_cache": False}  # other ranks write too
_S3_OPTIONS = {"max_concurrency": 4}  # parts of 50 MiB in memory at once
_CHUNK = 8 * 2**20
_REQUESTS = 16  # at once
_OF_OUT = (TRASH, "tracking")  # folders that only an output folder has


def place(text: str | Path) -> Path:
    """The place a text names; a UPath comes back with a connection of its own, as a forked process needs.

    Raises ValueError for an unknown protocol, a missing driver, credentials in the URL, a URL without a
    bucket.
    """
    match = (_COLLAPSED if isinstance(text, PurePath) else _URL).fullmatch(str(text))
    if "::" in str(text) and "://" in str(text):
        raise ValueError(
            f"{str(text).split('::')[0]}::...: chained URLs are not taken; give the place itself"
        )
    if match is None:
        return Path(text)
    protocol, rest = match.group(1).lower(), match.group(2)
    if protocol in ("file", "local"):
        return Path(rest)
    user = rest.split("/")[0].rpartition("@")[0]  # of abfs and az a container
    if ":" in user or (user and protocol not in ("abfs", "az", "adl", "hf")):
        raise ValueError(
            f"{protocol}://...@...: credentials do not belong in a URL; give them in the environment"
        )
    where = f"{protocol}://{rest}"
    if protocol not in _STORES:
        raise ValueError(f"{where}: unknown protocol {protocol!r}; {nearest(protocol, _STORES)}")
    if not rest.split("/")[0]:
        raise ValueError(f"{where}: names no bucket; give {protocol}://BUCKET/FOLDER")
    _check_driver(protocol, where)
    from upath import UPath

    return cast(
        Path,
        UPath(where.rstrip("/"), **cast(Any, _OPTIONS | (_S3_OPTIONS if protocol.startswith("s3") else {}))),
    )


def is_remote(path: Path) -> bool:
    return not isinstance(path, PurePath)


def is_file(path: Path) -> bool:
    """Whether the file is there. Raises OSError in one line where the store does not answer or forbids it."""
    if not is_remote(path):
        return path.is_file()
    return (object_info(path) or {}).get("type") == "file"


def object_info(path: Path) -> dict[str, Any] | None:
    """What a store says of an object; None where there is none. Raises OSError as `is_file`."""
    with named_errors(path):
        try:
            return _store(path).info(_key(path))
        except FileNotFoundError:
            return None


def list_folder(path: Path) -> list[Path]:
    """Sorted direct children; [] where the folder is missing. Raises OSError if the store does not answer."""
    if not is_remote(path):
        return sorted(path.iterdir()) if path.is_dir() else []
    with named_errors(path):
        try:
            keys = {entry["name"].strip("/") for entry in _store(path).ls(_key(path), detail=True)}
        except FileNotFoundError:
            return []
    # some stores also list the folder itself
    return [path / key.rsplit("/", 1)[-1] for key in sorted(keys - {"", _key(path).strip("/")})]


def holds_work(folder: Path) -> bool:
    """Whether there is anything in a folder but temporary files of killed processes."""
    found = list_folder(folder)
    return bool(found) and (is_remote(folder) or len(leftovers(folder)) < len(found))


def remove_leftovers(folder: Path) -> None:
    """Delete temporary files of killed processes; stores have none."""
    for path in [] if is_remote(folder) else leftovers(folder):
        path.unlink(missing_ok=True)


def remove_folder(path: Path) -> None:
    """Delete a folder and all below it; nothing where there is none. Raises OSError where a store refuses."""
    if not is_remote(path):
        shutil.rmtree(path, ignore_errors=True)
        return
    with named_errors(path):
        try:
            _store(path).rm(_key(path), recursive=True)
        except FileNotFoundError:
            return


def remove_files(folder: Path, names: Sequence[str]) -> None:
    """Delete files of a folder by name, and the folder if it is empty then; missing ones are passed over.

    Raises OSError where the system or a store refuses.
    """
    # one request a file: fsspec takes a list of names for patterns
    with ThreadPoolExecutor(_REQUESTS if is_remote(folder) and _appears_whole(folder) else 1) as pool:
        list(pool.map(remove_file, [folder / name for name in names]))
    if not is_remote(folder):
        with suppress(OSError):  # it holds something
            folder.rmdir()
    elif not list_folder(folder):
        remove_folder(folder)  # an object that stands for the folder


def trash_of(path: Path) -> Path:
    """Where `path` goes when it must make room: `.trash` of the nearest folder above it that holds one, or
    runs (`tracking`), else of the folder that it lies in."""
    above = [] if is_remote(path) else list(path.absolute().parents)[:-1]
    out = next((folder for folder in above if any((folder / name).is_dir() for name in _OF_OUT)), path.parent)
    return out / TRASH


def move_aside(path: Path, trash: Path | None = None, name: str = "") -> Path | None:
    """Move a file or folder to `trash`/NAME-TIME, say so in one line, and return where it is.

    None where there is nothing. trash: default that of `trash_of`; name: default the path's own. A folder in
    an object store is copied there and removed. Raises OSError where it cannot be moved.
    """
    if is_remote(path):
        if not list_folder(path):
            return None
    elif not os.path.lexists(path) or (path.is_dir() and not path.is_symlink() and not any(path.iterdir())):
        path.rmdir() if path.is_dir() else None
        return None
    trash, name = trash or trash_of(path), name or path.name
    if is_remote(path):
        where, number = trash / stamped(name), 1
        while list_folder(where):
            number += 1
            where = trash / f"{stamped(name)}~{number}"
        with named_errors(path):
            _store(path).mv(_key(path), _key(where), recursive=True)
    else:
        where = moved_into(path, claimed(trash, name))
    said_moved(path, where)
    return where


def remove_file(path: Path) -> None:
    """Delete a file; nothing where there is none. Raises OSError where a store refuses."""
    if not is_remote(path):
        path.unlink(missing_ok=True)
        return
    with named_errors(path):
        try:
            _store(path).rm_file(_key(path))
        except FileNotFoundError:
            return


def check_reachable(path: Path) -> None:
    """Raises a one-line OSError where a remote bucket is missing, forbidden or unreachable; local: passes."""
    if not is_remote(path):
        return
    store, key = _store(path), _key(path)
    with named_errors(path):
        if _appears_whole(path):
            store.ls(key.lstrip("/").split("/")[0], detail=False)
        else:
            store.exists(key)


@contextmanager
def local_file(path: Path, sha256: str = "") -> Iterator[Path]:
    """The file itself if local, else a temporary download (in NAVA_CACHE or the temporary folder).

    sha256: hexadecimal; raises ValueError where the content is another. Raises OSError where the store fails.
    """
    if not is_remote(path):
        _check_sum(path, path, sha256)
        yield path
        return
    with _scratch() as folder:
        local = folder / path.name
        with named_errors(path):
            _store(path).get_file(_key(path), str(local))
        _check_sum(local, path, sha256)
        yield local


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """A local temporary file that becomes `path` on success: renamed, or uploaded in parts.

    Raises OSError in one line where the upload fails; what was at `path` before is then intact.
    """
    if not is_remote(path):
        with replacing(path) as temporary:
            yield temporary
        return
    with _scratch() as folder:
        local = folder / path.name
        yield local
        with named_errors(path):
            _upload(local, path)


def create(path: Path, text: str) -> None:
    """Write a small file unless it exists: one concurrent writer wins. Read it afterwards to see which."""
    if is_remote(path):
        if not is_file(path):
            with writing(path) as local:
                local.write_text(text, encoding="utf-8")
        return
    with suppress(FileExistsError), replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
        try:
            os.link(temporary, path)
        except OSError as error:  # without hard links the last writer wins
            if isinstance(error, FileExistsError):
                raise


@contextmanager
def reading(path: Path) -> Iterator[BinaryIO]:
    """A file as a seekable stream, fetched as it is read. Raises a one-line OSError where the store fails."""
    with (
        named_errors(path),
        _store(path).open(_key(path), "rb") if is_remote(path) else path.open("rb") as stream,
    ):
        yield cast(BinaryIO, stream)


@contextmanager
def uploading(path: Path) -> Iterator[BinaryIO]:
    """A stream into a new file, sent in parts while it is written; in a store nothing appears on failure.

    A file of a local folder grows in place: use `writing` where half of one must not be seen. Raises OSError
    in one line.
    """
    if not is_remote(path):
        with path.open("wb") as file:
            yield file
        return
    with named_errors(path):
        stream: Any = _store(path).open(_key(path), "wb")
        try:
            yield stream
        except BaseException:
            with suppress(Exception):
                _discard(stream, path)
            raise
        stream.close()


def _discard(stream: Any, path: Path) -> None:
    if _appears_whole(path):
        stream.closed = True  # closing would complete the upload
        stream.discard()
    else:
        stream.close()
        _store(path).rm_file(_key(path))


def move_file(old: Path, new: Path) -> None:
    """Rename within one place; `new` is replaced. Raises OSError in one line where a store fails."""
    if not is_remote(old):
        old.replace(new)
        return
    with named_errors(new):
        _store(old).mv(_key(old), _key(new))


def _upload(local: Path, path: Path) -> None:
    store, key = _store(path), _key(path)
    if _appears_whole(path):
        store.put_file(str(local), key)
        return
    parent, name = key.rsplit("/", 1)
    temporary = f"{parent}/.{name}.{os.getpid()}.tmp"
    try:
        store.makedirs(parent, exist_ok=True)
        store.put_file(str(local), temporary)
        store.mv(temporary, key)
    except BaseException:
        if store.exists(temporary):
            store.rm_file(temporary)
        raise


@contextmanager
def _scratch() -> Iterator[Path]:
    cache = os.environ.get("NAVA_CACHE")
    if cache:
        Path(cache).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="nava-", dir=cache) as folder:
        yield Path(folder)


def _check_sum(local: Path, path: Path, sha256: str) -> None:
    if not sha256:
        return
    digest = hashlib.sha256()
    with local.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    if digest.hexdigest() != sha256:
        raise ValueError(
            f"{path}: sha256 is {digest.hexdigest()[:16]}..., expected {sha256[:16]}...; copy or write it "
            "again"
        )


def _check_driver(protocol: str, where: str) -> None:
    import fsspec

    try:
        fsspec.get_filesystem_class(protocol)
    except ImportError:
        raise ValueError(
            f"{where}: no driver for {protocol}; pip install {_DRIVERS.get(protocol, protocol)}"
        ) from None


def _store(path: Path) -> AbstractFileSystem:
    """A file system of this process: a UPath keeps the one it first used, which breaks after a fork."""
    import fsspec

    remote: Any = path
    return fsspec.filesystem(remote.protocol, **remote.storage_options)


def _appears_whole(path: Path) -> bool:
    return str(path).split("://")[0] in _WHOLE_UPLOADS


def _key(path: Path) -> str:
    return cast(Any, path).path
