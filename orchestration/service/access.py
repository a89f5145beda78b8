"""Access tokens of the service: a file with names, digests, scopes and rates, without the tokens."""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import json
import re
import secrets
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock

from orchestration.private_files import write_private

SCOPES = ("score", "generate", "metrics", "admin")  # admin has all
DEFAULT = "default"
MAX_TOKENS, MAX_FILE_BYTES = 1000, 1 << 20
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,31}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class AccessToken:
    """A token by its digest. `per_minute` and `in_flight` are requests, 0 = no limit of its own.

    Raises ValueError for what no such entry may hold.
    """

    name: str
    sha256: str
    scopes: tuple[str, ...] = ("score",)
    per_minute: int = 0
    in_flight: int = 0
    made: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise ValueError(
                f"name {str(self.name)[:40]!r}: 1 to 32 of a-z 0-9 _ . -, a letter or digit first"
            )
        if not isinstance(self.sha256, str) or not _DIGEST.fullmatch(self.sha256):
            raise ValueError(f"{self.name}.sha256: expected 64 hexadecimal digits")
        if not self.scopes or not set(self.scopes) <= set(SCOPES):
            raise ValueError(f"{self.name}.scopes: expected some of {', '.join(SCOPES)}")
        for field in ("per_minute", "in_flight"):
            value = getattr(self, field)
            if type(value) is not int or not 0 <= value <= 10**9:
                raise ValueError(f"{self.name}.{field}: expected 0 (no limit) to 10^9, got {str(value)[:40]}")

    def may(self, scope: str) -> bool:
        """`scope` "" is every token's."""
        return not scope or scope in self.scopes or "admin" in self.scopes


def digest_of(token: str | bytes) -> bytes:
    """SHA-256 of a token, which is all that is kept of it: tokens are random, so no salt is needed."""
    return hashlib.sha256(token.encode() if isinstance(token, str) else token).digest()


def read_tokens(path: Path) -> tuple[AccessToken, ...]:
    """Tokens of the file, none where it is missing. Raises ValueError in one line for anything else than
    what `write_tokens` writes, and for a file that others may write."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return ()
    if stat.S_IMODE(status.st_mode) & 0o022:
        raise ValueError(f"{path}: others may write it (mode {status.st_mode & 0o777:o}); chmod 600 it")
    if status.st_size > MAX_FILE_BYTES:
        raise ValueError(f"{path}: {status.st_size} bytes, at most {MAX_FILE_BYTES}; revoke some tokens")
    try:
        rows = json.loads(path.read_bytes())["tokens"]
        tokens = tuple(AccessToken(**{**row, "scopes": tuple(row["scopes"])}) for row in rows)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"{path}: no file of `nava serve tokens add` ({str(error)[:200]})") from None
    if len({token.name for token in tokens}) < len(tokens) or len(tokens) > MAX_TOKENS:
        raise ValueError(f"{path}: a name twice, or more than {MAX_TOKENS} tokens; revoke some")
    return tokens


def write_tokens(path: Path, tokens: Sequence[AccessToken]) -> None:
    """Replaces the file at once, readable by its owner only."""
    rows = [dataclasses.asdict(token) for token in tokens]
    write_private(path, json.dumps({"tokens": rows}, indent=1).encode() + b"\n")


def add_token(
    path: Path,
    name: str,
    scopes: Sequence[str] = ("score",),
    per_minute: int = 0,
    in_flight: int = 0,
    *,
    replace: bool = False,
) -> str:
    """A new random token of that name, which is nowhere but in what is returned; `replace`: instead of the
    old one, with its scopes and rates. Raises ValueError for a name that is there (or is not, to replace)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        there = {token.name: token for token in read_tokens(path)}
        if name == DEFAULT:
            raise ValueError(f"{name}: the name of the service's own token; take another one")
        if replace and name not in there:
            raise ValueError(f"{path}: no token {name!r} to replace; it has {', '.join(there) or 'none'}")
        if not replace and name in there:
            raise ValueError(f"{path}: token {name!r} is there; --replace it, or `nava serve tokens revoke`")
        token, made = secrets.token_urlsafe(32), datetime.now(UTC).isoformat(timespec="seconds")
        sha256 = digest_of(token).hex()
        there[name] = (
            dataclasses.replace(there[name], sha256=sha256, made=made)
            if replace
            else AccessToken(
                name=name,
                sha256=sha256,
                scopes=tuple(dict.fromkeys(scopes)),
                per_minute=per_minute,
                in_flight=in_flight,
                made=made,
            )
        )
        write_tokens(path, list(there.values()))
    return token


def revoke_token(path: Path, name: str) -> None:
    """Takes the token out; running services refuse it within a second. Raises ValueError where it is not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        tokens = read_tokens(path)
        if name not in {token.name for token in tokens}:
            found = ", ".join(token.name for token in tokens) or "none"
            raise ValueError(f"{path}: no token {name!r}; it has {found}")
        write_tokens(path, [token for token in tokens if token.name != name])


def matching(tokens: Sequence[AccessToken], presented: bytes) -> AccessToken | None:
    """The token with this digest; every one is compared, in constant time."""
    found = None
    for token in tokens:
        if hmac.compare_digest(bytes.fromhex(token.sha256), presented):
            found = token
    return found
