"""The generation service under load and losses: `python tests/generation_load.py WORK --to JSON`.

Many clients of several tokens make, poll, fetch and cancel clips of a small random model at once; a tenth of
what they send is malformed, oversized, slow or unauthorised; a worker is killed (-9) every so often. In the
end every accepted job must have ended exactly once, nothing bad been accepted, and memory have stayed
bounded. The clients share the processors with the service; its start is not part of the times.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import resource
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from generation_clients import BAD, BODY_BYTES, BODY_SECONDS, Connection, bad_requests
from video_model import random_model

from experiments.benchmarks.harness import facts
from orchestration.service.access import add_token
from pretrain.files import write_json
from rewards.http import form

OWNERS = 8
POLL_S = (2.0, 4.0)
WORKER = "ray::GenerationActor"
KINDS = ({}, {"seconds": 1}, {"task": "T2A"}, {"steps": 3}, {"guidance_scale": 2.0})


@dataclass
class Tally:
    """What clients saw."""

    accepted: dict[str, int] = field(default_factory=dict)  # id -> client
    ended: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    statuses: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    estimates: list[tuple[float, float]] = field(default_factory=list)  # (estimated, actual) seconds
    refused_busy: int = 0
    kills: int = 0
    fetched: int = 0
    memory: dict[str, list[int]] = field(default_factory=dict)

    def note(self, what: str, began: float) -> None:
        self.seconds.setdefault(what, []).append(time.monotonic() - began)


async def client(
    number: int, options: Any, tokens: dict[str, str], tally: Tally, ends: float, voice: bytes
) -> None:
    draw, wire = random.Random(number), Connection(options.port)
    token = tokens[f"team{number % OWNERS}"]
    attacks = bad_requests(voice)
    await asyncio.sleep(draw.random() * POLL_S[1])
    while time.monotonic() < ends:
        if draw.random() < 0.1:
            name, right, arguments = draw.choice(attacks)
            given = {"token": token, **arguments}
            given["token"] = tokens["scorer"] if given["token"] == "SCORE" else given["token"]
            status, content = await wire.ask("POST", "/v1/videos", **given)
            tally.statuses[f"bad {status}"] += 1
            # an upload that is refused early may end as a reset connection
            if status not in (*right, *((0,) if name in ("oversized", "slow") else ())):
                tally.wrong.append(f"{name}: {status} {content[:150]!r}")
            continue
        await _one_clip(number, draw, wire, token, tally, ends, voice)
    await wire.close()


async def _one_clip(number, draw, wire, token, tally: Tally, ends: float, voice: bytes) -> None:
    fields = {"prompt": f"A ball {number}.", "seed": draw.randrange(99), **draw.choice(KINDS)}
    headers = {"content-type": "application/json", "idempotency-key": f"{number}-{draw.getrandbits(64)}"}
    body = json.dumps(fields).encode()
    if draw.random() < 0.1:
        request = json.dumps({**fields, "prompt": "Says <S>zero<E>."})
        headers["content-type"], body = form({"request": request}, {"reference_0": voice})
    began = time.monotonic()
    status, content = await wire.ask("POST", "/v1/videos", token, body, headers)
    if not status:  # lost: the key makes the second try safe
        status, content = await wire.ask("POST", "/v1/videos", token, body, headers)
    tally.statuses[f"create {status}"] += 1
    if status != 200:
        tally.refused_busy += status in (429, 503)
        if status not in (429, 502, 503):
            tally.wrong.append(f"create: {status} {content[:150]!r}")
        return await asyncio.sleep(draw.uniform(*POLL_S))
    tally.note("create with a voice" if b"reference_0" in body else "create", began)
    job = json.loads(content)
    tally.accepted[job["id"]] = number
    await _follow(job, draw, wire, token, tally, began, ends)


async def _follow(job, draw, wire, token, tally: Tally, began: float, ends: float) -> None:
    path, estimated = f"/v1/videos/{job['id']}", job["estimated_wait_seconds"]
    gives_up = draw.random() < 0.05
    while time.monotonic() < ends + 600:
        await asyncio.sleep(draw.uniform(*POLL_S))
        asked = time.monotonic()
        status, content = await wire.ask("GET", path, token)
        tally.statuses[f"poll {status}"] += 1
        if status != 200:
            if status not in (0, 502, 503):
                tally.wrong.append(f"poll: {status} {content[:150]!r}")
            continue
        tally.note("poll", asked)
        found = json.loads(content)
        if found["status"] in ("completed", "failed", "cancelled"):
            tally.ended[job["id"]] = found["status"]
            if found["status"] == "completed" and estimated:
                tally.estimates.append((estimated, found["completed_at"] - found["created_at"]))
            if found["status"] == "failed":
                tally.wrong.append(f"failed: {found['error']}")
            break
        if gives_up and draw.random() < 0.5:
            gives_up = False
            await wire.ask("POST", f"{path}/cancel", token)
    if tally.ended.get(job["id"]) == "completed" and draw.random() < 0.3:
        status, content = await wire.ask("GET", f"{path}/content", token)
        tally.fetched += status == 200 and len(content) == (found["video_bytes"] or found["audio_bytes"])


async def killer(server: psutil.Process, every_s: float, ends: float, tally: Tally) -> None:
    draw = random.Random(0)
    while time.monotonic() + every_s < ends:
        await asyncio.sleep(every_s)
        workers = [child for child in _children(server) if _title(child).startswith(WORKER)]
        if workers:
            with contextlib.suppress(psutil.NoSuchProcess):
                draw.choice(workers).send_signal(signal.SIGKILL)
                tally.kills += 1


async def memory(server: psutil.Process, tally: Tally) -> None:
    names = (
        ("front", "front.run"),
        ("web", "ray::ServeReplica"),
        ("proxy", "ray::ProxyActor"),
        ("worker", WORKER),
    )
    while True:
        for child in [server, *_children(server)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                title = _title(child)
                name = next((name for name, mark in names if mark in title), "")
                if name:
                    tally.memory.setdefault(name, []).append(child.memory_info().rss >> 20)
        await asyncio.sleep(5.0)


def _children(server: psutil.Process) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return server.children(recursive=True)
    return []


def _title(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.NoSuchProcess):
        return " ".join(process.cmdline())
    return ""


def start(work: Path, options: Any) -> subprocess.Popen:
    """`nava serve generate` with everything it writes under `work`."""
    made, root = random_model(work / "made"), Path(__file__).parent
    limits = [f"queue={2 * options.clients}", f"token_queue={options.clients}", f"body_bytes={BODY_BYTES}"]
    limits += [f"body_seconds={BODY_SECONDS}"]
    arguments = ["--model", made / "model", "--codec", made / "codec", "--token-file", work / "token"]
    arguments += [
        "--port",
        options.port,
        "--workers",
        options.workers,
        "--threads",
        1,
        "--batch",
        options.batch,
    ]
    arguments += ["--set", "generate.sampler.steps=4", "--set", "generate.bf16=false"]
    arguments += [word for limit in limits for word in ("--limit", limit)]
    (work / "token").write_text("a-token-of-the-load-0123456789")
    environment = {**os.environ, "PYTHONPATH": f"{root}:{root.parent}", "OMP_NUM_THREADS": "1"}
    environment |= {"RAY_TMPDIR": options.ray_folder} if options.ray_folder else {}
    log = (work / "server.txt").open("w")
    command = [sys.executable, "-m", "experiments.cli", "serve", "generate", *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=work, env=environment, stdout=log, stderr=log, start_new_session=True
    )


async def storm(server: psutil.Process, options: Any, tokens: dict[str, str], voice: bytes) -> Tally:
    tally, ends = Tally(), time.monotonic() + options.seconds
    beside = [asyncio.create_task(killer(server, options.kill_every, ends, tally))]
    beside.append(asyncio.create_task(memory(server, tally)))
    await asyncio.gather(*(client(n, options, tokens, tally, ends, voice) for n in range(options.clients)))
    for task in beside:
        task.cancel()
    await asyncio.gather(*beside, return_exceptions=True)
    return tally


def judged(tally: Tally, database: Path) -> dict[str, Any]:
    """Numbers, and whether all that must hold does."""
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
        rows = connection.execute("SELECT id, status, ends, wanted, attempt FROM jobs").fetchall()
    there = {row[0] for row in rows}
    counts = Counter(row[1] for row in rows)
    once = all(row[2] == 1 for row in rows)
    times = {
        name: {
            share: round(float(np.percentile(found, int(share[1:]))) * 1000, 1)
            for share in ("p50", "p95", "p99")
        }
        | {"requests": len(found)}
        for name, found in tally.seconds.items()
    }
    ratios = np.array([actual / max(1.0, guess) for guess, actual in tally.estimates] or [np.nan])
    growth = {
        name: {"first": found[min(2, len(found) - 1)], "median": int(np.median(found)), "most": max(found)}
        for name, found in tally.memory.items()
    }
    kept = set(tally.accepted) <= there
    ended = set(tally.accepted) == set(tally.ended)
    nothing_bad = not any(BAD in row[3] for row in rows)
    quick = all(times.get(name, {"p95": 0})["p95"] < 100 for name in ("create", "poll"))
    return {
        "accepted": len(tally.accepted),
        "ended_as": dict(counts),
        "every_accepted_job_is_there": kept,
        "every_accepted_job_ended": ended,
        "each_ended_exactly_once": once,
        "nothing_bad_accepted": nothing_bad,
        "worker_kills": tally.kills,
        "made_more_than_once": sum(row[4] > 1 for row in rows),
        "fetched_whole": tally.fetched,
        "refused_for_want_of_room": tally.refused_busy,
        "answers": dict(sorted(tally.statuses.items())),
        "unexpected": tally.wrong[:20],
        "milliseconds": times,
        "p95_of_create_and_poll_under_100_ms": quick,
        "actual_over_estimated_seconds": {
            share: round(float(np.percentile(ratios, int(share[1:]))), 2) for share in ("p10", "p50", "p90")
        },
        "rss_mib": growth,
        "holds_but_for_times": kept and ended and once and nothing_bad and not tally.wrong,
    }


def run(options: Any) -> dict[str, Any]:
    load, work = os.getloadavg()[0], options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    names = work / "out" / "service" / "tokens.json"
    names.unlink(missing_ok=True)
    tokens = {f"team{n}": add_token(names, f"team{n}", ("generate",)) for n in range(OWNERS)}
    tokens["scorer"] = add_token(names, "scorer", ("score",))
    process = start(work, options)
    try:
        ends = time.monotonic() + 1200
        while "Try:" not in (work / "server.txt").read_text():
            if process.poll() is not None or time.monotonic() > ends:
                raise SystemExit((work / "server.txt").read_text())
            time.sleep(0.5)
        voice = (work / "made" / "voice.wav").read_bytes()
        server = psutil.Process(process.pid)
        tally = asyncio.run(storm(server, options, tokens, voice))
        process.send_signal(signal.SIGTERM)
        code = process.wait(300)
    finally:
        if process.poll() is None:
            process.kill()
    found = judged(tally, work / "out" / "videos" / "jobs.db")
    settings = {
        name: getattr(options, name) for name in ("clients", "seconds", "kill_every", "workers", "batch")
    }
    return {**facts("ray"), "load_of_others": round(load, 1), **settings, "exit_code": code, **found}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path, help="a new folder for the model, the jobs and the log")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=180.0)
    parser.add_argument("--kill-every", type=float, default=20.0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--port", type=int, default=8198)
    parser.add_argument("--ray-folder", help="Ray's temporary folder, a short path")
    parser.add_argument("--to", type=Path, help="JSON")
    options = parser.parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 8192)), hard))
    found = run(options)
    print(json.dumps(found, indent=1))
    if options.to:
        write_json(options.to, found, indent=1)
    return 0 if found["holds_but_for_times"] and found["p95_of_create_and_poll_under_100_ms"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
