"""What the front costs: `python tests/service_front_speed.py CLIPS --to OUT.json`.

Requests through the front and to Ray Serve behind it, in turn, of the same running service: seconds of each,
and clips a second of eight callers at once.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from front_world import exchange, request
from service_load import good_request

from experiments.benchmarks.harness import facts
from experiments.scoring.clips import list_clips
from experiments.serving import config_from
from pretrain.files import write_json

CALLERS = 8


def run(options: argparse.Namespace) -> dict[str, Any]:
    from orchestration.service import deployment

    told: list[Any] = []
    front_config = deployment._front
    deployment._front = lambda *arguments: told.append(front_config(*arguments)) or told[-1]  # type: ignore
    token, root = secrets.token_urlsafe(32), options.clips.resolve()
    files = [file for file in list_clips(root) if file.path.suffix == ".mp4"]
    sizes = {"batch": 8, "replicas": 1, "cpus": 0.0, "gpus": 0.0}
    config = config_from(options.rewards, (), (), [root], options.out_folder, token, **sizes)
    uploads = [good_request(file, upload=True) for file in files]
    load = os.getloadavg()[0]
    with deployment.running(config, "127.0.0.1", options.port, temporary=options.ray_folder):
        ways = {"front": (options.port, token), "serve": (told[0].backend_port, told[0].backend_token)}

        def ask(way: str, index: int) -> float:
            port, shown = ways[way]
            upload, started = uploads[index % len(uploads)], time.perf_counter()
            kind = f"Content-Type: {upload.headers['content-type']}\r\nConnection: close\r\n"
            status, _, answer = exchange(port, request(body=upload.body, token=shown, headers=kind))
            assert status == 200 and "scores" in json.loads(answer), (way, status, answer[:200])
            return time.perf_counter() - started

        for index in range(10):
            for way in ways:
                ask(way, index)
        single = {way: [] for way in ways}
        rates = {way: [] for way in ways}
        for index in range(options.requests):
            for way in sorted(ways, reverse=bool(index % 2)):
                single[way].append(ask(way, index))
        with ThreadPoolExecutor(CALLERS) as pool:
            for repeat in range(options.repeats):
                for way in sorted(ways, reverse=bool(repeat % 2)):
                    started = time.perf_counter()
                    list(pool.map(lambda index, way=way: ask(way, index), range(8 * CALLERS)))
                    rates[way].append(8 * CALLERS / (time.perf_counter() - started))
    ratios = np.array(single["front"]) / np.array(single["serve"])
    return {
        **facts("ray"),
        "load_of_others": round(load, 1),
        "rewards": list(config.rewards),
        "seconds": {way: round(float(np.median(times)), 4) for way, times in single.items()},
        "seconds_ratio_median": round(float(np.median(ratios)), 3),
        "seconds_ratio_of_medians": round(float(np.median(single["front"]) / np.median(single["serve"])), 3),
        "clips_per_second": {way: [round(rate, 1) for rate in found] for way, found in rates.items()},
        "rate_ratio": round(float(np.median(rates["front"]) / np.median(rates["serve"])), 3),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("clips", type=Path)
    parser.add_argument(
        "--out-folder", type=Path, default=Path("out"), help="where the pipeline's networks are"
    )
    parser.add_argument("--rewards", nargs="+", default=["sync_mini", "snr_estimate_db"])
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=6)
    parser.add_argument("--port", type=int, default=8198)
    parser.add_argument("--ray-folder", help="Ray's temporary folder")
    parser.add_argument("--to", type=Path, help="JSON")
    options = parser.parse_args()
    found = run(options)
    print(json.dumps(found, indent=1))
    if options.to:
        write_json(options.to, found, indent=1)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
