"""Authentication token shared by Ray's processes."""

from __future__ import annotations

import os
from pathlib import Path


def token_path() -> Path:
    """RAY_AUTH_TOKEN_PATH, or ~/.ray/auth_token."""
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")


def ray_token() -> str:
    """RAY_AUTH_TOKEN, or what is in the token's file; "" where there is none.

    A head started by `ray start` requires the token if one exists.
    """
    path = token_path()
    return os.environ.get("RAY_AUTH_TOKEN") or (path.read_text().strip() if path.is_file() else "")
