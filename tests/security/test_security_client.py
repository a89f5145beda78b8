"""Servers that answer without end, drip, or send back secrets and terminal codes: every client ends in time,
reads little and shows one clean line."""

import base64
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.rewriter.endpoint import ChatEndpoint
from rewards.http import NoAnswer, excerpt
from rewards.remote import RemoteReward
from rewards.speech.endpoint import EndpointTranscriber

pytestmark = pytest.mark.security
TOKEN = "sk-Very/Secret+Token_0123456789"
HEAD = b"HTTP/1.1 200 OK\r\n"
TIMEOUT_S = 1.0


class Hostile:
    """Sends `first`, then `again` forever with a pause, to whoever connects; counts bytes."""

    def __init__(self, first: bytes, again: bytes, pause_s: float = 0.0) -> None:
        self.first, self.again, self.pause_s, self.sent, self.asked = first, again, pause_s, 0, b""
        self.ended = threading.Event()

    def answer(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.settimeout(10)
            self.asked += connection.recv(65_536)
            connection.sendall(self.first)
            while self.again and not self.ended.wait(self.pause_s):
                connection.sendall(self.again)
                self.sent += len(self.again)

    @contextmanager
    def listening(self) -> Iterator[str]:
        with socket.create_server(("127.0.0.1", 0)) as listener:

            def accept() -> None:
                with suppress(OSError):
                    while True:
                        threading.Thread(target=self.answer, args=(listener.accept()[0],)).start()

            threading.Thread(target=accept, daemon=True).start()
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
            self.ended.set()
            listener.shutdown(socket.SHUT_RDWR)


def by_remote(url: str) -> None:
    RemoteReward("a", url, timeout_s=TIMEOUT_S, backoff_s=0.01)


def by_transcriber(url: str) -> None:
    EndpointTranscriber(
        base_url=url, model="m", token_variable="NAVA_API_TOKEN", timeout_s=TIMEOUT_S, backoff_s=0.01
    ).transcribe([np.zeros(800, np.float32)])


def by_rewriter(url: str) -> None:
    ChatEndpoint(base_url=url, model="m", token_variable="NAVA_API_TOKEN", timeout_s=TIMEOUT_S).ask([], 0)


CLIENTS = (by_remote, by_transcriber, by_rewriter)
BLOCK = b"x" * 65_536
ENDLESS = {
    "body": Hostile(HEAD + b"\r\n", BLOCK),
    "body of a length": Hostile(HEAD + b"Content-Length: 99999999999\r\n\r\n", BLOCK),
    "chunks": Hostile(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"10000\r\n" + BLOCK + b"\r\n"),
    "small chunks": Hostile(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n" * 9000),
    "header": Hostile(HEAD + b"x: ", BLOCK),
    "headers": Hostile(HEAD, b"x: y\r\n" * 9000),
    "interim answers": Hostile(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 2000),
    "interim answers with headers": Hostile(b"", b"HTTP/1.1 103 Early\r\nx: " + b"y" * 9000 + b"\r\n\r\n"),
    "error": Hostile(b"HTTP/1.1 500 No\r\n\r\n", BLOCK),
    "dripping body": Hostile(HEAD + b"\r\n", b" ", 0.05),
    "dripping head": Hostile(b"HTTP/1.1 2", b"0", 0.05),
    "dripping headers": Hostile(HEAD, b"x: y\r\n", 0.05),
    "dripping interim answers": Hostile(b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.05),
}


@pytest.fixture(autouse=True)
def token(monkeypatch):
    monkeypatch.setenv("NAVA_API_TOKEN", TOKEN)


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("kind", ENDLESS)
def test_an_answer_without_end_ends(client, kind):
    pattern = ENDLESS[kind]
    hostile = Hostile(pattern.first, pattern.again, pattern.pause_s)
    started, before = time.monotonic(), psutil.Process().memory_info().rss
    with hostile.listening() as url, pytest.raises((ConnectionError, NoAnswer)) as failed:
        client(url)
    assert time.monotonic() - started < TIMEOUT_S + 1.5
    assert hostile.sent < 48 << 20 and psutil.Process().memory_info().rss - before < 48 << 20
    assert "\n" not in str(failed.value)


ECHOES = {
    "as it is": TOKEN,
    "in a sentence": f"bad token Bearer {TOKEN}!",
    "as a URL": "token=sk-Very%2FSecret%2BToken_0123456789",
    "as base64": base64.b64encode(TOKEN.encode()).decode(),
    "upper case": TOKEN.upper(),
    "with codes between": "\x1b[1m".join([TOKEN[:0], TOKEN]),
    "spaced": "\t".join(TOKEN),
    "split by escapes": "\x00".join(TOKEN),
}
CODES = "\x1b]0;owned\x07\x1b[2J\r\x9b31m\u202e\u2028"


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("status", [200, 400, 401, 302, 500])
@pytest.mark.parametrize("kind", ECHOES)
def test_a_token_that_comes_back_is_not_shown(client, status, kind):
    said = f'{{"reason": "{CODES}{ECHOES[kind]}", "fault": "request"}}'.encode()
    head = f"HTTP/1.1 {status} X\r\nContent-Length: {len(said)}\r\nLocation: http://127.0.0.1:1/\r\n\r\n"
    hostile = Hostile(head.encode() + said, b"")
    with hostile.listening() as url, pytest.raises((ConnectionError, NoAnswer)) as failed:
        client(url)
    shown = str(failed.value)
    assert TOKEN.encode() in hostile.asked
    assert not any(
        form in "".join(shown.split()).lower() for form in (TOKEN.lower(), "very/secret", "verysecret")
    )
    assert base64.b64encode(TOKEN.encode()).decode()[:20] not in shown and "very%2f" not in shown.lower()
    assert shown.isprintable() and len(shown) < 500


def test_what_a_reward_says_is_clean():
    served = b'[{"name": "a", "lower_is_better": false}]'
    said = (
        '{"scores": {"a": {"value": 1.5, "reason": "", "error": "", "seconds": 0, "text": "hi\x1b[2J there", '
        '"parts": {"p\x1b[31m": 1}}}}'
    ).replace("\x1b", "\\u001b")
    failed = said.replace('"error": ""', f'"error": "\\u001b[31m{TOKEN} of\\nno use"')
    bad = said.replace("1.5", "1" + "0" * 400)
    from rewards.types import Clip

    clip = Clip(np.zeros(1600, np.float32), 16_000, name="x")
    for answer, check in (
        (said, lambda reward: reward.score([clip])),
        (failed, lambda reward: reward.score([clip])),
        (bad, lambda reward: reward.score([clip])),
    ):
        content = answer.encode()
        hostile = Hostile(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(served) + served, b"")
        with hostile.listening() as url:
            reward = RemoteReward("a", url, timeout_s=3)
            hostile.first = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(content) + content
            if answer == said:
                (score,) = check(reward)
                assert (
                    score.value == 1.5 and score.text.isprintable() and all(map(str.isprintable, score.parts))
                )
            else:
                with pytest.raises(ConnectionError) as error:
                    check(reward)
                assert TOKEN not in str(error.value) and str(error.value).isprintable()


@settings(max_examples=200, deadline=None)
@given(
    st.text(max_size=300), st.integers(0, 300), st.sampled_from([TOKEN, TOKEN.swapcase(), "\n".join(TOKEN)])
)
def test_no_text_around_a_token_brings_it_out(text, at, shown):
    line = excerpt(text[:at] + shown + text[at:], TOKEN)
    assert TOKEN.lower() not in "".join(line.split()).lower()
    assert line.isprintable() and len(line) <= 200
