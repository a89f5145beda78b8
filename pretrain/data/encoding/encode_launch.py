"""Encodes sets by ranks of this machine: what can be checked before, torchrun, and what came of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pretrain.data.encoding.encode_ranks import EncodeJob
from pretrain.data.encoding.encode_units import IDENTITY
from pretrain.data.encoding.parts import INDEX, MANIFEST, PARTS
from pretrain.files import TEMPORARY, locked, read_json
from pretrain.launch.torchrun import METRICS, RESOLVED, failure, run_ranks
from pretrain.owned import MARKER
from pretrain.progress import StageProgress
from pretrain.storage import check_reachable, is_file, is_remote, list_folder, move_aside, place

# file names of a set, and what killed ranks leave of them
_OF_SET = re.compile(
    "|".join(
        [
            *map(re.escape, (MANIFEST, INDEX, PARTS, IDENTITY, MARKER)),
            r"shard-\d+\.safetensors",
            TEMPORARY.pattern,
        ]
    )
)
_AGAIN = "run the same `nava encode` again"


def encode_places(
    job: EncodeJob, folder: Path, nproc: int, restart: bool = False
) -> dict[str, dict[str, Any]]:
    """Encodes the sets on `nproc` local ranks; returns their manifest.json. `folder` gets the ranks' log.

    restart: move aside what is encoded of these sets. Raises FileNotFoundError, ValueError or OSError in one
    line.
    """
    _check(job)
    folder = folder.absolute()
    # ranks read their job from the folder: a second run would give the first one's ranks its own
    taken = f"{folder}: another `nava encode` works there; wait for it, or give another --out"
    with locked(folder / ".lock", taken):
        return _encode(job, folder, nproc, restart)


def _encode(job: EncodeJob, folder: Path, nproc: int, restart: bool) -> dict[str, dict[str, Any]]:
    folders = {one.name: place(job.to) / one.name for one in job.sets}
    for where in folders.values() if restart else ():
        _check_set(where)
        move_aside(where)
    (folder / METRICS).unlink(missing_ok=True)
    job.save(folder / RESOLVED)
    code = run_ranks("pretrain.data.encoding.encode_ranks", folder, nproc, 0, progress_of(job))
    unfinished = [name for name, where in folders.items() if not is_file(where / MANIFEST)]
    if code or unfinished:
        raise failure(folder, code)
    return {name: read_json(where / MANIFEST, _AGAIN) for name, where in folders.items()}


def _check_set(folder: Path) -> None:
    """Raises ValueError where a folder has something in it that is not of an encoded set."""
    for path in () if is_remote(folder) else list_folder(folder):
        if not _OF_SET.fullmatch(path.name) or (path.is_dir() and path.name != PARTS):
            raise ValueError(
                f"{folder}: holds {path.name!r}, which `nava encode` did not make; give another --to, or "
                "move it away"
            )


def progress_of(job: EncodeJob) -> StageProgress:
    """Percent of the rows of all sets."""
    return StageProgress("encode", 100, _describe, "percent")


def _describe(row: Mapping[str, Any]) -> str:
    return f"{row['rows']:,} of {row['of']:,}"


def _check(job: EncodeJob) -> None:
    """Raises FileNotFoundError or ValueError for a missing codec or manifest, OSError for a store."""
    path = Path(job.codec) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no codec here; run `nava codec` first or give its output folder")
    for one in job.sets:
        if not is_file(place(one.manifest)):
            raise FileNotFoundError(f"{one.manifest}: no such file; give the path of a JSONL file")
    check_reachable(place(job.to))
