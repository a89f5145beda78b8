"""`nava prepare`: a set of raw videos to training rows, resumable, the same whatever the workers."""

from __future__ import annotations

import glob
import os
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from experiments.preparation.assemble import Assembled, Result, assemble
from experiments.preparation.digests import digests
from experiments.preparation.faces import check_network
from experiments.preparation.keeping import RESULT, key_of
from experiments.preparation.pool import LocalWorkers, PoolWork, SourceWorkers, work_through
from experiments.preparation.records import RawVideo, Rejection
from experiments.preparation.remote import is_address
from experiments.preparation.services import Services, use
from experiments.preparation.shards import sharded
from experiments.preparation.source_work import Settings, check_steps
from experiments.preparation.sources import find_sources
from experiments.preparation.writing import write_set
from pretrain.files import locked, read_json, write_json
from pretrain.owned import check_owned, owned_folder
from pretrain.progress import track_sized

MARK = "nava-prepare.json"  # in the folder of results by source
COMMAND = "prepare"


@dataclass(frozen=True)
class FoundVideos:
    """The sources of a run, and what is said of others before any is decoded."""

    sources: list[RawVideo]
    rejected: list[Rejection]
    left_out: Mapping[str, int]


def check(settings: Settings, services: Services) -> None:
    """Raises ValueError or FileNotFoundError in one line for steps, networks and lengths that cannot be."""
    check_steps(settings.config)
    services.check()
    use(services)
    check_network()
    if not settings.lengths.allowed():
        limits = f"prepare.min_s={settings.config.min_s:g} and max_s={settings.config.max_s:g}"
        raise ValueError(
            f"{limits}: no length of {settings.only or '1 + 4n'} frames at {settings.fps:g} fps is between"
        )


def find(place: str, settings: Settings) -> FoundVideos:
    sources, rejected, left_out = find_sources(place, settings.config)
    return FoundVideos(sources, rejected, left_out)


def check_inputs(place: str, out: Path, settings: Settings, services: Services) -> FoundVideos:
    """What there is to prepare. Raises FileNotFoundError and ValueError, before anything is made."""
    check(settings, services)
    check_owned(out, COMMAND)
    _check_apart(place, out)
    found = find(place, settings)
    _check_none_within(found.sources, place, out)
    return found


def work_folder(out: Path) -> Path:
    """Where results by source are kept, beside the output: they outlive it, so that a run goes on."""
    return out.with_name(f".{out.name}.work")


def prepare_set(
    place: str, out: Path, settings: Settings, services: Services, workers: int | SourceWorkers
) -> Assembled:
    """Writes the set to `out` and answers what came of it. `workers`: a number of local processes, or others.

    Raises FileNotFoundError and ValueError before any file is decoded, OSError and ConnectionError where it
    cannot go on; the same command then goes on with what is left.
    """
    found, folder = check_inputs(place, out, settings, services), work_folder(out)
    _claim(folder)
    with locked(
        folder / "lock", f"{out}: another `nava prepare` writes there; wait for it or give another --to"
    ):
        for left in folder.glob(".*.partial"):
            shutil.rmtree(left, ignore_errors=True)
        begun_s = time.monotonic()
        results, rejected = _prepared(
            found.sources, settings, services, folder, _workers(workers), "videos prepared"
        )
        assembled = sharded(
            assemble(results, [*found.rejected, *rejected], settings, services, found.left_out)
        )
        with owned_folder(out, COMMAND) as fresh:
            write_set(assembled, fresh, time.monotonic() - begun_s)
    return assembled


def predict(
    place: str,
    count: int,
    settings: Settings,
    services: Services,
    workers: int | SourceWorkers,
    scratch: Path | None = None,
) -> dict[str, Any]:
    """Tries `count` evenly chosen sources in a temporary folder, below `scratch` where workers are on other
    machines, and predicts yield and time of all."""
    check(settings, services)
    found = find(place, settings)
    places = np.unique(
        np.linspace(0, len(found.sources) - 1, min(count, len(found.sources))).round().astype(int)
    )
    some = [found.sources[place] for place in places]
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        begun_s = time.monotonic()
        results, rejected = _prepared(
            some, settings, services, Path(folder), _workers(workers), "videos tried"
        )
        spent_s = time.monotonic() - begun_s
        summary = assemble(results, rejected, settings, services, found.left_out).summary
    share = _bytes(found.sources) / max(1, _bytes(some))
    kept_s = summary["kept_seconds"]
    return {
        "tried": len(some),
        "of": len(found.sources),
        "kept_share": kept_s / max(1e-9, summary["source_seconds"]),
        "kept_clips": round(summary["clips"] * share),
        "kept_hours": kept_s * share / 3600,
        "hours_of_work": spent_s * share / 3600,
        "rejected": summary["rejected"],
        "slowest": summary["slowest"],
    }


def _bytes(sources: Sequence[RawVideo]) -> int:
    return sum(source.num_bytes for source in sources)


def _workers(workers: int | SourceWorkers) -> SourceWorkers:
    return LocalWorkers(workers) if isinstance(workers, int) else workers


def _prepared(
    sources: Sequence[RawVideo],
    settings: Settings,
    services: Services,
    folder: Path,
    workers: SourceWorkers,
    what: str,
) -> tuple[list[Result], list[Rejection]]:
    """Results of all sources in their order, each with its folder below `folder`, and what was not opened."""
    keys, rejected = _keys(sources, settings, services, folder, workers)
    sizes = {
        source.name: source.num_bytes
        for source in sources
        if source.name in keys and not (folder / keys[source.name] / RESULT).is_file()
    }
    # the largest first: no worker begins a long one when the others have nothing left to do
    todo = [
        (source if source.url else replace(source, path=source.path.absolute()), keys[source.name])
        for source in sorted(sources, key=lambda one: -sizes.get(one.name, 0))
        if source.name in sizes
    ]
    work = PoolWork(settings, _absolute(services), folder.absolute())
    size_of = {key: float(sizes[source.name]) for source, key in todo}
    done = ((key, size_of[key]) for key in work_through(todo, work, workers))
    for _ in track_sized(done, len(todo), sum(size_of.values()), what):
        pass
    places = [folder / keys[source.name] for source in sources if source.name in keys]
    return [(read_json(place / RESULT, "remove it"), place) for place in places], rejected


def _absolute(services: Services) -> Services:
    """For workers, which may have another working folder."""
    places = {name: getattr(services, name) for name in ("syncnet", "yunet", "whisper")}
    return replace(services, **{name: path.absolute() for name, path in places.items() if path})


def _keys(
    sources: Sequence[RawVideo], settings: Settings, services: Services, folder: Path, workers: SourceWorkers
) -> tuple[dict[str, str], list[Rejection]]:
    """Name of each source's results; of files with the same bytes, the first that has a text counts."""
    rejected: list[Rejection] = []
    alike: dict[str, list[RawVideo]] = {}
    found = digests(sources, folder, workers)
    for source in sources:
        digest = found[source.name]
        if isinstance(digest, OSError):
            reason = f"cannot be read ({digest.strerror or digest})"
            rejected.append(Rejection("read", "file", None, None, reason, source=source.name))
        else:
            alike.setdefault(digest, []).append(source)
    keys: dict[str, str] = {}
    for digest, some in alike.items():
        kept = next((source for source in some if source.given.digest), some[0])
        keys[kept.name] = key_of(kept, digest, settings, services)
        for source in some:
            if source is not kept:
                reason = f"the same bytes as {kept.name}"
                rejected.append(Rejection("duplicate", "sha256", None, None, reason, source=source.name))
    return keys, rejected


def _claim(folder: Path) -> None:
    """Raises ValueError where the folder of results is somebody else's."""
    if folder.exists() and any(folder.iterdir()) and not (folder / MARK).is_file():
        raise ValueError(f"{folder}: not empty and not of `nava prepare`; move it away or give another --to")
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / MARK).is_file():
        write_json(folder / MARK, {"command": COMMAND})


def _check_apart(place: str, out: Path) -> None:
    """Raises ValueError for an output that the next run would read: within the videos' folder, or found by
    their pattern."""
    videos = Path(place)
    if videos.is_dir() and out.absolute().resolve().is_relative_to(videos.resolve()):
        raise ValueError(f"--to {out}: lies in the folder of the videos, {place}; give a folder beside it")
    if is_address(place) or videos.exists() or not glob.has_magic(place):
        return
    target, pattern = (Path(os.path.abspath(path)).parts for path in (out, place))  # noqa: PTH100 (a pattern)
    for folder in ("clips", "clips/00000", "rejected", "rejected/00000"):
        if _matches((*target, *folder.split("/"), "a-0000.mp4"), pattern):
            raise ValueError(f"--to {out}: {place} finds what is written there too; give a folder beside it")


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether a path is found by a pattern, as by `glob` with `recursive`."""
    if not parts or not pattern:
        return not parts and all(part == "**" for part in pattern)
    first, hidden = pattern[0], parts[0].startswith(".")
    if first == "**":
        return _matches(parts, pattern[1:]) or (not hidden and _matches(parts[1:], pattern))
    known = fnmatchcase(parts[0], first) and (not hidden or first.startswith("."))
    return known and _matches(parts[1:], pattern[1:])


def _check_none_within(sources: Sequence[RawVideo], place: str, out: Path) -> None:
    """Raises ValueError for a source in the output, which this run replaces."""
    target = out.absolute().resolve()
    for source in sources:
        if not source.url and source.path.absolute().resolve().is_relative_to(target):
            raise ValueError(f"{place}: {source.path} lies in --to {out}; take it out or give another --to")
