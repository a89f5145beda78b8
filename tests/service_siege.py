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
from front_world import exchange, request
from service_besiegers import ATTACKS, upload
from test_service_refusals import wav

from experiments.benchmarks.harness import facts
from experiments.serving import config_from
from pretrain.files import write_json

FRONT_MIB = 256  # bound of the front's memory, stated in docs/service.md
PROXY_MIB = 600  # of Ray Serve's proxy, which imports a few hundred
HEALTHY_S, SLOWER = 5.0, 2.0


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


def siege(kind: str, port: int, tokens: dict[str, str], seconds: float, before: float) -> dict[str, Any]:
    quiet, quiet_wrong = honest(port, tokens["honest"], before)
    command = [sys.executable, str(Path(__file__).with_name("service_besiegers.py")), kind, str(port)]
    attacker = subprocess.Popen(
        ["nice", "-n", "5", *command, str(seconds + 1)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert attacker.stdin and attacker.stdout
    attacker.stdin.write(tokens["heavy"].encode())
    attacker.stdin.close()
    assert attacker.stdout.readline() == b"ready\n"
    time.sleep(0.5)
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
        rows = [siege(kind, options.port, tokens, options.seconds, options.quiet) for kind in ATTACKS]
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
    parser.add_argument("--seconds", type=float, default=8.0, help="of each attack")
    parser.add_argument("--quiet", type=float, default=8.0, help="seconds of the quiet service before each")
    parser.add_argument("--port", type=int, default=8197)
    parser.add_argument("--work", default="out/service_siege")
    parser.add_argument("--ray-folder", help="Ray's temporary folder")
    parser.add_argument("--to", type=Path, help="JSON")
    options = parser.parse_args()
    socket.setdefaulttimeout(60.0)
    found = run(options)
    print(f"holds: {found['holds']}, peak memory {found['peak_mib']} MiB")
    if options.to:
        write_json(options.to, found, indent=1)
    return 0 if found["holds"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
