"""The chat endpoint of `nava rewrite`: what ends a run, secrets, time and size limits; against servers in
this process."""

import threading
import time

import pytest
from rewrite_world import send, served

from finetune.rewriter.cache import RewriteCache
from finetune.rewriter.endpoint import ChatEndpoint
from finetune.rewriter.form import messages
from finetune.rewriter.rewrite import Asking, rewrite_all
from rewards.http import MAX_ANSWER_BYTES, NoAnswer

SECRET = "sk-very-secret"
OK = "HTTP/1.1 200 OK\r\n"
PROMPTS = [f"A man number {number} says <S>word {number}<E>." for number in range(6)]
QUICK = Asking(backoff_s=0.001, concurrency=3)


def asked(url, prompts, **more):
    return rewrite_all(prompts, ChatEndpoint(base_url=url, model="m", **more), RewriteCache(None), QUICK)


def says(status, body=b"", headers=None):
    def respond(handler):
        handler.rfile.read(int(handler.headers["Content-Length"]))
        send(handler, status, body, headers or {})

    return respond


@pytest.mark.parametrize("status", [401, 403, 404, 301, 204])
def test_what_no_retry_helps_ends_the_run_in_one_line_without_the_token(status, monkeypatch):
    monkeypatch.setenv("LLM_TOKEN", SECRET)
    reached: list[str] = []
    with served(lambda handler: reached.append("!")) as other:
        with served(
            says(status, f"no\n\x1b[31m{SECRET}".encode() if status != 204 else b"", {"Location": other})
        ) as url:
            with pytest.raises(ConnectionError, match=f"status {status}") as caught:
                asked(url, PROMPTS, token_variable="LLM_TOKEN")
    assert SECRET not in str(caught.value) and str(caught.value).isprintable() and not reached


def test_an_echoed_token_is_in_no_row(monkeypatch):
    monkeypatch.setenv("LLM_TOKEN", SECRET)
    with served(says(500, f"bad token {SECRET}".encode())) as url:
        assert asked(url, PROMPTS[:1], token_variable="LLM_TOKEN")[0].reason == "status 500 bad token ***"


@pytest.mark.parametrize("token", ["", "a b", "a\nb", "schlüssel"])
def test_a_token_no_header_may_hold_is_not_shown(token, monkeypatch):
    monkeypatch.setenv("LLM_TOKEN", token)
    with pytest.raises(ValueError, match="LLM_TOKEN") as caught:
        ChatEndpoint(base_url="http://h", model="m", token_variable="LLM_TOKEN")
    assert not token or token not in str(caught.value)


def test_addresses_are_checked_and_logins_in_them_not_shown():
    for wrong in ("ftp://h", "h:8000", "http://me:pw@h", "http://h?x", "http://h:port", "http://h/a b"):
        with pytest.raises(ValueError) as caught:
            ChatEndpoint(base_url=wrong, model="m")
        assert "pw" not in str(caught.value)


def endless(start: bytes, part: bytes, pause_s: float, end: threading.Event):
    def respond(handler):
        handler.rfile.read(int(handler.headers["Content-Length"]))
        handler.wfile.write(start)
        until = time.monotonic() + 5
        while time.monotonic() < until and not end.wait(pause_s):
            handler.wfile.write(part)

    return respond


@pytest.mark.parametrize("start", ["", f"{OK}X: ", f"{OK}Transfer-Encoding: chunked\r\n\r\n", f"{OK}\r\n"])
def test_a_server_that_never_ends_is_left_at_the_timeout(start):
    end = threading.Event()
    with served(endless(start.encode(), b"1", 0.02, end), end) as url:
        started = time.monotonic()
        with pytest.raises(NoAnswer, match=r"no whole answer in 0\.3 s"):
            ChatEndpoint(base_url=url, model="m", timeout_s=0.3).ask(messages(PROMPTS[0]), 0)
    assert time.monotonic() - started < 3


def test_an_answer_without_end_is_read_to_a_limit():
    end, sent = threading.Event(), []

    def respond(handler):
        handler.rfile.read(int(handler.headers["Content-Length"]))
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while not end.is_set():
            sent.append(handler.wfile.write(b"x" * 65536))

    with served(respond, end) as url:
        with pytest.raises(NoAnswer, match="above"):
            ChatEndpoint(base_url=url, model="m", timeout_s=20).ask(messages(PROMPTS[0]), 0)
    assert sum(sent) < 20 * MAX_ANSWER_BYTES
