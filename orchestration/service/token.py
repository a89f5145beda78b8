"""The bearer token: from the environment or a file, or generated into a file only its owner can read."""

from __future__ import annotations

import os
import re
import secrets
import shlex
from pathlib import Path

from orchestration.private_files import tighten, write_private

VARIABLE = "NAVA_API_TOKEN"
MIN_LENGTH, MAX_LENGTH = 16, 4096
_USABLE = re.compile(r"[\x21-\x7e]+")


def token_from(path: Path | None, default: Path) -> tuple[str, str]:
    """(token, the shell's word for it): of the file at `path`, else of $NAVA_API_TOKEN (taken out of the
    environment, so that no process that is started later has it), else of the file at `default`, which is
    made where it is missing or empty. A file that others can read is closed to them.

    Raises OSError or ValueError in one line, without the token.
    """
    from_environment = os.environ.pop(VARIABLE, "")
    if path is not None:
        if not path.is_file():
            raise FileNotFoundError(
                f"--token-file {path}: no such file; put the token there, or leave it out to have one made"
            )
        return _of_file(path, "--token-file ")
    if from_environment:
        return _checked(from_environment, f"${VARIABLE}"), f"${VARIABLE}"
    if not default.is_file() or not default.stat().st_size:
        try:
            write_private(default, f"{secrets.token_urlsafe(32)}\n".encode())
        except OSError as error:
            raise OSError(
                f"{default}: the token cannot be written ({error.strerror}); free the disk or change --out"
            ) from None
    return _of_file(default)


def _of_file(path: Path, option: str = "") -> tuple[str, str]:
    tighten(path)
    with path.open(encoding="utf-8", errors="replace") as file:
        text = file.read(MAX_LENGTH + 1)
    return _checked(text, f"{option}{path}"), f"$(cat {shlex.quote(str(path))})"


def _checked(text: str, where: str) -> str:
    token = text.strip()
    if not MIN_LENGTH <= len(token) <= MAX_LENGTH or not _USABLE.fullmatch(token):
        raise ValueError(
            f"{where}: a token is at least {MIN_LENGTH} visible ASCII characters; `openssl rand -hex 32` "
            "makes one"
        )
    return token
