"""Limits of the service that hold before authentication: each attack on the front, over real sockets."""

import gc
import json
import threading
import time
from contextlib import suppress

import psutil
import pytest
from front_world import (
    INNER,
    TOKEN,
    Echo,
    backend,
    connect,
    exchange,
    front_of,
    read_answer,
    request,
    wait_for,
)

from orchestration.service.front.wire import Wire
from orchestration.service.limits import Limits

pytestmark = pytest.mark.security
SMALL = Limits(
    connections=40,
    client_connections=30,
    client_requests=20,
    header_seconds=0.6,
    idle_seconds=0.8,
    body_seconds=1.0,
    body_bytes=100_000,
    json_bytes=50_000,
    active=4,
    requests=30,
)


@pytest.fixture
def world(tmp_path):
    echo = Echo()
    with backend(echo) as behind, front_of(behind, SMALL, tmp_path) as (port, front):
        yield port, front, echo, tmp_path


def test_a_request_passes_with_the_fronts_token_and_few_headers(world):
    port, _, echo, folder = world
    status, head, body = exchange(
        port, request(body=b"x" * 70_000, headers="X-Nava-Caller: a b\r\nCookie: c\r\n")
    )
    assert (status, json.loads(body)) == (200, {"path": "/v1/score", "bytes": 70_000})
    headers = echo.seen[-1]["headers"]
    assert headers["authorization"] == f"Bearer {INNER}" and headers["x-nava-caller"] == "default 127.0.0.1"
    assert "cookie" not in headers and TOKEN not in str(headers)
    assert wait_for(lambda: (folder / "audit.jsonl").read_text())
    row = json.loads((folder / "audit.jsonl").read_text())
    assert row["id"].encode() in head
    assert {name: row[name] for name in ("token", "client", "method", "path", "status", "bytes_out")} == {
        "token": "default",
        "client": "127.0.0.1",
        "method": "POST",
        "path": "/v1/score",
        "status": 200,
        "bytes_out": len(body),
    }
    assert row["bytes_in"] > 70_000 and 0 < row["seconds"] < 10


def test_one_connection_serves_several_requests(world):
    port, _, echo, _ = world
    with connect(port) as sock:
        for size in (0, 5, 60_000):
            sock.sendall(request(body=b"y" * size))
            assert json.loads(read_answer(sock)[2])["bytes"] == size
        sock.sendall(request("/v1/rewards", method="GET") + request("/metrics", method="GET"))  # pipelined
        assert [read_answer(sock)[0] for _ in range(1)] == [200]
    assert [seen["path"] for seen in echo.seen[:4]] == ["/v1/score"] * 3 + ["/v1/rewards"]


def endless(kind: str):
    yield b"POST /v1/score HTTP/1.1\r\n"
    if kind == "value":
        yield b"x: "
    while True:
        yield b"x" * 65_536 if kind in ("value", "name") else b"x: y\r\n" * 10_000


@pytest.mark.parametrize("kind", ["value", "name", "lines"])
def test_endless_headers_are_refused_at_once_and_keep_no_memory(world, kind):
    port, *_ = world
    before, sent = psutil.Process().memory_info().rss, 0
    started = time.monotonic()
    with connect(port) as sock:
        with suppress(OSError):
            for piece in endless(kind):
                sock.sendall(piece)
                sent += len(piece)
                if sent > 200 << 20:
                    break
    assert sent < 50 << 20 and time.monotonic() - started < 5
    assert psutil.Process().memory_info().rss - before < 16 << 20
    assert exchange(port, request())[0] == 200


MANY = "".join(f"h{index}: 1\r\n" for index in range(100))
REFUSED = {
    "one long header": (request(headers=f"x: {'y' * 20_000}\r\n"), 431, "headers"),
    "many headers": (request(headers=MANY), 431, "headers"),
    "long target": (request("/" + "a" * 20_000), 431, "headers"),
    "two lengths": (request(headers="Content-Length: 3\r\n"), 400, "request"),
    "length and chunks": (request(headers="Transfer-Encoding: chunked\r\n"), 400, "headers"),
    "no HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 9 + b"\r\n\r\n", 400, "request"),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "request"),
    "a proxy's target": (request("http://example.org/"), 400, "request"),
    "upgrade": (request("/healthz", method="GET", headers="Upgrade: websocket\r\n"), 400, "request"),
    "bare line ends": (b"GET /healthz HTTP/1.1\nHost x\n\n", 400, "request"),
    "folded header": (request(headers="X : y\r\n"), 400, "request"),
    "null in a value": (request(headers="X: \0\r\n"), 400, "request"),
    "no token": (request(token=""), 401, "token"),
    "wrong token": (request(token="z" * 30), 401, "token"),
    "two tokens": (request(headers=f"Authorization: Bearer {TOKEN}\r\n"), 401, "token"),
    "the front's own token": (request(token=INNER), 401, "token"),
    "length told": (
        request(headers="").replace(b"Content-Length: 2", b"Content-Length: 100001"),
        413,
        "body",
    ),
    "endless length": (request().replace(b"Content-Length: 2", b"Content-Length: " + b"9" * 18), 413, "body"),
    "chunks": (
        request().replace(b"Content-Length: 2", b"Transfer-Encoding: chunked")[:-2]
        + (b"10000\r\n" + b"x" * 65_536 + b"\r\n") * 3,
        413,
        "body",
    ),
    "bad chunk": (
        request().replace(b"Content-Length: 2", b"Transfer-Encoding: chunked")[:-2] + b"zz\r\nhello\r\n",
        400,
        "request",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_line_and_closed(world, name):
    port, _, _, folder = world
    content, status, reason = REFUSED[name]
    with connect(port) as sock:
        with suppress(OSError):
            sock.sendall(content)
        found, head, body = read_answer(sock)
        assert found == status, (found, body)
        assert json.loads(body)["reason"].startswith(reason) and b"\n" not in body
        assert b"connection: close" in head.lower()
        with suppress(ConnectionError):
            assert sock.recv(1) == b""
    assert exchange(port, request())[0] == 200
    assert (
        TOKEN not in (folder / "audit.jsonl").read_text()
        and "zzz" not in (folder / "audit.jsonl").read_text()
    )


@pytest.mark.parametrize("start", [b"", b"POST /v1/score HT", request()[:60]])
def test_half_open_and_idle_connections_are_closed(world, start):
    port, front, *_ = world
    with connect(port, timeout=5) as sock:
        sock.sendall(start)
        status, _, body = read_answer(sock)
        assert status == (408 if start else 0) and (not start or b"headers" in body)
    with connect(port, timeout=5) as sock:  # and after a request
        sock.sendall(request("/healthz", method="GET"))
        assert read_answer(sock)[0] == 200
        assert sock.recv(1) == b""
    assert wait_for(lambda: front.connections.open == 0)


def test_a_dripping_head_and_a_dripping_body_end_in_time(world):
    port, *_ = world
    for head, status, most in (
        (b"POST /v1/score HTTP/1.1\r\n", 408, 2.0),
        (request(body=b"")[:-2], 408, 3.0),
    ):
        with connect(port, timeout=8) as sock:
            sock.sendall(head.replace(b"Content-Length: 0", b"Content-Length: 99\r\n"))
            started = time.monotonic()
            drip = threading.Event()

            def dripping(sock=sock, drip=drip):
                with suppress(OSError):
                    while not drip.wait(0.1):
                        sock.sendall(b"x")

            thread = threading.Thread(target=dripping)
            thread.start()
            assert read_answer(sock)[0] == status and time.monotonic() - started < most
            drip.set()
            thread.join()


def test_idle_connections_keep_nobody_out(world):
    port, front, *_ = world
    idle = [connect(port, "127.0.0.2") for _ in range(200)]
    assert front.connections.open <= SMALL.connections
    assert exchange(port, request())[0] == 200
    assert exchange(port, request(), "127.0.0.2")[0] == 200  # also from where they come
    for sock in idle:
        sock.close()


def test_connections_at_work_are_not_closed_for_others(world):
    port, _, echo, _ = world
    echo.pause_s = 0.8
    with connect(port) as sock:
        sock.sendall(request())
        assert wait_for(lambda: echo.running)
        idle = [connect(port) for _ in range(100)]
        assert read_answer(sock)[0] == 200
    for each in idle:
        each.close()


def test_one_address_gets_a_share_of_requests(world):
    port, front, echo, _ = world
    echo.pause_s = 0.5
    socks = [connect(port, "127.0.0.3") for _ in range(25)]
    for sock in socks:
        sock.sendall(request())
    assert wait_for(lambda: front.slots.held + front.slots.waiting == SMALL.client_requests)
    assert exchange(port, request("/v1/rewards", method="GET"))[0] == 200
    statuses = [read_answer(sock)[0] for sock in socks]
    assert sorted(statuses) == [200] * 20 + [429] * 5
    assert echo.most <= SMALL.active + 2


def test_health_is_asked_once_whoever_floods_it(world):
    port, _, echo, _ = world
    assert {exchange(port, request("/healthz", method="GET", token=""))[0] for _ in range(50)} == {200}
    assert sum(seen["path"] == "/healthz" for seen in echo.seen) <= 3


def test_a_caller_who_leaves_frees_the_slot(world):
    port, front, echo, _ = world
    echo.pause_s = 4.0
    for _ in range(SMALL.active):
        with connect(port) as sock:
            sock.sendall(request())
            assert wait_for(lambda: echo.running)
        assert wait_for(lambda: front.slots.held == 0, 2)


def test_a_service_that_is_down_is_told():
    with front_of(1) as (port, _):
        assert exchange(port, request("/healthz", method="GET", token=""))[0] == 503
        status, _, body = exchange(port, request())
        assert status == 503 and json.loads(body)["fault"] == "service"


@pytest.mark.parametrize("token", ["", TOKEN], ids=["no token", "no application"])
def test_refused_requests_keep_no_memory(token):
    """Wires that are alive after many refusals: one instance raised twice keeps those of the first time."""

    def wires() -> int:
        gc.collect()
        return sum(isinstance(found, Wire) for found in gc.get_objects())

    with front_of(9, SMALL) as (port, _):
        for _ in range(20):
            assert exchange(port, request(body=b"x" * 1000, token=token))[0] == (503 if token else 401)
        assert wait_for(lambda: wires() <= 2)
