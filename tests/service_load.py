"""The reward service under load: `python tests/service_load.py CLIPS --out-folder OUT`.

Many requests at once over as many connections, a tenth of them attacks (`service_attacks`): every good one
must be answered with a score of every reward, every bad one refused with its status and reason, and the
service must be well afterwards. Ray's start is not part of the times; clips are found under CLIPS, half of
them named by path and half uploaded.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import resource
import secrets
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from service_attacks import Attack, attacks, outside_link

from experiments.benchmarks.harness import facts
from experiments.scoring.clips import ClipFile, list_clips
from experiments.serving import config_from
from pretrain.files import write_json
from rewards.http import form

HOST = "127.0.0.1"
BODY_SECONDS = 20.0  # 500 uploads share one processor with their senders
CHUNK = 65_536


@dataclass(frozen=True)
class Outcome:
    """A request's answer; status 0 = the connection gave none."""

    request: Attack | None  # None = a good one
    status: int
    answer: dict[str, Any]
    seconds: float

    def right(self, rewards: Sequence[str]) -> bool:
        if self.request is not None:
            return self.status in self.request.status and self.request.reason in str(
                self.answer.get("reason")
            )
        scores = self.answer.get("scores", {})
        return (
            self.status == 200
            and set(scores) == set(rewards)
            and not any(score["error"] for score in scores.values())
        )


def good_request(file: ClipFile, upload: bool) -> Attack:
    """A clip with its prompt and boxes; nothing to refuse."""
    asked = {"prompt": file.prompt, "mouth_boxes": [list(box) for box in file.mouth_boxes], "name": file.name}
    if not upload:
        return Attack(file.name, (200,), "", json.dumps(asked | {"clip": str(file.path.resolve())}).encode())
    kind, body = form({"request": json.dumps(asked)}, {"video": file.path.read_bytes()})
    return Attack(file.name, (200,), "", body, {"content-type": kind})


async def send(port: int, token: str, request: Attack, is_good: bool) -> Outcome:
    """One request over a connection of its own."""
    started = time.monotonic()
    status, answer = 0, {}
    try:
        reader, writer = await asyncio.open_connection(HOST, port)
        try:
            sending = asyncio.create_task(_send_body(writer, request, token))
            status, answer = await asyncio.wait_for(_answer(reader), 600)
            sending.cancel()
        finally:
            writer.close()
    except (OSError, EOFError, ValueError, TimeoutError) as error:
        answer = {"reason": f"client: {type(error).__name__} {error}"}
    return Outcome(None if is_good else request, status, answer, time.monotonic() - started)


async def _send_body(writer: asyncio.StreamWriter, request: Attack, token: str) -> None:
    shown = token if request.token is None else request.token
    length = (
        {"transfer-encoding": "chunked"} if request.chunked else {"content-length": str(len(request.body))}
    )
    headers = {
        "host": HOST,
        **({"authorization": f"Bearer {shown}"} if shown else {}),
        **length,
        **request.headers,
    }
    head = "".join(f"{key}: {value}\r\n" for key, value in headers.items())
    writer.write(f"POST /v1/score HTTP/1.1\r\n{head}\r\n".encode())
    size = 1 if request.pause_s else CHUNK
    for at in range(0, len(request.body), size):
        piece = request.body[at : at + size]
        writer.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n" if request.chunked else piece)
        try:
            await writer.drain()
        except OSError:
            return  # the answer is there already
        await asyncio.sleep(request.pause_s)
    if request.chunked:
        writer.write(b"0\r\n\r\n")


async def _answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, Any]]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
    length = next((int(line.partition(":")[2]) for line in head if line.startswith("content-length:")), 0)
    return int(head[0].split()[1]), json.loads(await reader.readexactly(length) or b"{}")


async def storm(
    port: int, token: str, good: Sequence[Attack], bad: Sequence[Attack], seed: int
) -> tuple[list[Outcome], float]:
    """All at once, in a random order; (outcomes, seconds)."""
    everything = [(request, True) for request in good] + [(request, False) for request in bad]
    random.Random(seed).shuffle(everything)
    started = time.monotonic()
    outcomes = await asyncio.gather(*(send(port, token, request, is_good) for request, is_good in everything))
    return list(outcomes), time.monotonic() - started


def measured(outcomes: Sequence[Outcome], seconds: float, rewards: Sequence[str]) -> dict[str, Any]:
    good = [outcome for outcome in outcomes if outcome.request is None]
    bad = [outcome for outcome in outcomes if outcome.request is not None]
    times = np.array([outcome.seconds for outcome in good])
    wrong = [outcome for outcome in outcomes if not outcome.right(rewards)]
    for outcome in wrong[:20]:
        print(
            f"WRONG {outcome.request.name if outcome.request else 'good'}: {outcome.status} "
            f"{str(outcome.answer)[:200]}"
        )
    return {
        "requests": len(outcomes),
        "good": len(good),
        "good_answered": sum(outcome.right(rewards) for outcome in good),
        "bad": len(bad),
        "bad_refused": sum(outcome.right(rewards) for outcome in bad),
        "refusals": dict(sorted(Counter(str(outcome.status) for outcome in bad).items())),
        "kinds_of_attack": len({outcome.request.name for outcome in bad if outcome.request}),
        "seconds": round(seconds, 2),
        "good_per_second": round(len(good) / seconds, 2),
        "seconds_of_good": {
            name: round(float(np.percentile(times, share)), 2)
            for name, share in (("p50", 50), ("p95", 95), ("max", 100))
        },
    }


def run(options: argparse.Namespace) -> dict[str, Any]:
    from orchestration.service.deployment import running

    load = os.getloadavg()[
        0
    ]  # processes that wait for these cores: the service, its callers and all else share them
    token, root = secrets.token_urlsafe(32), options.clips.resolve()
    limits = (f"body_seconds={BODY_SECONDS}", f"body_bytes={4 << 20}", "decode_seconds=20", "clip_seconds=30")
    files = [file for file in list_clips(root) if file.path.suffix == ".mp4"]
    work = Path(options.work).resolve()
    work.mkdir(parents=True, exist_ok=True)
    config = config_from(
        options.rewards,
        (),
        limits,
        [root, work],
        options.out_folder,
        token,
        batch=options.batch,
        replicas=1,
        cpus=0.0,
        gpus=0.0,
    )
    kinds = list(
        attacks(config.limits.body_bytes, config.limits.json_bytes, BODY_SECONDS, outside_link(work))
    )
    num_bad = options.requests // 10
    bad = [kinds[index % len(kinds)] for index in range(num_bad)]
    good = [
        good_request(files[index % len(files)], upload=index % 2 == 1)
        for index in range(options.requests - num_bad)
    ]
    with running(config, HOST, options.port, temporary=options.ray_folder):
        asyncio.run(storm(options.port, token, good[:16], [], 0))  # everything is imported
        rounds = []
        for repeat in range(options.repeats):
            outcomes, seconds = asyncio.run(storm(options.port, token, good, bad, repeat))
            rounds.append(measured(outcomes, seconds, config.rewards))
            print(json.dumps(rounds[-1]), flush=True)
        outcomes, _ = asyncio.run(storm(options.port, token, good[:8], [], 0))
        well = all(outcome.right(config.rewards) for outcome in outcomes)
    return {
        **facts("ray"),
        "load_of_others": round(load, 1),
        "rewards": list(config.rewards),
        "batch": config.batch,
        "rounds": rounds,
        "well_afterwards": well,
        "holds": well
        and all(
            each["good"] == each["good_answered"] and each["bad"] == each["bad_refused"] for each in rounds
        ),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("clips", type=Path, help="a folder of generated clips, what `nava score` takes")
    parser.add_argument(
        "--out-folder", type=Path, default=Path("out"), help="where the pipeline's networks are"
    )
    parser.add_argument("--rewards", nargs="+", default=["sync_mini", "snr_estimate_db"])
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--port", type=int, default=8199)
    parser.add_argument(
        "--work", default="out/service_load", help="an allowed folder with a symlink that leads out of it"
    )
    parser.add_argument("--ray-folder", help="Ray's temporary folder")
    parser.add_argument("--to", type=Path, help="JSON")
    options = parser.parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 8192)), hard))
    found = run(options)
    print(f"holds: {found['holds']}, well afterwards: {found['well_afterwards']}")
    if options.to:
        write_json(options.to, found, indent=1)
    return 0 if found["holds"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
