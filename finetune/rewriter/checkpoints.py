"""The checkpoints of TRL's trainer in a run's own folder: which are whole, and whose they are.

The trainer writes a checkpoint file by file. One counts once `complete.json` lists what is in it; a killed
save leaves none and is removed. Resuming reads only what this list holds, unchanged: random state and moments
are pickles (opened with weights_only).
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pretrain.files import read_json, sha256_of, write_json

FOLDER = "checkpoints"
COMPLETE = "complete.json"
IDENTITY = "identity.json"
START_OVER = "--no-resume starts over"
_NAME = re.compile(r"checkpoint-(\d+)")


def claim(out: Path, identity: Mapping[str, Any]) -> None:
    """Say whose folder this is. Raises ValueError where it holds another run's checkpoints."""
    path = out / IDENTITY
    plain = json.loads(json.dumps(identity))
    if path.is_file() and (held := read_json(path, START_OVER)) != plain:
        wrong = next(name for name in sorted({*held, *plain}) if held.get(name) != plain.get(name))
        raise ValueError(f"{out}: begun with another {wrong}; give another folder, or {START_OVER}")
    write_json(path, plain, indent=1)


def mark_complete(checkpoint: Path) -> None:
    """Everything is written: say so, with the digest of every file."""
    found = {path.relative_to(checkpoint).as_posix(): sha256_of(path) for path in _files(checkpoint)}
    write_json(checkpoint / COMPLETE, found, indent=1)


def newest(out: Path) -> tuple[int, Path | None]:
    """(step, folder) of the newest complete checkpoint, (0, None) without one; removes incomplete ones.

    Raises ValueError for a checkpoint with a file that was changed, added or removed since.
    """
    whole: dict[int, Path] = {}
    for folder in (out / FOLDER).glob("checkpoint-*"):
        if not (found := _NAME.fullmatch(folder.name)) or folder.is_symlink():
            continue
        if not (folder / COMPLETE).is_file():
            shutil.rmtree(folder)
        else:
            whole[int(found[1])] = folder
    if not whole:
        return 0, None
    step = max(whole)
    listed = read_json(whole[step] / COMPLETE, START_OVER)
    found = {path.relative_to(whole[step]).as_posix(): sha256_of(path) for path in _files(whole[step])}
    if wrong := next(
        (name for name in sorted({*listed, *found}) if listed.get(name) != found.get(name)), None
    ):
        raise ValueError(
            f"{whole[step] / wrong}: not as it was saved; remove the checkpoint, or {START_OVER}"
        )
    return step, whole[step]


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != COMPLETE)
