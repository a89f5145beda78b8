"""Runs every case of a folder and prints file -> measured -> right -> ok, as a table in Markdown.

`python tests/media/cases.py CASES_DIR --syncnet out/syncnet/reward --codec out/codec --model MODEL`

CASES_DIR holds the inputs with their notes. Without a network lines about sync are left out, without a codec
those about latents, without a model those about `nava generate`. Exit code 1 where a line is not ok.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent.parent)]

from case_clips import clip_lines  # noqa: E402
from case_generate import generated_lines  # noqa: E402
from case_prepare import prepared_lines  # noqa: E402
from case_texts import text_lines  # noqa: E402
from case_world import Line, World  # noqa: E402

PARTS: dict[str, Callable[[World], Iterator[Line]]] = {
    "clips": clip_lines,
    "prepare": prepared_lines,
    "texts": text_lines,
    "generate": generated_lines,
}


def table(lines: Iterator[Line]) -> int:
    """Prints the lines as they come; how many are not ok."""
    print("| file | way | measured | right | ok |\n|---|---|---|---|---|")
    wrong = 0
    for line in lines:
        cells = (line.file, line.way, line.measured, line.right, "yes" if line.ok else "**no**")
        print(
            "| " + " | ".join(cell.replace("|", "/").replace("\n", " ") for cell in cells) + " |", flush=True
        )
        wrong += not line.ok
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", type=Path)
    parser.add_argument("--syncnet", type=Path, help="a network of stage syncnet")
    parser.add_argument("--codec", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    given = parser.parse_args()
    folders = {
        name: path.resolve() if path else None
        for name, path in (("syncnet", given.syncnet), ("codec", given.codec), ("model", given.model))
    }
    with tempfile.TemporaryDirectory() as scratch:
        world = World(given.cases.resolve(), Path(scratch), **folders)
        wrong = table(line for part in given.parts for line in PARTS[part](world))
    print(f"\n{wrong} lines are not ok")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
