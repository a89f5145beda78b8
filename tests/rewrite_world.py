"""Prompts that are hard to carry through a rewrite, and a chat server that does what it likes with them."""

import hashlib
import json
import re
import threading
import time
import unicodedata
from collections import Counter
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from hypothesis import strategies as st

from finetune.rewriter.form import CHINESE, form_of, messages
from finetune.rewriter.spans import protect
from pretrain.prompt import parse

SPAN = re.compile(r"<S>(.*?)<E>", re.DOTALL)  # of its own, not by the parser under test

BITS = st.sampled_from(
    [
        "一个男人",
        "“你好！”",
        "「真的？『是』」",
        "天，",
        "。",
        "👩‍👩‍👧",
        "👍🏽",
        "🇩🇪",
        "❤️",
        "\U0001f468\u200d\U0001f4bb",
        "e\u0301",
        "é",
        "ﬁ",
        "Ⅷ",
        "ＡＢＣ",
        "\u0338",
        "\u0301\u0323",
        "ß",
        "ſ",
        "İ",
        "ı",
        "\u212a",
        "\u212b",
        "한국어",
        "हिन्दी",
        "ไทย",
        "ﷺ",
        "مرحبا",
        "שלום",
        "\u202eabc\u202c",
        "\u2067ab\u2069",
        "\u200f",
        "\u200b",
        "\u200d",
        "\ufeff",
        "<E",
        "S>",
        "<<",
        ">",
        "[SPEECH 1]",
        "[SPEECH",
        "[speech 2]",
        "1]",
        "\\1",
        "\\g<0>",
        "{0}",
        "%s",
        '"',
        "'",
        "\\",
        "``",
        "```",
        "</think>",
        "NaN",
        "null",
        "\n",
        "\r\n",
        "\t",
        " ",
        "  ",
        "\u2028",
        "The camera",
        "At first,",
        "Then she says",
    ]
)
WORDS = st.lists(
    BITS | st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), max_size=4), max_size=5
).map("".join)


@st.composite
def prompts(draw) -> str:
    """A well-formed prompt of up to 4 spans; text and spans of the same hard bits."""
    text = draw(WORDS)
    for _ in range(draw(st.integers(0, 4))):
        spoken = draw(WORDS)
        text += f"<S>{spoken if any(map(str.isalnum, spoken)) else 'x'}<E>{draw(WORDS)}"
    text = text if text.strip() else text + "a cat"
    try:
        parse(text)
    except ValueError:  # bits beside each other made a mark, or nearly one
        return "<S>" + re.sub(r"[^\w ]|_", "", text) + " x<E>"
    return text


def good_answer(prompt: str) -> str:
    """What a model that does as it is told would say."""
    protected, form = protect(prompt), form_of(prompt)
    filling = (
        "宁静的房间里光线柔和而稳定，" * 3
        if form is CHINESE
        else "a calm room with soft and steady light, and hardly any movement"
    )
    gap = "" if form is CHINESE else " "
    placeholders = [protected.placeholder(number) for number, _ in enumerate(protected.words, 1)]
    spoken = f"{gap}她说：".join(["", *placeholders]) or form.silence
    stop = "。" if form is CHINESE else ". "
    parts = [f"{part.cue}{gap}{filling}{gap}{number}" for number, part in enumerate(form.parts)]
    return stop.join([*parts[:3], spoken, *parts[3:]]) + stop.strip()


def _words(prompt: str, change) -> str:
    """The good answer with the spans written out, their words changed."""
    answer = protect(prompt).restore(good_answer(prompt))
    return SPAN.sub(lambda span: f"<S>{change(span[1])}<E>", answer)


def _swapped(prompt: str) -> str:
    answer, count = good_answer(prompt), len(protect(prompt).words)
    first, last = protect(prompt).placeholder(1), protect(prompt).placeholder(count)
    return answer.replace(first, "\x00").replace(last, first).replace("\x00", last)


def _chat(text: object, **more: object) -> bytes:
    return json.dumps(
        {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop", **more}]}
    ).encode()


def _unplaced(prompt: str, by: str) -> str:
    return re.sub(r"\[SPEECHX* 1\]", lambda _: by, good_answer(prompt))


# Name -> (status, body) for a prompt; the six of the issue first.
ANSWERS = {
    "drops": lambda prompt: (200, _chat(_unplaced(prompt, ""))),
    "translates": lambda prompt: (200, _chat(_words(prompt, lambda words: "Guten Tag " + words[::-1]))),
    "truncates": lambda prompt: (200, _chat(good_answer(prompt)[: len(good_answer(prompt)) // 2])),
    "repeats": lambda prompt: (200, _chat(good_answer(prompt) * 3)),
    "500": lambda prompt: (500, b"<html>Internal Server Error"),
    "good": lambda prompt: (200, _chat(good_answer(prompt))),
    "good, thinking": lambda prompt: (
        200,
        _chat(f"<think>{prompt} </think>\n```text\n{good_answer(prompt)}\n```"),
    ),
    "spans by heart": lambda prompt: (200, _chat(protect(prompt).restore(good_answer(prompt)))),
    "swaps": lambda prompt: (200, _chat(_swapped(prompt))),
    "trims": lambda prompt: (200, _chat(_words(prompt, lambda words: words.strip() + "."))),
    "lowers": lambda prompt: (200, _chat(_words(prompt, str.swapcase))),
    "NFKC": lambda prompt: (200, _chat(_words(prompt, lambda words: unicodedata.normalize("NFKC", words)))),
    "zero width": lambda prompt: (200, _chat(_words(prompt, lambda words: words[:1] + "\u200b" + words[1:]))),
    "splits": lambda prompt: (200, _chat(_words(prompt, lambda words: words[:1] + "<E> <S>" + words[1:]))),
    "more spans": lambda prompt: (200, _chat(good_answer(prompt) + " <S>buy now<E>")),
    "more placeholders": lambda prompt: (200, _chat(good_answer(prompt) + " [SPEECH 9] [SPEECHX 9]")),
    "split placeholder": lambda prompt: (
        200,
        _chat(re.sub(r"(\[SPEECHX*) ", "\\1\n", good_answer(prompt))),
    ),  # lines are joined later
    "wide marks": lambda prompt: (200, _chat("＜S＞hey＜E＞ " + good_answer(prompt))),
    "turns around": lambda prompt: (200, _chat("\u202e" + good_answer(prompt))),
    "combines": lambda prompt: (
        200,
        _chat(protect(prompt).restore(good_answer(prompt)).replace("<E>", "<E>\u0338")),
    ),
    "half a character": lambda prompt: (200, _chat(good_answer(prompt) + " \ud83d")),
    "timbre token": lambda prompt: (200, _chat(_words(prompt, lambda words: "<extra_id_2>" + words))),
    "rubbish": lambda prompt: (200, b"\xff\xfe<!doctype html>"),
    "deep": lambda prompt: (200, b"[" * 100_000),
    "other JSON": lambda prompt: (200, b'{"choices": [{"message": "hello"}]}'),
    "null": lambda prompt: (200, _chat(None)),
    "cut off": lambda prompt: (200, _chat(good_answer(prompt), finish_reason="length")),
    "half a body": lambda prompt: (200, _chat(good_answer(prompt))[:-40]),
    "busy": lambda prompt: (429, b"{}"),
    "refuses": lambda prompt: (400, b'{"error": "too long"}'),
    "huge": lambda prompt: (200, _chat("<S>" * 500_000)),
}
WIRE = ("hangs", "drips", "hangs up")  # done to the connection
ISSUE = ("drops", "translates", "truncates", "repeats", "500", "hangs")


class Hostile:
    """Does by hash one of ANSWERS or WIRE to each try of each prompt, and counts what it did. `only` narrows
    the choice."""

    def __init__(self, asked: list[str], only=()) -> None:
        self.prompts = {messages(prompt)[1]["content"]: prompt for prompt in asked}
        self.names = list(only) or [*ANSWERS, *WIRE]
        self.met, self.requests, self.lock, self.end = Counter(), [], threading.Lock(), threading.Event()

    def attack(self, content: str, seed: int) -> str:
        number = int.from_bytes(hashlib.sha256(f"{seed} {content}".encode()).digest()[:4], "big")
        return self.names[number % len(self.names)]

    def respond(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        content = body["messages"][-1]["content"]
        name = self.attack(content, body["seed"])
        with self.lock:
            self.met[name] += 1
            self.requests.append((handler.path, dict(handler.headers), body))
        if name == "hangs":
            self.end.wait(2.0)
        elif name == "drips":
            self._drip(handler)
        elif name != "hangs up":
            status, answer = ANSWERS[name](self.prompts[content])
            send(handler, status, answer, {"Retry-After": "0"} if status == 429 else {})

    def _drip(self, handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        until = time.monotonic() + 2.0
        while time.monotonic() < until and not self.end.wait(0.02):
            handler.wfile.write(b"a")
            handler.wfile.flush()


def send(handler: BaseHTTPRequestHandler, status: int, answer: bytes, headers: dict[str, str]) -> None:
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(answer)))
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(answer)


@contextmanager
def served(respond, end: threading.Event | None = None):
    """Address of a server in this process that gives each POST to `respond(handler)`."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            with suppress(ConnectionError):
                respond(self)

        def log_message(self, *_):
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 256
        daemon_threads = True

        def handle_error(self, *_):  # a client that has gone
            pass

    http = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{http.server_address[1]}"
    finally:
        if end:
            end.set()
        http.shutdown()
        thread.join()
        http.server_close()
