"""Checkpoint folders, local or in a store: which are complete, which are kept, and a failed save as one line.

DCP writes `.metadata` last, so a step folder without it is unfinished: it is never loaded, counted or trusted.
"""

from __future__ import annotations

import errno
import re
import shutil
from contextlib import suppress
from pathlib import Path

from pretrain.storage import is_file, is_remote, list_folder, remove_file, remove_folder

_STEP = re.compile(r"step-(\d+)")


def complete_steps(folder: Path) -> list[int]:
    """Steps with a finished checkpoint, ascending."""
    return sorted(step for step, path in _steps(folder) if is_file(path / ".metadata"))


def remove_incomplete(folder: Path) -> list[int]:
    """Delete unfinished step folders (of a killed or failed save); returns their steps."""
    unfinished = [(step, path) for step, path in _steps(folder) if not is_file(path / ".metadata")]
    for _, path in unfinished:
        remove_folder(path)
    return sorted(step for step, _ in unfinished)


def retain(folder: Path, keep_last: int, keep_every: int) -> list[int]:
    """Delete finished checkpoints but the `keep_last` newest and multiples of `keep_every` (0: none); returns the rest."""
    steps = complete_steps(folder)
    kept = [step for step in steps if step in steps[-keep_last:] or (keep_every and step % keep_every == 0)]
    for step in set(steps) - set(kept):
        path = folder / f"step-{step}"
        remove_file(path / ".metadata")  # first, so that a half-deleted folder is an unfinished one
        remove_folder(path)
    return kept


def is_full(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def save_error(error: BaseException, folder: Path, newest: int = 0) -> OSError:
    """One line for a save that failed anywhere below: where, why, what is still good, what to do.

    newest: the last step known to be complete, for a store that does not answer.
    """
    cause = _root_cause(error)
    with suppress(OSError):
        newest = max(complete_steps(folder), default=0)
    good = f"the checkpoint of step {newest} is intact" if newest else "no earlier checkpoint exists"
    reason = f"{type(cause).__name__}: {' '.join(str(cause).split())[:300]}"
    if is_remote(folder):
        return OSError(f"{folder}: checkpoint could not be written ({reason}); {good}; run again to resume when the store answers")
    free_mb = shutil.disk_usage(folder).free / 2**20 if folder.is_dir() else 0.0
    reason = "the disk is full" if is_full(cause) or free_mb < 1 else reason
    return OSError(
        f"{folder}: checkpoint could not be written ({reason}, {free_mb:.0f} MB free); {good}; free space and run again to resume"
    )


def _steps(folder: Path) -> list[tuple[int, Path]]:
    matches = [(_STEP.fullmatch(path.name), path) for path in list_folder(folder)]
    return [(int(match.group(1)), path) for match, path in matches if match]


def _root_cause(error: BaseException) -> BaseException:
    """An OSError anywhere in the chain, or below DCP's CheckpointException; else the error itself."""
    seen: list[BaseException] = [error]
    for item in seen:
        if isinstance(item, OSError):
            return item
        failures = getattr(item, "failures", {})
        below = [pair[0] for pair in failures.values()] + [item.__cause__, item.__context__]
        seen.extend(child for child in below if isinstance(child, BaseException) and child not in seen)
    return error
