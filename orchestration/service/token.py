"""The bearer token: from the environment or a file, or generated into a file only its owner can read."""

from __future__ import annotations

import os
import re
import secrets
import shlex
from pathlib import Path

VARIABLE = "NAVA_API_TOKEN"
MIN_LENGTH = 16
_USABLE = re.compile(r"[\x21-\x7e]+")


def token_from(path: Path | None, default: Path) -> tuple[str, str]:
    """(token, the shell's word for it): of the file at `path`, else of $NAVA_API_TOKEN (taken out of the
    environment, so that no process that is started later has it), else of the file at `default`, which is
    made where it is not there.

    Raises FileNotFoundError or ValueError in one line, without the token.
    """
    from_environment = os.environ.pop(VARIABLE, "")
    if path is not None:
        if not path.is_file():
            raise FileNotFoundError(
                f"--token-file {path}: no such file; put the token there, or leave it out to have one made"
            )
        return _checked(
            path.read_text(encoding="utf-8", errors="replace"), f"--token-file {path}"
        ), f"$(cat {shlex.quote(str(path))})"
    if from_environment:
        return _checked(from_environment, f"${VARIABLE}"), f"${VARIABLE}"
    if not default.is_file():
        default.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(default, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_urlsafe(32) + "\n")
    return _checked(
        default.read_text(encoding="utf-8", errors="replace"), str(default)
    ), f"$(cat {shlex.quote(str(default))})"


def _checked(text: str, where: str) -> str:
    token = text.strip()
    if len(token) < MIN_LENGTH or not _USABLE.fullmatch(token):
        raise ValueError(
            f"{where}: a token is at least {MIN_LENGTH} visible ASCII characters; `openssl rand -hex 32` "
            "makes one"
        )
    return token
