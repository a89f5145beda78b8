"""Object store errors as one-line OSErrors that name the place and contain no secret."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_DRIVERS = {
    "botocore",
    "aiobotocore",
    "aiohttp",
    "s3fs",
    "gcsfs",
    "google",
    "adlfs",
    "azure",
    "ocifs",
    "oci",
    "ossfs",
    "paramiko",
}
_SECRET_NAME = re.compile(r"SECRET|TOKEN|PASSWORD|PASSWD|ACCESS_KEY|ACCOUNT_KEY|SAS|KEY$", re.IGNORECASE)
_CONNECTION_ERRORS = ("Connect", "Timeout", "EndpointURL", "ServerDisconnected")
_CREDENTIALS_HINT = "give credentials that may in the environment or fsspec's configuration"


@contextmanager
def named_errors(path: object) -> Iterator[None]:
    """Converts errors of a store's driver or the network into a one-line OSError: place, cause, remedy.

    FileNotFoundError, PermissionError and ConnectionError keep their kinds; errors that are not a store's
    pass as they are.
    """
    try:
        yield
    except Exception as error:
        if not _of_a_store(error):
            raise
        raise _as_os_error(error, str(path)) from None


def without_secrets(text: str) -> str:
    """The text in one line, with the values of credential variables replaced."""
    named = dict(os.environ)
    for protocol, options in _fsspec_options().items():
        named |= {f"{protocol}.{name}": value for name, value in options.items() if isinstance(value, str)}
    secrets = {value for name, value in named.items() if _SECRET_NAME.search(name) and len(value) > 3}
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, "***")
    return " ".join(text.split())


def _fsspec_options() -> dict[str, dict[str, Any]]:
    try:
        from fsspec import config
    except ImportError:
        return {}
    return {name: options for name, options in config.conf.items() if isinstance(options, dict)}


def _of_a_store(error: BaseException) -> bool:
    return isinstance(error, OSError) or type(error).__module__.split(".")[0] in _DRIVERS


def _as_os_error(error: Exception, path: str) -> OSError:
    name = type(error).__name__
    message = without_secrets(str(error))
    detail = f"{name}: {message[:200]}" if message else name
    if isinstance(error, FileNotFoundError):
        if "specified bucket does not exist" in message:
            return FileNotFoundError(f"{path}: the bucket does not exist; create it or correct the name")
        return FileNotFoundError(f"{path}: not found; correct the URL or write it first")
    if (
        isinstance(error, PermissionError)
        or "Credentials" in name
        or "Forbidden" in message
        or "Unauthorized" in message
    ):
        return PermissionError(f"{path}: the store forbids it ({detail}); {_CREDENTIALS_HINT}")
    if isinstance(error, (ConnectionError, TimeoutError)) or any(word in name for word in _CONNECTION_ERRORS):
        return ConnectionError(
            f"{path}: the store does not answer ({detail}); check its endpoint (S3: "
            "FSSPEC_S3_ENDPOINT_URL), try again"
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OSError(error.errno, os.strerror(error.errno), error.filename or path)
    return OSError(f"{path}: the store failed ({detail}); try again")
