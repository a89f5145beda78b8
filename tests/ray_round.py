"""A round of alignment on an embedded Ray beside the same round on local ranks: `python
tests/ray_round.py OUT`, in the repository root.

OUT is what `nava demo` left; nothing is written there. Both align the mini by nft with the same seed, two
ranks on two cores, and Ray has two rollout and two reward workers beside. A round is timed from one row of
metrics.jsonl to the next, so everything between counts, checkpoints too; starting processes, the first round
(which warms up) and the last (with held-out prompts) do not. Runs take turns. Processor seconds are those of
all processes of a run: what else the machine does disturbs them less than the clock.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.benchmarks.harness import facts
from experiments.scoring.statistics import bootstrap_ratio
from pretrain.files import write_json

ALLOWED = 1.15
MARK = "NAVA_RAY_ROUND"
KINDS = ("local", "staleness 0", "staleness 1")
RANKS = 2


@dataclasses.dataclass(frozen=True)
class Round:
    """Seconds between two rows."""

    wall: float
    processor: float


def align(kind: str, out: Path, to: Path, rounds: int) -> None:
    """One run, in this process; its numbers are those of the demo but for the number of rounds."""
    from experiments.alignment.inputs import align_run
    from experiments.job import StageJob
    from experiments.layout import Layout
    from experiments.recipes.load import load_recipe
    from experiments.scoring.latents import options_for
    from finetune.launch import align_model
    from orchestration.align import align_on_ray
    from orchestration.config import RayConfig

    nothing = [
        f"align.nft.rounds={rounds}",
        "align.sequence=[nft]",
        f"align.stop.every={rounds + 1}",
        "align.samples=0",
    ]
    recipe = load_recipe("mini", Path("params.yaml"), nothing)
    run = dataclasses.replace(align_run(StageJob(recipe=recipe, layout=Layout(out=out))), out=to)
    if kind == "local":
        align_model(run, RANKS)
    else:
        align_on_ray(run, RANKS, RayConfig(staleness=int(kind.removeprefix("staleness "))), options_for)


def timed(kind: str, out: Path, rounds: int) -> tuple[list[Round], dict[str, Any]]:
    """The rounds that count, and the last row."""
    mark = uuid.uuid4().hex
    with tempfile.TemporaryDirectory(prefix="nava_round", dir=os.environ.get("TMPDIR")) as folder:
        to, log = Path(folder) / "align", (Path(folder) / "log.txt").open("w")
        command = [sys.executable, __file__, str(out)]
        command += ["--run", kind, "--to", str(to), "--rounds", str(rounds)]
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, MARK: mark}
        )
        seen: list[tuple[float, float]] = []  # clock and processor seconds at each row
        path = to / "metrics.jsonl"
        while process.poll() is None:
            rows = path.read_text().count("\n") if path.is_file() else 0
            if rows > len(seen):
                seen += [(time.monotonic(), processor_seconds(mark))] * (rows - len(seen))
            time.sleep(0.05)
        if process.returncode:
            raise SystemExit(f"{kind}: {(Path(folder) / 'log.txt').read_text()[-2000:]}")
        last = json.loads(path.read_text().splitlines()[-1])
    counted = itertools.pairwise(seen[1:-1])  # row 0 is before the rounds
    return [Round(after[0] - before[0], after[1] - before[1]) for before, after in counted], last


def processor_seconds(mark: str) -> float:
    """Of all living processes that have the mark in their environment."""
    ticks, wanted = 0, f"{MARK}={mark}".encode()
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                if wanted in (folder / "environ").read_bytes():
                    fields = (folder / "stat").read_text().rpartition(")")[2].split()
                    ticks += int(fields[11]) + int(fields[12])
            except OSError:
                continue
    return ticks / os.sysconf("SC_CLK_TCK")


def compared(runs: dict[str, list[list[Round]]]) -> dict[str, Any]:
    """Seconds a round of each kind, and Ray's over the local ranks' of the same round and turn."""
    found: dict[str, Any] = {}
    local = [one for run in runs["local"] for one in run]
    for kind, some in runs.items():
        mine = [one for run in some for one in run]
        row: dict[str, Any] = {"rounds": len(mine)}
        for name in ("wall", "processor"):
            spent, theirs = [getattr(one, name) for one in mine], [getattr(one, name) for one in local]
            row[f"{name}_seconds"] = round(sum(spent) / len(spent), 2)
            row[f"{name}_ratio"] = bootstrap_ratio(spent, theirs).as_json()
        found[kind] = row
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("demo", type=Path, help="the out/ folder of a finished `nava demo`")
    parser.add_argument(
        "--rounds", type=int, default=5, help="of each run; all but the first and the last count"
    )
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--out", type=Path, help="JSON")
    parser.add_argument("--run", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--to", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.run:
        align(given.run, given.demo, given.to, given.rounds)
        return
    if given.rounds < 3 or given.repeats < 1:
        parser.error(
            f"rounds {given.rounds}, repeats {given.repeats}: give at least 3 rounds, of which one counts, "
            "and 1 repeat"
        )
    runs: dict[str, list[list[Round]]] = {kind: [] for kind in KINDS}
    rewards: dict[str, set[str]] = {kind: set() for kind in KINDS}
    loads = []
    for turn in range(given.repeats):
        for kind in KINDS[turn % len(KINDS) :] + KINDS[: turn % len(KINDS)]:
            loads.append(round(os.getloadavg()[0], 1))
            rounds, last = timed(kind, given.demo, given.rounds)
            runs[kind].append(rounds)
            rewards[kind].add(f"{last['nft/loss']:.5f}")
            print(
                f"{kind}: "
                f"{', '.join(f'{one.wall:.1f} s ({one.processor:.1f} s of processor)' for one in rounds)}",
                flush=True,
            )
    found = {
        **facts("ray"),
        "load_before_each_run": loads,
        "allowed": ALLOWED,
        "clips_a_round": 192,
        "last_loss": {kind: sorted(some) for kind, some in rewards.items()},
        **compared(runs),
    }
    for kind in KINDS[1:]:
        wall, processor = found[kind]["wall_ratio"], found[kind]["processor_ratio"]
        interval = (
            f"{wall['mean']:.3f} of the local round's time (95 %: {wall['low']:.3f} to "
            f"{wall['high']:.3f}, {wall['n']} rounds)"
        )
        print(
            f"{kind}: {found[kind]['wall_seconds']:.1f} s a round, {interval}; {processor['mean']:.3f} of "
            "its processor seconds"
        )
    if given.out:
        write_json(given.out, found, indent=1)
    if found["staleness 0"]["wall_ratio"]["mean"] > ALLOWED:
        raise SystemExit(f"more than {ALLOWED} of the local round")


if __name__ == "__main__":
    main()
