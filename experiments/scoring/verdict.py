"""What `nava score` says of its rows: the summary with its conditions, and what makes it fail."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from experiments.scoring.conditions import TOTAL, Checked, Condition, checked
from experiments.scoring.store import StoredRow
from experiments.scoring.summary import num_scored, show, summarise


@dataclass(frozen=True)
class CheckedSummary:
    """The summary as JSON values, the conditions in it, and one line for each thing that is wrong."""

    summary: Mapping[str, Any]
    conditions: Sequence[Checked]
    wrong: Sequence[str]


def verdict(
    rows: Sequence[StoredRow],
    left_out: Mapping[str, int],
    conditions: Sequence[Condition],
    min_scored: float | None,
    max_unreadable: float,
) -> CheckedSummary:
    """`summary` with `conditions` [{condition, status, mean, low, high, n, eligible}] and `passed`."""
    summary = summarise(rows, left_out)
    names = [*rows[0]["scores"], *([TOTAL] if TOTAL in rows[0] else [])]
    results = checked(conditions, min_scored, summary, names, rows[0].get("called", {}))
    wrong = [result.line() for result in results if result.status == "FAILED"]
    bad = sum(summary["unreadable"].values())
    if bad > max_unreadable * len(rows):
        first = next(row["unreadable"] for row in rows if "unreadable" in row)
        wrong.append(
            f"{bad} of {len(rows)} clips cannot be read, more than --max-unreadable {max_unreadable:g} "
            f"allows; the first: {first['file']}: {first['why']}"
        )
    elif not num_scored(summary):
        wrong.append(f"no clip has a score; the first reason: {_first_reason(rows)}")
    described = [asdict(result) for result in results]
    return CheckedSummary({**summary, "conditions": described, "passed": not wrong}, results, wrong)


def told(found: CheckedSummary, out: Path) -> None:
    """Prints the table, the conditions and advice for a person."""
    show(found.summary)
    for result in found.conditions:
        print(result.line())
    print(f"scores  {out}")


def _first_reason(rows: Sequence[StoredRow]) -> str:
    return next(
        f"{row['clip']}: {name}: {score['reason']}" for row in rows for name, score in row["scores"].items()
    )
