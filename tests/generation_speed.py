"""How much faster two ranks on two cores make clips than one rank on one core, in turns, by one command.

    python tests/generation_speed.py MODEL CODEC PROMPTS [--limit 32] [--turns 3]

Counted from the first batch that is done to the last clip, so that loading is left out, which both do at
once. Each turn measures both; the ratio is that of the sums of seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from pretrain.generate import Spread, generate
from pretrain.generation.config import GenerateConfig
from pretrain.generation.order import ClipDone, ClipOrder
from pretrain.generation.ranks import on_ranks


def timed(ranks: int, marks: list[float]) -> Spread:
    """On as many ranks and cores; the time of each clip goes into `marks`."""
    spread = on_ranks(ranks)

    def run(order: ClipOrder, begin: Callable[[], None]) -> Iterator[ClipDone]:
        os.sched_setaffinity(0, range(ranks))
        for clip in spread.run(order, begin):
            marks.append(time.perf_counter())
            yield clip

    return Spread(run)


def seconds(given: argparse.Namespace, ranks: int) -> float:
    """Per clip, after the first batches."""
    marks: list[float] = []
    config = GenerateConfig(batch_size=given.batch, threads=1)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "clips"
        generate(
            config, given.model, given.codec, given.prompts, out, given.limit, spread=timed(ranks, marks)
        )
    skipped = given.batch * ranks
    return (marks[-1] - marks[skipped - 1]) / (len(marks) - skipped)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for name in ("model", "codec", "prompts"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--limit", type=int, default=32)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--turns", type=int, default=3)
    given = parser.parse_args()
    turns = [{ranks: seconds(given, ranks) for ranks in (1, 2)} for _ in range(given.turns)]
    each = [round(turn[1] / turn[2], 3) for turn in turns]
    ratio = sum(turn[1] for turn in turns) / sum(turn[2] for turn in turns)
    load = os.getloadavg()[0]
    print(json.dumps({"ratio": round(ratio, 3), "turns": each, "seconds": turns, "load": load}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
