"""SHA-256 of sources, kept in the folder of results: a file that did not change is read once for it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from experiments.preparation.pool import SourceWorkers, digest_of
from experiments.preparation.records import RawVideo
from pretrain.progress import track

DIGESTS = "digests.jsonl"  # lines are appended as files are read, so that a killed run keeps what it has

HERE_BYTES = 1 << 32  # of new files together that this process reads itself; starting workers takes as long
THREADS = 4

Stamp = tuple[str, int, int, int]  # absolute path, bytes, times of its content and of its entry in ns


def digests(sources: Sequence[RawVideo], folder: Path, workers: SourceWorkers) -> dict[str, str | OSError]:
    """Name of each source -> its SHA-256, or why it cannot be read; of one in an object store its version."""
    known, found = _read(folder / DIGESTS), dict[str, str | OSError]()
    found |= {source.name: source.version for source in sources if source.url}
    sources = [source for source in sources if not source.url]
    stamps = {source.name: stamp for source in sources if (stamp := _stamp(source.path))}
    new = [source for source in sources if stamps.get(source.name) not in known]
    num_bytes = sum(stamps[source.name][1] for source in new if source.name in stamps)
    with (folder / DIGESTS).open("a", encoding="utf-8", errors="surrogateescape") as file:
        for source, digest in track(_hashed(new, num_bytes, workers), len(new), "files hashed"):
            found[source.name] = digest
            if isinstance(digest, str) and (stamp := stamps.get(source.name)):
                file.write(json.dumps([*stamp, digest]) + "\n")
    for source in sources:
        if source.name not in found:
            found[source.name] = known[stamps[source.name]]
    return found


def _hashed(
    sources: Sequence[RawVideo], num_bytes: int, workers: SourceWorkers
) -> Iterator[tuple[RawVideo, str | OSError]]:
    paths, done = [source.path.absolute() for source in sources], set[int]()
    if num_bytes < HERE_BYTES:
        with ThreadPoolExecutor(THREADS) as threads:
            yield from zip(sources, threads.map(digest_of, paths), strict=True)
        return
    for place, digest in workers.each(digest_of, paths):
        done.add(place)
        yield sources[place], digest
    for place in sorted(set(range(len(paths))) - done):  # their worker was killed
        yield sources[place], digest_of(paths[place])


def _stamp(path: Path) -> Stamp | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return os.fspath(path.absolute()), found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _read(path: Path) -> dict[Stamp | None, str]:
    if not path.is_file():
        return {}
    known: dict[Stamp | None, str] = {}
    for line in path.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        try:
            name, size, changed, entered, digest = json.loads(line)
        except ValueError:  # the line at which a run was killed
            continue
        known[name, size, changed, entered] = digest
    return known
