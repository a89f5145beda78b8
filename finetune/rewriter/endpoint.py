"""Chat answers of any server with OpenAI's interface (vLLM's, for one), held to a time and a size whatever
the server does."""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

MAX_ANSWER_BYTES = 1 << 20
MAX_CONNECT_S = 10.0
BUSY = (408, 409, 425, 429, 500, 502, 503, 504)
OF_THE_ROW = (400, 413, 422)  # such as a prompt too long for the model: others may pass


class NoAnswer(Exception):
    """One try failed: `again` after `wait_s` where that may help. `reached`: the server did answer, but
    nothing of use."""

    def __init__(
        self, reason: str, *, again: bool = True, wait_s: float = 0.0, reached: bool = False
    ) -> None:
        super().__init__(reason)
        self.reason, self.again, self.wait_s, self.reached = reason, again, wait_s, reached


@dataclass(frozen=True, kw_only=True)
class ChatEndpoint:
    """POST {base_url}/v1/chat/completions, directly (no proxy), redirects refused; safe to call from many
    threads.

    `token_variable` names the environment variable with the bearer token ("" = none is sent); the token
    itself is in no attribute, log or message. `timeout_s` is for a whole try, so that a server that sends a
    byte now and then ends too. Raises ValueError in one line for a wrong address, setting or variable.
    """

    base_url: str
    model: str
    token_variable: str = ""
    timeout_s: float = 120.0
    max_tokens: int = 4096  # a model that thinks first needs room for it
    temperature: float = 0.3
    top_p: float = 0.75
    _open: set[socket.socket] = field(default_factory=set, repr=False, compare=False)
    _closed: threading.Event = field(default_factory=threading.Event, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"https?://[^/@?#\s]+(/[^?#@\s]*)?", self.base_url):
            shown = re.sub(r"//[^/]*@", "//", self.base_url)
            raise ValueError(
                f"endpoint: {shown!r} is not http(s)://host[:port][/path]; give the server's address"
            )
        try:
            urlsplit(self.base_url).port  # noqa: B018 (raises for no number)
        except ValueError as error:
            raise ValueError(f"endpoint: {self.base_url!r}: {error}") from None
        if not self.model:
            raise ValueError("model: none given; name the model that the endpoint serves")
        if not (self.timeout_s > 0 and self.max_tokens > 0 and self.temperature >= 0 and 0 < self.top_p <= 1):
            raise ValueError(
                f"{self}: timeout_s and max_tokens must be above 0, temperature at least 0, top_p in (0, 1]"
            )
        self._token()

    @property
    def url(self) -> str:
        return f"{self.base_url.rstrip('/').removesuffix('/v1')}/v1/chat/completions"

    @property
    def settings(self) -> dict[str, Any]:
        """What decides about an answer besides the messages."""
        return {
            "model": self.model,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
        }

    def ask(self, messages: Sequence[Mapping[str, str]], seed: int) -> str:
        """The text of one answer. Raises NoAnswer; ConnectionError in one line where no further request can
        succeed."""
        token = self._token()
        body = json.dumps(
            {**self.settings, "messages": list(messages), "seed": seed, "stream": False}
        ).encode()
        try:
            status, headers, answer = self._post(body, token)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise NoAnswer(_excerpt(str(error) or type(error).__name__, token)) from None
        said = f"status {status} {_excerpt(answer.decode(errors='replace'), token)}".strip()
        if status in BUSY:
            raise NoAnswer(said, wait_s=_retry_after(headers.get("Retry-After") or ""))
        if status in OF_THE_ROW:
            raise NoAnswer(said, again=False, reached=True)
        if status != 200:
            moved, wrong = (
                "redirects are not followed, give the final address",
                f"check model {self.model!r}, token and server",
            )
            advice = moved if 300 <= status < 400 else wrong
            raise ConnectionError(f"{self.url}: {said}; {advice}")
        return _text_of(answer)

    def close(self) -> None:
        """Ends what is being asked, at once; asking again is refused."""
        self._closed.set()
        for sock in list(self._open):
            _cut(sock)

    def _token(self) -> str:
        if not self.token_variable:
            return ""
        token = os.environ.get(self.token_variable, "").strip()
        if not token:
            raise ValueError(
                f"${self.token_variable}: not set; put the server's token there or name no variable"
            )
        if not re.fullmatch(r"[!-~]+", token):
            raise ValueError(
                f"${self.token_variable}: holds what no header may (spaces, line ends or non-ASCII); put "
                "the bare token there"
            )
        return token

    def _post(self, body: bytes, token: str) -> tuple[int, http.client.HTTPMessage, bytes]:
        """(status, headers, answer up to MAX_ANSWER_BYTES). Raises OSError (TimeoutError at timeout_s),
        HTTPException, NoAnswer."""
        address = urlsplit(self.url)
        kind = http.client.HTTPSConnection if address.scheme == "https" else http.client.HTTPConnection
        connection = kind(address.hostname or "", address.port, timeout=min(self.timeout_s, MAX_CONNECT_S))
        started = time.monotonic()
        connection.connect()
        sock = connection.sock
        sock.settimeout(self.timeout_s)
        self._open.add(sock)
        alarm = threading.Timer(max(0.0, started + self.timeout_s - time.monotonic()), _cut, (sock,))
        alarm.daemon = True
        alarm.start()
        try:
            if self._closed.is_set():
                raise ConnectionAbortedError("stopped")
            bearer = {"Authorization": f"Bearer {token}"} if token else {}
            headers = {
                "Content-Type": "application/json",
                "Accept-Encoding": "identity",
                "Connection": "close",
                **bearer,
            }
            connection.request("POST", address.path, body, headers)
            response = connection.getresponse()
            answer = _read(response)
            if (
                time.monotonic() - started >= self.timeout_s
            ):  # cut by the alarm, which looks like the end of a body of no given length
                raise TimeoutError
            return response.status, response.headers, answer
        except (OSError, http.client.HTTPException):
            if time.monotonic() - started >= self.timeout_s:
                raise TimeoutError(f"no whole answer in {self.timeout_s:g} s") from None
            raise
        finally:
            alarm.cancel()
            self._open.discard(sock)
            connection.close()


def _cut(sock: socket.socket) -> None:
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def _read(response: http.client.HTTPResponse) -> bytes:
    """The whole body. Raises NoAnswer above MAX_ANSWER_BYTES, IncompleteRead for one cut short."""
    parts, size, announced = [], 0, response.length
    while part := response.read1(1 << 16):
        parts.append(part)
        size += len(part)
        if size > MAX_ANSWER_BYTES:
            raise NoAnswer(f"answer above {MAX_ANSWER_BYTES} bytes", reached=True)
    if announced is not None and size < announced:
        raise http.client.IncompleteRead(b"", announced - size)
    return b"".join(parts)


def _text_of(answer: bytes) -> str:
    """The first choice's text. Raises NoAnswer for anything else than a finished one."""
    try:
        choice = json.loads(answer)["choices"][0]
        text, finish = choice["message"]["content"], choice.get("finish_reason")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise NoAnswer("answer without choices[0].message.content", reached=True) from None
    if not isinstance(text, str) or not text.strip():
        raise NoAnswer("empty answer", reached=True)
    if finish == "length":
        raise NoAnswer("answer cut off at max_tokens", reached=True)
    return text


def _excerpt(said: str, token: str) -> str:
    """The start of what a server said on one line of printable characters, without the token should it be
    echoed."""
    text = "".join(sign if sign.isprintable() else " " for sign in said[:5000])
    text = text.replace(token, "***") if token else text
    return " ".join(text.split())[:200]


def _retry_after(value: str) -> float:
    return float(value) if re.fullmatch(r"\d{1,6}(\.\d+)?", value) else 0.0
