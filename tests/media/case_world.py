"""What the cases share: where they are, what may be used, and the lines of the table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
BASE = "rotation__base.mp4"  # the perfect clip


@dataclass(frozen=True)
class Line:
    """One measurement of the table."""

    file: str
    way: str  # score, serve, encode, reader, prompt check, ...
    measured: str
    right: str
    ok: bool


@dataclass(frozen=True)
class World:
    """The cases and what they need; parts that are None leave their lines out."""

    cases: Path
    scratch: Path
    syncnet: Path | None = None
    codec: Path | None = None
    model: Path | None = None

    def rows(self, case: str) -> list[dict[str, Any]]:
        """Rows of a case's manifest with absolute paths."""
        lines = (self.cases / f"{case}.jsonl").read_text().splitlines()
        return [self.absolute(json.loads(line)) for line in lines]

    def base(self, name: str, **changes: Any) -> dict[str, Any]:
        """The perfect clip's row with another file or condition."""
        row = next(row for row in self.rows("rotation") if row["data_id"] == "base.mp4")
        return self.absolute({**row, "data_id": name, **changes})

    def absolute(self, row: dict[str, Any]) -> dict[str, Any]:
        paths = {key: str(self.cases / row[key]) for key in ("video", "image_path") if key in row}
        return {**row, **paths}


def nava(*arguments: str | Path, timeout_s: float = 600) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own, answers as text."""
    return subprocess.run(
        [sys.executable, "-m", "experiments.cli", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "400"},
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    said = [line for line in (done.stderr + "\n" + done.stdout).splitlines() if line.strip()]
    return said[-1].strip() if said else ""


def scored(
    world: World, rows: Sequence[dict[str, Any]], rewards: Sequence[str], settings: Sequence[str] = ()
) -> dict[str, dict[str, Any]]:
    """Rows of `nava score` by clip. Where the whole run ends, each row is tried in a run of its own.

    `ended` of such a row is what its run said.
    """
    listing = world.scratch / f"rows_{len(list(world.scratch.iterdir()))}.jsonl"
    listing.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    out = listing.with_suffix(".scores.jsonl")
    options = [option for setting in settings for option in ("--set", setting)]
    done = nava("score", listing, "--rewards", *rewards, *options, "--out", out)
    if done.returncode and len(rows) > 1:
        return {name: row for one in rows for name, row in scored(world, [one], rewards, settings).items()}
    if not out.is_file() or not out.read_text().strip():
        return {rows[0]["data_id"]: {"ended": last_line(done), "scores": {}, "guardrails": {}}}
    return {row["clip"]: row for row in map(json.loads, out.read_text().splitlines())}


def value_of(row: dict[str, Any], reward: str) -> tuple[float | None, str]:
    """Value, and the reason where there is none."""
    if "ended" in row:
        return None, f"the run ended: {row['ended']}"
    score = row["scores"].get(reward, {})
    return score.get("value"), score.get("reason", "")


def near(file: str, way: str, row: dict[str, Any], reward: str, right: float, tolerance: float) -> Line:
    """A score and its right value."""
    value, reason = value_of(row, reward)
    measured = reason if value is None else f"{value:.3f}"
    ok = value is not None and abs(value - right) <= tolerance
    return Line(file, way, f"{reward} {measured}", f"{right:.3f} ± {tolerance:g}", ok)


def said_of(done: subprocess.CompletedProcess[str]) -> str:
    return done.stdout + "\n" + done.stderr


def short(text: str, most: int = 100) -> str:
    return text if len(text) <= most else "..." + text[-most:]
