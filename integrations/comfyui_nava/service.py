"""A client of `nava serve generate` with Python's own library alone, so that ComfyUI needs nothing more."""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

Job = dict[str, Any]
ENDED = ("completed", "failed", "cancelled")
TRIES, BACKOFF_S, MOST_WAIT_S = 5, 1.0, 60.0
TOKENS, SERVERS = "NAVA_TOKEN", "NAVA_SERVERS"  # environment variables
LOCAL = ("localhost", "127.0.0.1", "::1")
_LATER = (408, 429, 500, 502, 503, 504)


class ServiceError(RuntimeError):
    """What the service refused, or that it was not reached, in one line without the token."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Service:
    """Where the service is, as whom it is asked, and which of its adapters clips are made with."""

    url: str
    token: str = field(repr=False)
    model: str = ""
    known: tuple[str, ...] = ()  # adapters that it serves
    adapters: tuple[str, ...] = ()  # NAME=SCALE
    timeout_s: float = 60.0

    def described(self) -> Mapping[str, Any]:
        """The served model: id, adapters, defaults, limits. Raises ServiceError."""
        found = self._json("GET", "/v1/models")["data"]
        if not found:
            raise ServiceError(f"{self.url}: serves no model")
        return found[0]

    def create(self, fields: Mapping[str, Any], files: Mapping[str, tuple[str, bytes]]) -> Job:
        """A job; files: part -> (content type, content). A lost answer makes no second job."""
        kind, body = _form(fields, files)
        headers = {"Content-Type": kind, "Idempotency-Key": str(uuid.uuid4())}
        return self._json("POST", "/v1/videos", body, headers)

    def wait(self, job: Job, seen: Callable[[Job], None]) -> Job:
        """The job when it has ended; `seen` gets each state, and what it raises cancels the job."""
        pause = 0.25
        try:
            seen(job)
            while job["status"] not in ENDED:
                time.sleep(pause)
                pause = min(3.0, 1.5 * pause)
                job = self._json("GET", f"/v1/videos/{job['id']}")
                seen(job)
        except BaseException:
            self._cancel(job["id"])
            raise
        return job

    def content(self, job: Job, variant: str) -> bytes | None:
        """video or audio of a completed job, None where its task makes none."""
        try:
            return self._answer("GET", f"/v1/videos/{job['id']}/content?variant={variant}")
        except ServiceError as error:
            if error.status == 404:
                return None
            raise

    def _cancel(self, id: str) -> None:
        with suppress(ServiceError):  # it ended in the meantime, or nobody is there
            self._answer("POST", f"/v1/videos/{id}/cancel", b"", tries=1)

    def _json(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] = {}
    ) -> Any:
        content = self._answer(method, path, body, headers)
        try:
            found = json.loads(content)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise ServiceError(f"{self.url}: answered no JSON; is it `nava serve generate`?")
        return found

    def _answer(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] = {},
        tries: int = TRIES,
    ) -> bytes:
        """The answer's content, after more tries where the service is busy or away."""
        for attempt in range(1, tries + 1):
            wait_s = BACKOFF_S * 2 ** (attempt - 1)
            try:
                return self._once(method, path, body, headers)
            except urllib.error.HTTPError as error:
                reason = f"{self.url}: {_reason(error)} (status {error.code})"
                if error.code not in _LATER or attempt == tries:
                    raise ServiceError(reason.replace(self.token, "***"), error.code) from None
                asked = error.headers.get("Retry-After", "")
                wait_s = float(asked) if asked.isdecimal() else wait_s
            except (OSError, http.client.HTTPException) as error:
                if attempt == tries:
                    told = f"{self.url}: not reached ({error}); is `nava serve generate` running?"
                    raise ServiceError(" ".join(told.split()).replace(self.token, "***")) from None
            time.sleep(min(wait_s, MOST_WAIT_S))
        raise AssertionError("the last try returns or raises")

    def _once(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]) -> bytes:
        sent = {**headers, "Authorization": f"Bearer {self.token}"}
        request = urllib.request.Request(self.url.rstrip("/") + path, body, sent, method=method)
        with _OPENER.open(request, timeout=self.timeout_s) as answer:
            content = answer.read()
            if (length := answer.headers.get("Content-Length")) and int(length) != len(content):
                raise OSError(f"{len(content)} of {length} bytes")
            return content


def connected(url: str, variable: str) -> Service:
    """The service at an address, with the token of an environment variable.

    Workflows come from strangers: they may name no other variable than NAVA_TOKEN..., and no other machine
    than this one and those that NAVA_SERVERS lists. Raises ServiceError.
    """
    if not variable.startswith(TOKENS):
        raise ServiceError(
            f"token_variable: expected {TOKENS} or a name that begins so, got {variable[:40]!r}"
        )
    try:
        parts = urllib.parse.urlsplit(url)
        plain = parts.scheme in ("http", "https") and parts.hostname and not (parts.query or parts.fragment)
    except ValueError:
        plain = False
    if not plain or "@" in url:
        raise ServiceError("url: expected http(s)://host[:port] without a login")
    allowed = [one.strip().rstrip("/") for one in os.environ.get(SERVERS, "").split(",")]
    if parts.hostname not in LOCAL and url.rstrip("/") not in allowed:
        raise ServiceError(
            f"url: {parts.hostname} is not this machine; list {parts.scheme}://{parts.netloc} in the "
            f"environment variable {SERVERS} before ComfyUI starts, if it may have your token"
        )
    token = os.environ.get(variable, "").strip()
    if not token:
        raise ServiceError(
            f"the environment variable {variable} has no token; set it before ComfyUI starts (`nava serve "
            "tokens add NAME --scopes generate` prints one)"
        )
    return Service(url, token)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """The token goes to the address that was given, and nowhere else."""

    def redirect_request(self, *_: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirects)


def _reason(error: urllib.error.HTTPError) -> str:
    """The one line of an error in OpenAI's form."""
    try:
        return " ".join(str(json.loads(error.read())["error"]["message"]).split())
    except (ValueError, KeyError, TypeError, OSError):
        return str(error.reason)


def _form(fields: Mapping[str, Any], files: Mapping[str, tuple[str, bytes]]) -> tuple[str, bytes]:
    """(content type, body) of a multipart form: all fields as JSON in the part `request`, and the files."""
    boundary = uuid.uuid4().hex
    parts = {"request": ("application/json", json.dumps(fields).encode()), **files}
    body = b"".join(
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"'.encode()
        + (f'; filename="{name}"' if name in files else "").encode()
        + f"\r\nContent-Type: {kind}\r\n\r\n".encode()
        + content
        + b"\r\n"
        for name, (kind, content) in parts.items()
    )
    return f"multipart/form-data; boundary={boundary}", body + f"--{boundary}--\r\n".encode()
