"""Which files a request may name: regular ones whose real place is under an allowed folder."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from orchestration.service.limits import Refusal

OUTSIDE = "not under an allowed folder"  # the same words whether it is there or not


def allowed_roots(roots: Sequence[Path]) -> tuple[Path, ...]:
    """Real paths of the folders. Raises ValueError for one that is none, or the whole file system."""
    found = []
    for root in roots:
        if not root.is_dir():
            raise ValueError(f"--root {root}: no such folder; name one whose files may be scored")
        if (real := root.resolve()) == Path(real.anchor):
            raise ValueError(f"--root {root}: that is every file of this machine; name a folder of clips")
        found.append(real)
    return tuple(found)


def real_path(name: str, roots: Sequence[Path], field: str) -> Path:
    """Real path of a file, searched in each root. Raises Refusal: 403 outside the roots, 422 no such file."""
    if not roots:
        raise Refusal(403, f"{field}: this service takes no paths; upload the file")
    if "\0" in name or ".." in Path(name).parts:
        raise Refusal(403, f"{field}: {OUTSIDE}")
    outside = False
    for root in roots:
        try:
            real = Path(os.path.realpath(root / name))
        except (OSError, ValueError):
            continue
        if not any(real.is_relative_to(allowed) for allowed in roots):
            outside = True
        elif _is_file(real):
            return real
    if outside:
        raise Refusal(403, f"{field}: {OUTSIDE}")
    raise Refusal(422, f"{field}: no such file under the allowed folders; check the path", "clip")


def open_checked(path: Path, roots: Sequence[Path]) -> int:
    """Opens a file that `real_path` found and checks it again, as links may have changed in between.

    Raises Refusal as `real_path` does.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        raise Refusal(
            422, "no such file under the allowed folders any more; check the path", "clip"
        ) from None
    there = (
        Path(os.path.realpath(f"/proc/self/fd/{descriptor}"))
        if Path("/proc/self/fd").is_dir()
        else Path(os.path.realpath(path))
    )
    if not stat.S_ISREG(os.fstat(descriptor).st_mode) or not any(
        there.is_relative_to(root) for root in roots
    ):
        os.close(descriptor)
        raise Refusal(403, OUTSIDE)
    return descriptor


def _is_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False
