"""What `nava prepare --ray` loses in scheduling: workers that sleep as long as sources were measured to take.

    python tests/sleeping_preparation.py --workers 8 --count 96 [--work .my_set.work] [--to FILE.json]

--work: results of a preparation, whose CPU seconds by source are slept; without, MEASURED_S. The ideal is the
sum of all sleeps over the number of workers. The embedded Ray and its worker processes are started before, as
`start_s` says: on a machine without other work that is some seconds of a preparation of hours.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchestration.preparation import ray_workers
from pretrain.files import write_json
from pretrain.progress import track_sized

# CPU seconds of talking heads of 4, 8, 12, 20, 30 and 60 s, 640x360, words recognised, one thread each
MEASURED_S = (3.24, 9.01, 10.56, 21.39, 36.6, 68.67)


def measured(work: Path) -> list[float]:
    """Seconds of each source in a folder of results."""
    results = [json.loads(path.read_text()) for path in sorted(work.glob("*/result.json"))]
    return [seconds for one in results if (seconds := _seconds(one["stage_s"])) > 0]


def _seconds(stage_s: dict[str, float]) -> float:
    """Of all stages; `cut` has those of the steps and of writing in it."""
    return sum(stage_s.get(name, 0.0) for name in ("speech", "words", "scenes", "cut"))


def sleep_through(seconds: Sequence[float], nproc: int) -> dict[str, Any]:
    """Sleeps on an embedded Ray, the longest first as `nava prepare` has them."""

    def asleep(one_s: float) -> float:  # defined here, Ray sends it by value
        time.sleep(one_s)
        return one_s

    ordered = sorted(seconds, reverse=True)
    with ray_workers("local", nproc) as workers:
        begun_s = time.monotonic()
        for _ in range(2):
            list(workers.each(asleep, [1.0] * 2 * nproc))
        start_s, begun_s = time.monotonic() - begun_s, time.monotonic()
        answers = ((answer, answer) for _, answer in workers.each(asleep, ordered))
        slept = list(track_sized(answers, len(ordered), sum(ordered), "sleeps"))
        took_s = time.monotonic() - begun_s
    if sorted(slept) != sorted(ordered):
        raise AssertionError(f"{len(slept)} of {len(ordered)} sources came back")
    ideal_s = sum(ordered) / nproc
    return {
        "workers": nproc,
        "sources": len(ordered),
        "mean_s": round(sum(ordered) / len(ordered), 3),
        "ideal_s": round(ideal_s, 2),
        "took_s": round(took_s, 2),
        "start_s": round(start_s, 2),
        "share_of_ideal": round(ideal_s / took_s, 4),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--count", type=int, default=96)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--to", type=Path)
    given = parser.parse_args()
    known = measured(given.work) if given.work else list(MEASURED_S)
    found = sleep_through(random.Random(given.seed).choices(known, k=given.count), given.workers)
    print(json.dumps(found))
    if given.to:
        write_json(given.to, {"command": " ".join(sys.argv), **found})
    return 0 if found["share_of_ideal"] >= 0.85 else 1


if __name__ == "__main__":
    sys.exit(main())
