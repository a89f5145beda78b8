"""What attacks are measured by: a file that only code of theirs writes, and a tree that they leave alone."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MODULE = "evil_canary"
SOURCE = """from pathlib import Path

MARK = Path({mark!r})
MARK.write_text("imported")


class Reward:
    name = "evil"

    def __init__(self, **options):
        MARK.write_text("built")

    def score(self, clips):
        return []


class NoReward:
    def __init__(self, **options):
        MARK.write_text("built")


def recipe():
    MARK.write_text("called")
"""


class Canary:
    """`mark` exists once code ran; the module is importable from `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.mark = folder, folder / "code_ran"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{MODULE}.py").write_text(SOURCE.format(mark=str(self.mark)))

    @property
    def silent(self) -> bool:
        return not self.mark.exists()


def digest(folder: Path) -> str:
    """Of names, kinds, links and contents of everything below a folder."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        found.update(str(path.relative_to(folder)).encode("utf-8", "surrogateescape"))
        if path.is_symlink():
            found.update(b"link" + os.fsencode(path.readlink()))
        elif path.is_file():
            found.update(b"file" + path.read_bytes())
    return found.hexdigest()


@contextmanager
def unchanged(folder: Path) -> Iterator[None]:
    """Fails where anything below the folder is another afterwards."""
    before = digest(folder)
    yield
    assert digest(folder) == before, f"{folder}: changed"
