"""Many raters at once against one server of the vote page: lost votes, times, memory.

`python tests/voting_load.py --raters 50 --votes 10 [--postgres]` prints them as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from services import free_port, needs_postgres, postgres
from sqlalchemy import func, select
from voting_world import MODELS, TOKEN, RaterClient, config_of, make_world

from experiments.voting import tables
from experiments.voting.database import open_database, reading
from experiments.voting.sets import read_cases
from experiments.voting.store import make_links
from experiments.voting.survey import add_survey

ROOT = Path(__file__).resolve().parents[1]
PIECE = 65_536  # bytes of a range


def load(raters: int, votes: int, think_s: float = 1.0, place: str = "") -> dict[str, Any]:
    """Times in ms of a vote and of a range of a clip; `lost` and `extra` votes; MiB of the server."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = make_world(Path(temporary) / "world", num=votes, per_rater=votes)
        if place:
            (folder / "files" / "survey").rename(folder / "files" / "of-sqlite")
        place = place or str(folder / "votes.db")
        engine = open_database(place)
        if not (folder / "files" / "survey").exists():
            cases = read_cases([(model, folder / "sets" / model) for model in MODELS])
            add_survey(engine, "survey", config_of(per_rater=votes), cases, folder / "files")
        secrets = [secret for _, secret in make_links(engine, "survey", raters)]
        port = free_port()
        server = _server(folder, place, port)
        try:
            measured = _measure(f"http://127.0.0.1:{port}", secrets, votes, think_s, server)
        finally:
            server.terminate()
            server.wait()
        with reading(engine) as connection:
            stored = connection.execute(select(func.count()).select_from(tables.ballots)).scalar_one()
        engine.dispose()
    return {**measured, "stored": stored, "lost": measured["acknowledged"] - stored}


def _server(folder: Path, place: str, port: int) -> subprocess.Popen[bytes]:
    (folder / "token").write_text(TOKEN)
    command = [sys.executable, "-m", "experiments.cli", "gsb", "serve", "--votes", place]
    command += ["--port", str(port), "--folder", "files", "--token-file", "token"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path[1:]])}
    server = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL)
    while True:
        try:
            httpx.get(f"http://127.0.0.1:{port}/healthz")
            return server
        except httpx.TransportError:
            assert server.poll() is None, "the server ended"
            time.sleep(0.1)


def _measure(
    url: str, secrets: Sequence[str], votes: int, think_s: float, server: subprocess.Popen[bytes]
) -> dict[str, Any]:
    voting: list[float] = []
    ranges: list[float] = []
    rss = [_rss_mib(server)]

    def rate(number: int, secret: str) -> None:
        rng = np.random.default_rng(number)
        time.sleep(float(rng.random()) * think_s)
        with httpx.Client(timeout=60) as client:
            rater = RaterClient(f"{url}/r/{secret}", client)
            for _ in range(votes):
                state = rater.state()
                for side in ("left", "right"):
                    ranges.extend(_stream(client, f"{rater.link}/{state['task'][side]}"))
                time.sleep(think_s * (0.5 + float(rng.random())))
                body = rater.body(state, ["left", "tie", "right"])
                begun = time.perf_counter()
                rater.send("votes", body).raise_for_status()
                voting.append(time.perf_counter() - begun)

    threads = [threading.Thread(target=rate, args=pair) for pair in enumerate(secrets)]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        rss.append(_rss_mib(server))
        time.sleep(0.5)
    seconds = time.perf_counter() - begun
    return {
        "raters": len(secrets),
        "acknowledged": len(voting),
        "seconds": round(seconds, 1),
        "vote_ms": _percentiles(voting),
        "range_ms": _percentiles(ranges),
        "rss_mib": {"start": rss[0], "end": rss[-1], "most": max(rss)},
    }


def _stream(client: httpx.Client, url: str) -> list[float]:
    """Seconds of each range of a clip."""
    times, first, size = [], 0, 1
    while first < size:
        begun = time.perf_counter()
        answer = client.get(url, headers={"Range": f"bytes={first}-{first + PIECE - 1}"})
        times.append(time.perf_counter() - begun)
        answer.raise_for_status()
        size = int(answer.headers["content-range"].rpartition("/")[2])
        first += len(answer.content)
    return times


def _percentiles(seconds: Sequence[float]) -> dict[str, float]:
    return {f"p{q}": round(1000 * float(np.percentile(seconds, q)), 1) for q in (50, 95, 99)}


def _rss_mib(process: subprocess.Popen[bytes]) -> float:
    return round(psutil.Process(process.pid).memory_info().rss / 2**20, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--raters", type=int, default=50)
    parser.add_argument("--votes", type=int, default=10, help="of each rater")
    parser.add_argument("--think", type=float, default=1.0, help="seconds between clips and vote")
    parser.add_argument("--postgres", action="store_true")
    given = parser.parse_args()
    with ExitStack() as stack:
        place = stack.enter_context(postgres(needs_postgres(), "word")) if given.postgres else ""
        print(json.dumps(load(given.raters, given.votes, given.think, place), indent=1))


if __name__ == "__main__":
    main()
