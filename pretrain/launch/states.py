"""Which training states a checkpoint folder holds, without reading them: a folder step-N each, in DCP's
format, finished once it has its `.metadata`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from pretrain.storage import is_file, list_folder

METADATA = ".metadata"
_STEP = re.compile(r"step-(\d+)")


def complete_steps(folder: Path) -> list[int]:
    """Steps with a finished checkpoint, ascending."""
    return sorted(step for step, path in step_folders(folder) if is_file(path / METADATA))


def kept_steps(steps: Sequence[int], keep_last: int, keep_every: int) -> list[int]:
    """Of ascending steps the `keep_last` newest and the multiples of `keep_every` (0: none)."""
    newest = {*steps[-keep_last:]}
    return [step for step in steps if step in newest or (keep_every and step % keep_every == 0)]


def step_folders(folder: Path) -> list[tuple[int, Path]]:
    """(step, its folder), finished or not."""
    matches = [(_STEP.fullmatch(path.name), path) for path in list_folder(folder)]
    return [(int(match.group(1)), path) for match, path in matches if match]
