"""Hostile requests by the seed, at the front and the application behind it: nothing is read or changed
outside the root, no secret comes out, answers are one line, memory is
bounded and the service well afterwards."""

import hashlib
import json
import random
import socket
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from front_world import INNER, TOKEN, backend, connect, exchange, front_of, read_answer, request
from service_attacks import mp4
from service_world import LocalScoring

from orchestration.service.access import digest_of
from orchestration.service.app import build_app
from orchestration.service.limits import Limits

pytestmark = [pytest.mark.security, pytest.mark.filterwarnings("ignore::DeprecationWarning")]
FIRST_SEED = 17_000
CANARY = "canary-content-that-nobody-may-read"
LIMITS = Limits(
    body_bytes=1 << 20,
    json_bytes=50_000,
    header_seconds=0.5,
    idle_seconds=0.5,
    body_seconds=0.5,
    decoded_bytes=32 << 20,
    held_bytes=64 << 20,
    decoders=1,
    decode_seconds=2.0,
)
LINES = [
    "Content-Length: 0",
    "Content-Length: -1",
    "Content-Length: 1e3",
    "Content-Length: 99999999999999999999",
    "Content-Length: 2, 2",
    "Transfer-Encoding: chunked",
    "Transfer-Encoding: chunked, chunked",
    "Transfer-Encoding: xchunked",
    "Transfer-Encoding : chunked",
    "Expect: 100-continue",
    "Upgrade: h2c",
    "Connection: upgrade, close, keep-alive",
    "Content-Encoding: gzip",
    "Content-Type: multipart/form-data; boundary=" + "b" * 300,
    "Content-Type: application/json; charset=utf-7",
    "X-Forwarded-For: 127.0.0.1",
    "X-Nava-Caller: default 127.0.0.1",
    "Authorization: Basic eDp5",
    "Authorization: Bearer " + "z" * 43,
    "Host: a\r\nHost: b",
    " folded: yes",
    "Range: bytes=0-",
    "Cookie: " + "c=d; " * 500,
    "\x00: \x00",
    "X: \xff\xfe\r\n\r\nGET /metrics HTTP/1.1",
]
PATHS = [
    "/v1/score",
    "/v1/score/../../metrics",
    "//v1/score",
    "/v1/score?token=" + TOKEN[::-1],
    "/%2e%2e/%2e%2e/etc/passwd",
    "/static/../../etc/passwd",
    "*",
    "http://127.0.0.1/metrics",
    "/v1/score#x",
    "/\x7f",
    "/healthz",
    "/metrics",
    "/docs",
    "/openapi.json",
    "/-/routes",
    "/v1/rewards" + "/a" * 2000,
]
METHODS = ["POST", "GET", "PUT", "TRACE", "CONNECT", "OPTIONS", "HEAD", "PO ST", "post", "\x00", "A" * 200]


def clip_value(draws: random.Random, canary: Path):
    names = [
        str(canary / "secret.wav"),
        "../canary/secret.wav",
        "..\\canary\\secret.wav",
        "link.wav",
        "a.wav\0.txt",
        "file:///etc/passwd",
        "/proc/self/environ",
        "/dev/stdin",
        "part:video",
        "concat:a.wav|b.wav",
        "subfile,,start,0,end,9,,:/etc/passwd",
        "a" * 5000,
        "",
    ]
    return draws.choice(
        [draws.choice(names), draws.choice(names), draws.randrange(2**70), None, [[]], {"a": 1}, True]
    )


def body_of(draws: random.Random, canary: Path) -> bytes:
    kind = draws.randrange(6)
    if kind == 0:
        return draws.randbytes(draws.randrange(4000))
    if kind == 1:
        return b"[" * draws.randrange(1, 60_000)
    if kind == 2:
        part = draws.choice(["video", "audio", "request", "../x"])
        head = f'--b\r\nContent-Disposition: form-data; name="{part}"'
        return (
            head.encode()
            + b"\r\n\r\n"
            + hostile_media(draws)
            + draws.choice([b"\r\n--b--\r\n", b"", b"\r\n--b"])
        )
    fields = [
        "clip",
        "audio",
        "first_frame",
        "reference_sound",
        "prompt",
        "rewards",
        "references",
        "spans",
        "name",
    ]
    chosen = {draws.choice(fields): clip_value(draws, canary) for _ in range(draws.randrange(1, 5))}
    return json.dumps(chosen).encode()


def hostile_media(draws: random.Random) -> bytes:
    starts = [
        b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n",
        b"ffconcat version 1.0\nfile /etc/passwd\n",
        b"RIFF\xff\xff\xff\xffWAVEfmt ",
        b"\x89PNG\r\n\x1a\n",
        b"\x1aE\xdf\xa3" + draws.randbytes(200),
        b"fLaC" + draws.randbytes(100),
        VIDEO,
    ]
    content = bytearray(draws.choice(starts))
    for _ in range(draws.randrange(20)):
        content[draws.randrange(len(content))] = draws.randrange(256)
    return bytes(content[: draws.randrange(1, len(content) + 1)])


VIDEO = mp4(6, 32, 32)


def hostile(seed: int, canary: Path) -> tuple[bytes, str]:
    """(bytes to send, how): whole, cut or in two pieces."""
    draws = random.Random(seed)
    body = body_of(draws, canary)
    lines = [draws.choice(LINES) for _ in range(draws.choice([0, 0, 1, 1, 2, 90]))]
    lines += [f"Authorization: Bearer {TOKEN}"] if draws.random() < 0.7 else []
    lines += [f"Content-Length: {len(body)}"] if draws.random() < 0.8 else []
    if draws.random() < 0.6:
        lines.append(
            draws.choice(["Content-Type: application/json", "Content-Type: multipart/form-data; boundary=b"])
        )
    draws.shuffle(lines)
    method = "POST" if draws.random() < 0.7 else draws.choice(METHODS)
    path = "/v1/score" if draws.random() < 0.6 else draws.choice(PATHS)
    version = draws.choice(["HTTP/1.1"] * 8 + ["HTTP/1.0", "HTTP/9.9", "", "HTTP/1.1\r\n\r\nGET / HTTP/1.1"])
    ends = draws.choice(["\r\n"] * 9 + ["\n"])
    head = ends.join(
        [f"{method} {path} {version}", *draws.choice([["Host: x"], ["Host: x"], []]), *lines, "", ""]
    )
    content = bytearray(head.encode("latin-1") + body)
    if draws.random() < 0.2:
        for _ in range(draws.randrange(1, 6)):
            content[draws.randrange(len(content))] = draws.randrange(256)
    return bytes(content), draws.choice(["whole", "whole", "whole", "cut", "pieces"])


def digest_of_tree(folder: Path) -> str:
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        found.update(
            f"{path.relative_to(folder)} {path.lstat().st_mode} {path.lstat().st_mtime_ns}\n".encode()
        )
        found.update(path.read_bytes() if path.is_file() else b"")
    return found.hexdigest()


@pytest.fixture
def world(tmp_path):
    root, canary = tmp_path / "root", tmp_path / "canary"
    root.mkdir()
    canary.mkdir()
    (canary / "secret.wav").write_text(CANARY)
    (root / "link.wav").symlink_to(canary / "secret.wav")
    scoring = LocalScoring("snr_estimate_db")
    app = build_app(scoring, [root.resolve()], LIMITS, digest_of(INNER))
    with backend(app) as behind, front_of(behind, LIMITS, tmp_path) as (port, front):
        yield port, front, canary, tmp_path


def send(port: int, content: bytes, how: str) -> bytes:
    """Everything that comes back."""
    received = b""
    with suppress(OSError), connect(port, timeout=8.0) as sock:
        middle = len(content) // 2
        with suppress(OSError):
            sock.sendall(content[:middle] if how != "whole" else content)
            if how == "pieces":
                time.sleep(0.01)
                sock.sendall(content[middle:])
            sock.shutdown(socket.SHUT_WR)
        while piece := sock.recv(65_536):
            received += piece
    return received


def check_answer(received: bytes, seed: int) -> None:
    for secret in (TOKEN, INNER, CANARY, "root:x:0"):
        assert secret.encode() not in received, seed
    if received:
        status = int(received.split(maxsplit=2)[1])
        assert status != 500 and 100 <= status < 600, (seed, received[:300])
        body = received.partition(b"\r\n\r\n")[2]
        if received.startswith(b"HTTP/1.1 4") and body.startswith(b"{"):
            assert b"\n" not in body.split(b"}")[0], seed


@pytest.mark.parametrize(
    "count", [200, pytest.param(3000, marks=[pytest.mark.slow, pytest.mark.timeout(1500)])]
)
def test_hostile_requests(world, count, capfd):
    port, front, canary, folder = world
    assert exchange(port, request("/v1/rewards", method="GET"))[0] == 200
    before, memory = digest_of_tree(canary), psutil.Process().memory_info().rss
    answered = 0
    for seed in range(FIRST_SEED, FIRST_SEED + count):
        received = send(port, *hostile(seed, canary))
        check_answer(received, seed)
        answered += bool(received)
    assert answered > 0.6 * count
    ended = time.monotonic()
    assert exchange(port, request("/healthz", token="", method="GET"), timeout=5.0)[0] == 200
    with connect(port) as sock:
        sock.sendall(request(body=b'{"clip": "nothing.wav"}', headers="Content-Type: application/json\r\n"))
        assert read_answer(sock)[0] == 422
    assert time.monotonic() - ended < 5.0
    assert digest_of_tree(canary) == before
    assert psutil.Process().memory_info().rss - memory < 64 << 20
    said = "".join(capfd.readouterr()) + (folder / "audit.jsonl").read_text()
    assert TOKEN not in said and INNER not in said and CANARY not in said
    while front.connections.open > 2 or front.slots.held:  # the last answer may be on its way out
        assert time.monotonic() - ended < 10.0
        time.sleep(0.05)
