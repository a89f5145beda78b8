"""Sources in object stores: listed with their versions, fetched one at a time by who works on them."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from experiments.preparation.records import RawVideo
from pretrain import storage
from pretrain.storage_errors import named_errors
from rewards.media_folder import VIDEO_SUFFIXES

TEXTS = (".txt", ".srt", ".vtt")
VERSION_KEYS = ("size", "ETag", "etag", "VersionId", "md5", "content_md5", "mtime", "LastModified", "created")


def is_address(text: str) -> bool:
    """Whether a place names an object store, such as s3://bucket/folder."""
    return "://" in text and not text.startswith(("file://", "local://"))


def listed_videos(place: str) -> tuple[list[RawVideo], Mapping[str, int], RemoteTexts]:
    """(videos in the order of their names, what else lies there by kind, the texts among it).

    `place`: a prefix, a pattern with `*`, or one object. Raises ValueError for an address that names no
    store, and OSError in one line where the store does not answer.
    """
    root = storage.place(place.split("*")[0].rpartition("/")[0] if "*" in place else place)
    store, key = _store_of(root)
    with named_errors(root):
        pattern = str(place).split("://", 1)[1]
        found: dict[str, Any] = (
            store.glob(pattern, detail=True) if "*" in place else store.find(key, detail=True)
        )
    files = {name: info for name, info in found.items() if info.get("type") == "file"}
    base = PurePosixPath(key) if key not in files else PurePosixPath(key).parent
    left_out: Counter[str] = Counter()
    videos, texts = [], dict[str, str]()
    for name in sorted(files):
        inner, url = _inner(name, base), _url(root, name)
        suffix = PurePosixPath(name).suffix.lower()
        if any(part.startswith(".") for part in PurePosixPath(inner).parts):
            left_out["hidden file"] += 1
        elif suffix in VIDEO_SUFFIXES:
            version = _version(url, files[name])
            path = Path(inner)
            videos.append(
                RawVideo(path, inner, "", url=url, version=version, size=int(files[name].get("size") or 0))
            )
        else:
            if suffix in TEXTS:
                texts[inner] = url
            left_out[suffix or "file without suffix"] += 1
    if "*" in place or key in files:  # found by themselves: their texts lie in the same folders
        return videos, dict(sorted(left_out.items())), _texts_beside(root, files, base)
    return videos, dict(sorted(left_out.items())), RemoteTexts(texts)


def _texts_beside(root: Path, files: Iterable[str], base: PurePosixPath) -> RemoteTexts:
    """The texts in the folders of `files`, by their names below `base`. Raises OSError in one line."""
    store, _ = _store_of(root)
    found: dict[str, str] = {}
    with named_errors(root):
        for folder in sorted({str(PurePosixPath(name).parent) for name in files}):
            names = [entry["name"] for entry in store.ls(folder, detail=True) if entry["type"] == "file"]
            found |= {_inner(name, base): _url(root, name) for name in names if name.endswith(TEXTS)}
    return RemoteTexts(found)


def _inner(name: str, base: PurePosixPath) -> str:
    """A key as it is called below the folder that is read."""
    return str(PurePosixPath(name).relative_to(base)) if PurePosixPath(name).is_relative_to(base) else name


def _url(root: Path, name: str) -> str:
    return f"{str(root).split('://', 1)[0]}://{name.lstrip('/')}"


class RemoteTexts:
    """The texts that lie beside remote videos, by their names below the prefix."""

    def __init__(self, urls: Mapping[str, str]) -> None:
        self._urls = urls

    def read(self, path: Path, limit: int) -> bytes | None:
        """Content of a text, None where there is none. Raises OSError; at most `limit` + 1 bytes are read."""
        url = self._urls.get(path.as_posix())
        if url is None:
            return None
        with storage.reading(storage.place(url)) as stream:
            return stream.read(limit + 1)


@contextmanager
def fetched(source: RawVideo, folder: Path) -> Iterator[RawVideo]:
    """The source as a local file: itself, or downloaded into `folder` and deleted at the end.

    Raises OSError in one line where the store does not answer, FileNotFoundError where it is gone.
    """
    if not source.url:
        yield source
        return
    local = folder / f"source{source.path.suffix}"
    remote = storage.place(source.url)
    store, key = _store_of(remote)
    try:
        with named_errors(remote):
            store.get_file(key, str(local))
        yield replace(source, path=local)
    finally:
        local.unlink(missing_ok=True)


def _store_of(place: Path) -> tuple[Any, str]:
    """A file system of this process and the key within it."""
    import fsspec

    remote: Any = place
    if not hasattr(remote, "protocol"):
        raise ValueError(f"{place}: names no object store; give s3://BUCKET/FOLDER")
    return fsspec.filesystem(remote.protocol, **remote.storage_options), remote.path


def _version(url: str, info: Mapping[str, Any]) -> str:
    """A digest that changes with the content, as far as the store tells: its ETag, size and times."""
    told = {key: str(info[key]) for key in VERSION_KEYS if info.get(key) is not None}
    return hashlib.sha256(json.dumps([url, told], sort_keys=True).encode()).hexdigest()
