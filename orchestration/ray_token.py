"""Authentication token shared by Ray's processes."""

from __future__ import annotations

import os
from pathlib import Path


def ray_token() -> str:
    """RAY_AUTH_TOKEN, or the file at RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token; "" where there is none.

    A head started by `ray start` requires the token if one exists.
    """
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    return os.environ.get("RAY_AUTH_TOKEN") or (path.read_text().strip() if path.is_file() else "")


def send_token() -> None:
    """Make Ray send the token to a cluster; call before importing ray.

    Harmless for clusters without authentication.
    """
    if ray_token():
        os.environ.setdefault("RAY_AUTH_MODE", "token")
