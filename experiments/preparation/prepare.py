"""`nava prepare`: a set of raw videos to training rows, resumable, the same whatever the workers."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.preparation.assemble import Assembled, assemble
from experiments.preparation.faces import check_network
from experiments.preparation.keeping import RESULT, digest_of, key_of
from experiments.preparation.pool import PoolWork, work_through
from experiments.preparation.records import RawVideo, Rejection
from experiments.preparation.services import Services, use
from experiments.preparation.source_work import Settings, check_steps
from experiments.preparation.sources import find_sources
from experiments.preparation.writing import write_set
from pretrain.files import locked, read_json, write_json
from pretrain.owned import check_owned, owned_folder
from pretrain.progress import track

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


def work_folder(out: Path) -> Path:
    """Where results by source are kept, beside the output: they outlive it, so that a run goes on."""
    return out.with_name(f".{out.name}.work")


def prepare_set(place: str, out: Path, settings: Settings, services: Services, nproc: int) -> Assembled:
    """Writes the set to `out` and answers what came of it.

    Raises FileNotFoundError and ValueError before any file is decoded, OSError and ConnectionError where it
    cannot go on; the same command then goes on with what is left.
    """
    check(settings, services)
    check_owned(out, COMMAND)
    found, folder = find(place, settings), work_folder(out)
    _check_apart(place, out)
    _claim(folder)
    with locked(
        folder / "lock", f"{out}: another `nava prepare` writes there; wait for it or give another --to"
    ):
        for left in folder.glob(".*.partial"):
            shutil.rmtree(left, ignore_errors=True)
        begun_s = time.monotonic()
        keys, rejected = _keys(found.sources, settings, services)
        todo = [
            (source, keys[source.name])
            for source in found.sources
            if source.name in keys and not (folder / keys[source.name] / RESULT).is_file()
        ]
        work = PoolWork(settings, services, folder, nproc)
        for _ in track(work_through(todo, work), len(todo), "videos prepared"):
            pass
        results = [
            (read_json(folder / keys[source.name] / RESULT, "remove it"), folder / keys[source.name])
            for source in found.sources
            if source.name in keys
        ]
        assembled = assemble(results, [*found.rejected, *rejected], settings, services, found.left_out)
        with owned_folder(out, COMMAND) as fresh:
            write_set(assembled, fresh, time.monotonic() - begun_s)
    return assembled


def predict(place: str, count: int, settings: Settings, services: Services, nproc: int) -> dict[str, Any]:
    """Tries `count` evenly chosen sources in a temporary folder and predicts yield and time of all."""
    check(settings, services)
    found = find(place, settings)
    places = np.unique(
        np.linspace(0, len(found.sources) - 1, min(count, len(found.sources))).round().astype(int)
    )
    some = [found.sources[place] for place in places]
    with tempfile.TemporaryDirectory() as folder:
        begun_s = time.monotonic()
        keys, rejected = _keys(some, settings, services)
        work = PoolWork(settings, services, Path(folder), nproc)
        todo = [(source, keys[source.name]) for source in some if source.name in keys]
        for _ in track(work_through(todo, work), len(todo), "videos tried"):
            pass
        results = [
            (json.loads((Path(folder, key) / RESULT).read_text()), Path(folder, key)) for _, key in todo
        ]
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


def _keys(
    sources: Sequence[RawVideo], settings: Settings, services: Services
) -> tuple[dict[str, str], list[Rejection]]:
    """Name of each source's results; of files with the same bytes, the first that has a text counts."""
    rejected: list[Rejection] = []
    alike: dict[str, list[RawVideo]] = {}
    for source, digest in _digests(sources):
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


def _digests(sources: Sequence[RawVideo]) -> Iterator[tuple[RawVideo, str | OSError]]:
    for source in track(sources, len(sources), "files hashed"):
        try:
            yield source, digest_of(source)
        except OSError as error:
            yield source, error


def _claim(folder: Path) -> None:
    """Raises ValueError where the folder of results is somebody else's."""
    if folder.exists() and any(folder.iterdir()) and not (folder / MARK).is_file():
        raise ValueError(f"{folder}: not empty and not of `nava prepare`; move it away or give another --to")
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / MARK).is_file():
        write_json(folder / MARK, {"command": COMMAND})


def _check_apart(place: str, out: Path) -> None:
    """Raises ValueError for an output within the videos' folder, which would be read the next time."""
    videos = Path(place)
    if videos.is_dir() and out.absolute().resolve().is_relative_to(videos.resolve()):
        raise ValueError(f"--to {out}: lies in the folder of the videos, {place}; give a folder beside it")
