"""Write rendered files and submit them to a scheduler."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from pretrain.owned import replaced_file


def write(folder: Path, name: str, text: str) -> Path:
    """Write a file atomically; scripts become executable. One that is there and differs goes to the trash."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    with replaced_file(path) as temporary:
        temporary.write_text(text)
        if text.startswith("#!"):
            temporary.chmod(0o755)
    return path


def check_command(program: str, where: str) -> None:
    """Raises FileNotFoundError if the scheduler's command is not installed."""
    if shutil.which(program) is None:
        raise FileNotFoundError(
            f"{program}: no such command here; run this {where}, or give --dry-run to see what would be "
            "submitted"
        )


def submit(command: list[str]) -> int:
    """Run the scheduler's command, inheriting its output; returns the exit code."""
    return subprocess.run(command, check=False).returncode
