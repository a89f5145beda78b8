"""What an alignment left behind, and how far one that was killed on its way is from one that was not."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TOLERANCE = 1e-5


@dataclass(frozen=True)
class Left:
    """Of one run: how it ended, its curves, and which samples each round learned from."""

    status: str
    rounds: int
    curves: Mapping[int, Mapping[str, float]]  # round (0 = before the first) -> losses and rewards
    repeated_rows: int  # of metrics.jsonl
    samples: Mapping[int, tuple[int, ...]]  # round -> ids
    repeated_rounds: int  # of the ledger
    restarts: int  # of workers, as the ledger counts them
    adapter: Mapping[str, Any]  # name -> tensor


@dataclass(frozen=True)
class Verdict:
    """Differences to a run that nobody killed; all zero (curves: within TOLERANCE) where nothing was lost."""

    finished: bool
    rounds_missing: int
    rounds_doubled: int
    samples_lost: int
    samples_doubled: int
    curve: float  # largest difference of any loss or reward of any round
    adapter: float  # largest difference of any weight

    @property
    def same(self) -> bool:
        counted = self.rounds_missing + self.rounds_doubled + self.samples_lost + self.samples_doubled
        return self.finished and not counted and self.curve <= TOLERANCE and self.adapter <= TOLERANCE


def read(out: Path) -> Left:
    """Raises FileNotFoundError where the run has not left what a finished one leaves."""
    from safetensors.torch import load_file

    state = json.loads((out / "state.json").read_text())
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    ledger = [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]
    return Left(
        status=state["status"],
        rounds=state["step"],
        curves={row["step"]: {name: value for name, value in row.items() if _curve(name)} for row in rows},
        repeated_rows=len(rows) - len({row["step"] for row in rows}),
        samples={row["round"]: tuple(row["samples"]) for row in ledger},
        repeated_rounds=len(ledger) - len({row["round"] for row in ledger}),
        restarts=sum(row["restarts"] for row in ledger),
        adapter=load_file(out / "adapter" / "adapter_model.safetensors"),
    )


def _curve(name: str) -> bool:
    return name.endswith("/loss") or "reward/" in name or name == "grad_norm"


def compare(found: Left, whole: Left) -> Verdict:
    """`found` was killed on its way, `whole` was not."""
    rounds = set(whole.curves) | set(whole.samples)
    there = set(found.curves) & set(found.samples) | ({0} & set(found.curves))
    lost = doubled = 0
    for number, samples in whole.samples.items():
        expected, learned = Counter(samples), Counter(found.samples.get(number, ()))
        lost += (expected - learned).total()
        doubled += (learned - expected).total()
    doubled += sum(len(samples) for number, samples in found.samples.items() if number not in whole.samples)
    return Verdict(
        finished=found.status == "finished" and found.rounds == whole.rounds,
        rounds_missing=len(rounds - there),
        rounds_doubled=found.repeated_rows + found.repeated_rounds + len(there - rounds),
        samples_lost=lost,
        samples_doubled=doubled,
        curve=_curve_difference(found.curves, whole.curves),
        adapter=_weight_difference(found.adapter, whole.adapter),
    )


def _curve_difference(
    found: Mapping[int, Mapping[str, float]], whole: Mapping[int, Mapping[str, float]]
) -> float:
    """Infinite where a value is on one side only."""
    differences = [0.0]
    for number, values in whole.items():
        others = found.get(number, {})
        differences += [_difference(others.get(name, float("inf")), value) for name, value in values.items()]
        differences += [float("inf") for name in others if name not in values]
    return max(differences)


def _weight_difference(found: Mapping[str, Any], whole: Mapping[str, Any]) -> float:
    if {name: value.shape for name, value in found.items()} != {
        name: value.shape for name, value in whole.items()
    }:
        return float("inf")
    return max(
        (_difference(float((found[name] - whole[name]).abs().max()), 0.0) for name in whole), default=0.0
    )


def _difference(found: float, wanted: float) -> float:
    """Infinite where one of them is NaN, which `max` and every comparison would let pass."""
    difference = abs(found - wanted)
    return float("inf") if math.isnan(difference) else difference
