"""Honest requests beside attacks on a running service: `python tests/service_siege.py --to OUT.json`.

One kind of attack after another, each from processes of their own and from other addresses of the loopback,
while two honest callers go on asking. Measured: their p95 against a quiet service just before, seconds until
the service is healthy after the attack's end, and the memory of the processes that callers reach.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from front_world import connect, exchange, request
from service_attacks import mp4
from test_service_refusals import wav

from experiments.benchmarks.harness import facts
from experiments.serving import config_from
from pretrain.files import write_json
from rewards.http import form

FRONT_MIB = 256  # bound of the front's memory, stated in docs/service.md
PROXY_MIB = 600  # of Ray Serve's proxy, which imports a few hundred
HEALTHY_S, SLOWER = 5.0, 2.0
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


def slow_uploads(port: int, token: str) -> None:
    with contextlib.suppress(OSError):
        exchange(port, upload(mp4(700, 352, 640), "video", token), SOURCE, 300.0)


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

    started = [threading.Thread(target=repeat, daemon=True) for _ in range(threads)]
    for thread in started:
        thread.start()
    time.sleep(max(0.0, end - time.monotonic()))
    os._exit(0)  # whatever is still open ends now


def honest(port: int, token: str, seconds: float) -> tuple[list[float], int]:
    """(seconds of each request, wrong answers) of two callers."""
    content, times, wrong = upload(wav(), "audio", token), [], []
    end = time.monotonic() + seconds

    def ask() -> None:
        while time.monotonic() < end:
            started = time.monotonic()
            try:
                status, _, body = exchange(port, content, "127.0.0.1", 60.0)
            except OSError as error:
                status, body = 0, repr(error).encode()
            times.append(time.monotonic() - started)
            if status != 200:
                wrong.append((status, body[:200]))

    callers = [threading.Thread(target=ask) for _ in range(2)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    if wrong:
        print("WRONG", wrong[:3], flush=True)
    return times, len(wrong)


class Memory:
    """Peak resident memory of processes, by name, sampled."""

    def __init__(self) -> None:
        me = psutil.Process()
        self.processes = {
            "front": [p for p in me.children(True) if "front.run" in " ".join(p.cmdline())],
            "proxy": [
                p
                for p in me.children(True)
                if "ProxyActor" in p.name() or "ProxyActor" in " ".join(p.cmdline())
            ],
        }
        self.peak = {name: 0 for name in self.processes}
        self.ended = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while not self.ended.wait(0.1):
            for name, found in self.processes.items():
                with contextlib.suppress(psutil.NoSuchProcess):
                    total = sum(process.memory_info().rss for process in found)
                    self.peak[name] = max(self.peak[name], total)

    def mib(self) -> dict[str, int]:
        return {name: round(size / 2**20) for name, size in self.peak.items()}


def healthy_after(port: int) -> float:
    started = time.monotonic()
    while time.monotonic() - started < 60:
        with contextlib.suppress(OSError):
            if exchange(port, request("/healthz", token="", method="GET"), timeout=5.0)[0] == 200:
                break
    return time.monotonic() - started


def siege(kind: str, port: int, tokens: dict[str, str], seconds: float) -> dict[str, Any]:
    quiet, quiet_wrong = honest(port, tokens["honest"], seconds)
    command = [sys.executable, __file__, "--attack", kind, str(port), str(seconds + 1)]
    attacker = subprocess.Popen(command, stdin=subprocess.PIPE, preexec_fn=lambda: os.nice(15))
    assert attacker.stdin
    attacker.stdin.write(tokens["heavy"].encode())
    attacker.stdin.close()
    time.sleep(1.0)
    beside, wrong = honest(port, tokens["honest"], seconds)
    attacker.wait()
    healthy = healthy_after(port)
    row = {
        "attack": kind,
        "quiet_p95_s": round(float(np.percentile(quiet, 95)), 3),
        "beside_p95_s": round(float(np.percentile(beside, 95)), 3),
        "slower": round(float(np.percentile(beside, 95) / np.percentile(quiet, 95)), 2),
        "honest_requests": [len(quiet), len(beside)],
        "not_answered": quiet_wrong + wrong,
        "healthy_after_s": round(healthy, 2),
    }
    print(json.dumps(row), flush=True)
    return row


def run(options: argparse.Namespace) -> dict[str, Any]:
    import dataclasses

    from orchestration.service.access import add_token
    from orchestration.service.deployment import running

    work = Path(options.work).resolve()
    path = work / "tokens.json"
    path.unlink(missing_ok=True)
    tokens = {name: add_token(path, name) for name in ("honest", "heavy")}
    sizes = {"batch": 8, "replicas": 1, "cpus": 0.0, "gpus": 0.0}
    config = config_from(["snr_estimate_db"], (), (), [], work, secrets.token_urlsafe(32), **sizes)
    config = dataclasses.replace(config, tokens=path, audit=work / "audit.jsonl")
    load = os.getloadavg()[0]
    with running(config, "127.0.0.1", options.port, temporary=options.ray_folder):
        honest(options.port, tokens["honest"], 3.0)  # everything is imported
        memory = Memory()
        rows = [siege(kind, options.port, tokens, options.seconds) for kind in ATTACKS]
        memory.ended.set()
    peak = memory.mib()
    holds = peak["front"] <= FRONT_MIB and peak["proxy"] <= PROXY_MIB
    for row in rows:
        holds &= row["slower"] <= SLOWER and not row["not_answered"] and row["healthy_after_s"] <= HEALTHY_S
    return {
        **facts("ray"),
        "load_of_others": round(load, 1),
        "attacks": rows,
        "peak_mib": peak,
        "holds": holds,
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--attack", nargs=3, metavar=("KIND", "PORT", "SECONDS"), help="be an attacker")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each attack")
    parser.add_argument("--port", type=int, default=8197)
    parser.add_argument("--work", default="out/service_siege")
    parser.add_argument("--ray-folder", help="Ray's temporary folder")
    parser.add_argument("--to", type=Path, help="JSON")
    options = parser.parse_args()
    if options.attack:
        kind, port, seconds = options.attack
        attack_until(kind, int(port), sys.stdin.read(), float(seconds))
    socket.setdefaulttimeout(60.0)
    found = run(options)
    print(f"holds: {found['holds']}, peak memory {found['peak_mib']} MiB")
    if options.to:
        write_json(options.to, found, indent=1)
    return 0 if found["holds"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
