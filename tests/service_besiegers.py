"""Attackers of `service_siege.py`: `python tests/service_besiegers.py KIND PORT SECONDS`, a valid token on
standard input. Says `ready` as it begins; imports little."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time

from front_world import connect, exchange, request
from service_attacks import mp4

from rewards.http import form

SOURCE = "127.0.0.2"


def upload(content: bytes, name: str, token: str) -> bytes:
    kind, body = form({"request": json.dumps({"name": name})}, {name: content})
    return request(body=body, token=token, headers=f"Content-Type: {kind}\r\n")


def endless(start: bytes, again: bytes):
    def attack(port: int, _: str) -> None:
        with contextlib.suppress(OSError), connect(port, SOURCE, 5.0) as sock:
            sock.sendall(start)
            while True:
                sock.sendall(again)

    return attack


def idle(start: bytes, count: int):
    def attack(port: int, _: str) -> None:
        socks = []
        with contextlib.suppress(OSError):
            for index in range(count):
                socks.append(connect(port, f"127.0.1.{index % 250 + 1}", 5.0))
                socks[-1].sendall(start)
        time.sleep(2.0)
        for sock in socks:
            sock.close()

    return attack


def asking(content: bytes):
    def attack(port: int, _: str) -> None:
        with contextlib.suppress(OSError):
            exchange(port, content, SOURCE)

    return attack


SLOW = mp4(700, 352, 640)  # 472 MB decoded, a few kilobytes to send


def slow_uploads(port: int, token: str) -> None:
    with contextlib.suppress(OSError):
        exchange(port, upload(SLOW, "video", token), SOURCE, 300.0)


# kind -> (attack, threads at once)
ATTACKS = {
    "endless header value": (endless(b"POST /v1/score HTTP/1.1\r\nx: ", b"y" * 65_536), 4),
    "endless header lines": (endless(b"POST /v1/score HTTP/1.1\r\n", b"x: y\r\n" * 8000), 4),
    "20,000 idle connections": (idle(b"", 5000), 4),
    "20,000 half heads": (idle(b"POST /v1/score HTTP/1.1\r\nx: " + b"y" * 8000, 5000), 4),
    "bodies without a token": (asking(request(body=b"z" * (1 << 20), token="")), 4),
    "wrong tokens": (asking(request(token="z" * 43)), 4),
    "slowly decoded uploads of one token": (slow_uploads, 24),
}


def attack_until(kind: str, port: int, token: str, seconds: float) -> None:
    attack, threads = ATTACKS[kind]
    end = time.monotonic() + seconds

    def repeat() -> None:
        while time.monotonic() < end:
            attack(port, token)
            time.sleep(0.05)

    print("ready", flush=True)
    started = [threading.Thread(target=repeat, daemon=True) for _ in range(threads)]
    for thread in started:
        thread.start()
    time.sleep(max(0.0, end - time.monotonic()))
    os._exit(0)  # whatever is still open ends now


if __name__ == "__main__":
    attack_until(sys.argv[1], int(sys.argv[2]), sys.stdin.read(), float(sys.argv[3]))
