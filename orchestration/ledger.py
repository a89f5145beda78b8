"""Which samples were learned from, round by round, on disk: out/rounds.jsonl, so that lost or doubled ones show."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pretrain.files import replacing

LEDGER = "rounds.jsonl"


class Ledger:
    """One row per finished round."""

    def __init__(self, out: Path) -> None:
        self.path = out / LEDGER

    def rows(self) -> list[dict[str, Any]]:
        """Whole rows; what a kill left of a last one is not."""
        lines = self.path.read_text().splitlines() if self.path.is_file() else []
        return [json.loads(line) for line in lines if line.endswith("}")]

    def cut(self, rounds: int) -> None:
        """Forget rounds after `rounds`: they are played again."""
        kept = [row for row in self.rows() if row["round"] <= rounds]
        with replacing(self.path) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in kept))

    def add(self, rounds: int, name: str, version: str, samples: Sequence[int], restarts: int) -> None:
        """Round number `rounds` (from 1) is learned; restarts: workers that were lost and replaced since the round before."""
        ids = sorted(samples)
        digest = hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:16]
        row = {"round": rounds, "task": name, "version": version, "clips": len(ids), "digest": digest, "restarts": restarts, "samples": ids}
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
