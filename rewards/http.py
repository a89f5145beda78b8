"""HTTP client code shared by all clients: requests with time and size limits, retries, bearer tokens.

Redirects are refused, so that a token reaches no other host. Connections are not kept.
"""

from __future__ import annotations

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
from typing import Any, TypeVar

import httpx

T = TypeVar("T")
MAX_ANSWER_BYTES = 1 << 20
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
    text = "".join(sign if sign.isprintable() else " " for sign in text[:5000])
    return " ".join((text.replace(token, "***") if token else text).split())[:200]


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
    whole_s: float = 0.0,
    sockets: Sockets | None = None,
    proxies: bool = True,
) -> Answer:
    """POST `body`, or GET if it is None.

    `timeout_s` limits each step of the connection, `whole_s` the whole exchange (0 = no limit), so that a
    server that trickles bytes cannot block forever; `sockets` allows another thread to abort it. Raises
    NoAnswer in one line where there is no whole answer, or one above MAX_ANSWER_BYTES.
    """
    headers = {
        "Accept-Encoding": "identity",
        "Connection": "close",
        **({"Content-Type": content_type} if content_type else {}),
        **({"Authorization": f"Bearer {token}"} if token else {}),
    }
    own, started = Sockets(), time.monotonic()
    alarm = threading.Timer(whole_s, own.cut)
    alarm.daemon = True  # must not keep the process alive
    if whole_s:
        alarm.start()

    def opened(event: str, facts: Mapping[str, Any]) -> None:
        if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            for watched in (own, sockets) if sockets else (own,):
                watched.add(facts["return_value"].get_extra_info("socket"))

    answer, failure = None, ""
    timeout = httpx.Timeout(timeout_s, connect=min(timeout_s, MAX_CONNECT_S))
    request_options: dict[str, Any] = {"content": body, "headers": headers, "extensions": {"trace": opened}}
    try:
        with (
            httpx.Client(timeout=timeout, verify=_tls(), trust_env=proxies) as client,
            client.stream("GET" if body is None else "POST", url, **request_options) as response,
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
    if whole_s and time.monotonic() - started >= whole_s:
        raise NoAnswer(f"no whole answer in {whole_s:g} s")
    if answer is None:
        raise NoAnswer(failure)
    return answer


def tries(once: Callable[[], T], num_tries: int, backoff_s: float, where: str, peer: str) -> T:
    """Call `once` up to `num_tries` times with exponential backoff.

    The pause is `backoff_s` after the first NoAnswer and doubles after each further one; a longer Retry-After
    wins. Raises ConnectionError in one line.
    """
    failure = ""
    for attempt in range(num_tries):
        try:
            return once()
        except NoAnswer as error:
            failure = error.reason
            if attempt + 1 < num_tries:
                time.sleep(min(MAX_WAIT_S, max(error.wait_s, backoff_s * 2**attempt)))
    raise ConnectionError(f"{where}: {failure}, {num_tries} tries; check that the {peer} is up")


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
                raise NoAnswer(f"answer above {MAX_ANSWER_BYTES} bytes", reached=True)
    except httpx.HTTPError:
        if response.status_code == 200:
            raise
    return b"".join(parts)
