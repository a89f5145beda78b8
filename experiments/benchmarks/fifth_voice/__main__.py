"""The example of fine-tuning: `python -m experiments.benchmarks.fifth_voice world FOLDER` writes 40 clips of
a voice and a face that the mini never met, with prompts of other words; `measure FOLDER` compares adapters
that were trained on them with the model that they started from.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from experiments.benchmarks.fifth_voice.report import compare
from experiments.benchmarks.fifth_voice.world import CHOOSING, CLIPS, JUDGING, PROMPTS, write_world


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.fifth_voice", description=__doc__)
    verbs = parser.add_subparsers(required=True, dest="verb")
    world = verbs.add_parser("world", help="write the clips and prompts")
    world.add_argument("folder", type=Path)
    measure = verbs.add_parser(
        "measure", help="similarity, nearest voice and word errors, new and old voices"
    )
    measure.add_argument("folder", type=Path, help="that `world` wrote")
    measure.add_argument("--demo", type=Path, default=Path("out"), help="OUT of the demo")
    measure.add_argument(
        "--adapters", type=Path, nargs="+", default=[], help="of one setting, one for each seed of training"
    )
    measure.add_argument("--prompts", choices=(JUDGING, CHOOSING), default=JUDGING)
    measure.add_argument("--limit", type=int, default=PROMPTS, help="prompts of each kind")
    measure.add_argument("--to", type=Path, help="JSON")
    given = parser.parse_args(arguments)
    if given.verb == "world":
        write_world(given.folder)
        print(f"{CLIPS} clips and {PROMPTS} prompts for each of {JUDGING} and {CHOOSING} in {given.folder}")
        return
    compare(given.folder, given.demo, given.adapters, given.prompts, given.limit, given.to)


if __name__ == "__main__":
    main(sys.argv[1:])
