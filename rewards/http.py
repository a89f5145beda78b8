"""The HTTP client of everything that asks a server: bounded in time and in bytes, whatever the server does.

Redirects are refused, so that a token reaches no other host. Connections are not kept. What a server says is
shown by `excerpt` only: one printable line, without the token.
"""

from __future__ import annotations

import base64
import json
import os
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any, TypeVar
from urllib.parse import quote

import httpx

T = TypeVar("T")
MAX_ANSWER_BYTES = 1 << 20
MAX_HEAD_BYTES = 1 << 18  # of all heads of an answer, interim ones (1xx) included, and of its framing
MAX_TEXT = 10_000
MAX_CONNECT_S = 10.0
MAX_WAIT_S = 60.0  # between two attempts, whatever Retry-After a server sends


class NoAnswer(Exception):
    """One request failed; `again` after `wait_s` if a retry may help.

    `reached`: the server responded, but without a usable answer.
    """

    def __init__(
        self, reason: str, *, again: bool = True, wait_s: float = 0.0, reached: bool = False
    ) -> None:
        super().__init__(reason)
        self.reason, self.again, self.wait_s, self.reached = reason, again, wait_s, reached


class Unending(NoAnswer):
    """The answer was too large, or came too slowly: another try would end the same way."""


@dataclass(frozen=True)
class Answer:
    """A response of any status; `content` may be truncated unless the status is 200."""

    status: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def wait_s(self) -> float:
        """A server's Retry-After in seconds, 0 for none."""
        value = self.headers.get("retry-after", "")
        return float(value) if re.fullmatch(r"\d{1,6}(\.\d+)?", value) else 0.0


class Sockets:
    """Connections under way, which another thread may cut: reading and sending then ends at once."""

    def __init__(self) -> None:
        self.open, self.closed = set[socket.socket](), False

    def add(self, sock: socket.socket) -> None:
        # added before the check: a concurrent `cut` either sees the socket or has set `closed`
        self.open.add(sock)
        if self.closed:
            self.cut()

    def cut(self) -> None:
        self.closed = True
        for sock in list(self.open):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


def check_address(url: str, what: str) -> None:
    """Raises ValueError in one line, without a login that the address may hold."""
    fits = re.fullmatch(r"https?://[^/@?#\s]+(/[^?#@\s]*)?", url)
    try:
        httpx.URL(url)
    except httpx.InvalidURL:
        fits = None
    if not fits:
        shown = re.sub(r"//[^/]*@", "//", url)
        raise ValueError(
            f"{what}: {shown!r} is not http(s)://host[:port][/path]; give the server's address"
        ) from None


def token_of(variable: str) -> str:
    """The bearer token in an environment variable, "" if no variable is named.

    Raises ValueError in one line, without the token.
    """
    token = os.environ.get(variable, "").strip() if variable else ""
    if variable and not token:
        raise ValueError(f"${variable}: not set; put the server's token there or name no variable")
    if not re.fullmatch(r"[!-~]*", token):
        raise ValueError(
            f"${variable}: holds what no header may (spaces, line ends or non-ASCII); put the bare token "
            "there"
        )
    return token


def excerpt(response: str | bytes, token: str) -> str:
    """Start of a server's response as one printable line, with an echoed token removed."""
    text = response.decode(errors="replace") if isinstance(response, bytes) else response
    return " ".join(_printable(_without(text, token)).split())[:200]


def clean_text(text: object) -> str:
    """Text of a server that goes into results: printable signs only, at most MAX_TEXT of them."""
    return _printable(str(text)[:MAX_TEXT])


def _printable(text: str) -> str:
    return "".join(sign if sign.isprintable() else " " for sign in text)


def _without(text: str, token: str) -> str:
    """Without the token as it is, as URLs, JSON and base64 write it, in any case, and with anything invisible
    between its signs."""
    if not token:
        return text
    forms = {token, quote(token, safe=""), json.dumps(token)[1:-1], base64.b64encode(token.encode()).decode()}
    for form in sorted(forms, key=len, reverse=True):
        text = re.sub("[^!-~]*".join(map(re.escape, form.rstrip("="))), "***", text, flags=re.IGNORECASE)
    return text


def form(fields: Mapping[str, str | bytes], files: Mapping[str, Any]) -> tuple[str, bytes]:
    """(content type, body) of a multipart form; a file is bytes or (file name, bytes, content type)."""
    request = httpx.Request("POST", "http://form", data=dict(fields), files=dict(files))
    return request.headers["content-type"], request.read()


def exchange(
    url: str,
    body: bytes | None = None,
    content_type: str = "",
    token: str = "",
    *,
    timeout_s: float,
    sockets: Sockets | None = None,
    proxies: bool = True,
    method: str = "",
    more_headers: Mapping[str, str] = MappingProxyType({}),
) -> Answer:
    """POST `body`, or GET if it is None, or `method`.

    `timeout_s` limits the whole exchange, so that a server that trickles bytes ends too; MAX_ANSWER_BYTES the
    body, and what is read in all is at most that and MAX_HEAD_BYTES; `sockets` allows another thread to abort
    it. Raises NoAnswer in one line where there is no whole answer within these.
    """
    headers = {**_headers(content_type, token), **more_headers}
    own, started, count = Sockets(), time.monotonic(), _Counter()
    alarm = threading.Timer(timeout_s, own.cut)
    alarm.daemon = True  # must not keep the process alive
    alarm.start()

    def opened(event: str, facts: Mapping[str, Any]) -> None:
        if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            stream = facts["return_value"]
            stream.read = count.counted(stream.read)
            for watched in (own, sockets) if sockets else (own,):
                watched.add(stream.get_extra_info("socket"))

    answer, failure = None, ""
    verb = method or ("GET" if body is None else "POST")
    timeout = httpx.Timeout(timeout_s, connect=min(timeout_s, MAX_CONNECT_S))
    request_options: dict[str, Any] = {"content": body, "headers": headers, "extensions": {"trace": opened}}
    try:
        with (
            httpx.Client(timeout=timeout, verify=_tls(), trust_env=proxies) as client,
            client.stream(verb, url, **request_options) as response,
        ):
            answer = Answer(response.status_code, response.headers, _read(response))
    # ImportError: the environment names a SOCKS proxy, for which httpx needs a further package
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError, ImportError) as error:
        failure = excerpt(str(error), token) or type(error).__name__
    finally:
        alarm.cancel()
        if sockets:
            sockets.open -= own.open
    # an aborted connection can look like the end of a body
    if time.monotonic() - started >= timeout_s:
        if count.total:
            raise Unending(f"no whole answer in {timeout_s:g} s")
        raise NoAnswer("timed out")
    if answer is None:
        raise NoAnswer(failure)
    return answer


def _headers(content_type: str, token: str) -> dict[str, str]:
    return {
        "Accept-Encoding": "identity",
        "Connection": "close",
        **({"Content-Type": content_type} if content_type else {}),
        **({"Authorization": f"Bearer {token}"} if token else {}),
    }


class _Counter:
    """Bytes that were read from a connection, in pieces of which none is large."""

    def __init__(self) -> None:
        self.total = 0

    def counted(self, read: Callable[..., bytes]) -> Callable[..., bytes]:
        def bounded(max_bytes: int, timeout: float | None = None) -> bytes:
            content = read(min(max_bytes, 1 << 16), timeout)
            self.total += len(content)
            if self.total > MAX_ANSWER_BYTES + MAX_HEAD_BYTES:
                raise Unending(f"answer above {MAX_ANSWER_BYTES} bytes", reached=True)
            return content

        return bounded


def tries(once: Callable[[], T], num_tries: int, backoff_s: float, where: str, peer: str) -> T:
    """Call `once` up to `num_tries` times with exponential backoff.

    The pause is `backoff_s` after the first NoAnswer and doubles after each further one; a longer Retry-After
    wins. Raises ConnectionError in one line.
    """
    failure, done = "", 0
    while done < num_tries:
        try:
            return once()
        except NoAnswer as error:
            failure, done = error.reason, done + 1
            if isinstance(error, Unending):
                break
            if done < num_tries:
                time.sleep(min(MAX_WAIT_S, max(error.wait_s, backoff_s * 2 ** (done - 1))))
    raise ConnectionError(f"{where}: {failure}, {done} tries; check that the {peer} is up")


@cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()


def _read(response: httpx.Response) -> bytes:
    parts, size = [], 0
    try:
        for part in response.iter_raw():
            parts.append(part)
            size += len(part)
            if size > MAX_ANSWER_BYTES:
                raise Unending(f"answer above {MAX_ANSWER_BYTES} bytes", reached=True)
    except httpx.HTTPError:
        if response.status_code == 200:
            raise
    return b"".join(parts)
