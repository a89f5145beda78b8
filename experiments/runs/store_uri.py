"""The MLflow store of a repository: its address for the client, and the same without secrets for everything
that is shown or kept."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from experiments.runs.origin import origin_of

TRACKING_URI = "MLFLOW_TRACKING_URI"
# besides the URI itself, MLflow's client takes its login from these
SECRETS = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
HIDDEN = "***"
SQLITE = "sqlite:///"
_SECRET_FIELD = re.compile(r"(?i)((?:password|passwd|pwd|token|secret|key|sig\w*)=)[^&;\s]*")
_USER_INFO = re.compile(r"(?<=://)[^/\s'\"@]*(?:@[^/\s'\"@]*)*@")


def connection_uri(root: Path) -> str:
    """Tracking URI for MLflow's client: MLFLOW_TRACKING_URI, else the SQLite file in the repository.

    A relative path is one in the repository, wherever the command runs. May hold a password: nothing shows,
    keeps or passes it on but the client.
    """
    home = origin_of(root)
    given = os.environ.get(TRACKING_URI, "").strip()
    if not given:
        return f"{SQLITE}{(home / 'mlflow.db').resolve()}"
    scheme = urlsplit(given).scheme
    if scheme.startswith("sqlite"):
        head, separator, path = given.partition(":///")
        relative = separator and path and not path.startswith(("/", ":memory:"))
        return f"{head}:///{(home / path).resolve()}" if relative else given
    if scheme in ("", "file") and "://" not in given:
        return (home / given.removeprefix("file:")).resolve().as_uri()
    return given


def store_uri(root: Path) -> str:
    """The tracking URI without user, password and token: for messages, records and comparison."""
    return public_uri(connection_uri(root))


def public_uri(uri: str) -> str:
    """A URI without its user info, and with the values of secret query fields hidden."""
    if "://" not in uri:
        return uri
    try:
        parts = urlsplit(uri)
    except ValueError:  # brackets that are no address
        return _SECRET_FIELD.sub(rf"\1{HIDDEN}", _USER_INFO.sub("", uri))
    query = _SECRET_FIELD.sub(rf"\1{HIDDEN}", parts.query)
    place = parts.netloc.rpartition("@")[2]
    if (place, query) == (parts.netloc, parts.query):
        return uri
    return urlunsplit((parts.scheme, place, parts.path, query, parts.fragment))


def scrubbed(text: str) -> str:
    """Text of a library without the user info of any URI in it, and without the tracking URI's secrets."""
    for secret in sorted(_secrets(), key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return _USER_INFO.sub("", text)


def _secrets() -> set[str]:
    """What must not be seen, as written and as a library may write it."""
    given = os.environ.get(TRACKING_URI, "")
    user_info = urlsplit(given).netloc.rpartition("@")[0] if "://" in given else ""
    _, colon, password = user_info.partition(":")
    alone = {password} if colon else {user_info}  # without a colon it is a token
    fields = {match[0].partition("=")[2] for match in _SECRET_FIELD.finditer(urlsplit(given).query)}
    found = {user_info, *alone, *fields, *(os.environ.get(name, "") for name in SECRETS)}
    return {form for text in found if len(text) > 2 for form in (text, unquote(text), quote(text, safe=""))}


def has_user_info(uri: str) -> bool:
    """True if a URI holds a user, a password or a token."""
    return public_uri(uri) != uri
