"""What a set of scored clips comes to: means with intervals, coverage, and why clips have no score."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.scoring.score_files import to_scores
from experiments.scoring.statistics import bootstrap_mean, bootstrap_ratio
from experiments.scoring.store import StoredRow
from rewards.catalog import CATALOG, metrics_of
from rewards.types import Score

MAX_REASONS = 5
PIPE_WIDTH = 160  # characters, where there is no terminal to ask


def summarise(rows: Sequence[StoredRow]) -> dict[str, Any]:
    """`{clips, rewards: {name: {mean, low, high, n, eligible, reasons}}, guardrails: {name: mean}, flags:
    {limit: clips}}`.

    Means are over scored clips, with a 95 % bootstrap interval; `reward.part` rows follow their reward; a
    reward with both parts of a ratio of the catalog gets `reward (errors/words)`, the ratio of their sums.
    With totals there is a row `total`.
    """
    columns = {name: to_scores(rows, name) for name in (rows[0]["scores"] if rows else ())}
    rewards: dict[str, Any] = {}
    ratios = dict.fromkeys((m.numerator, m.denominator) for m in metrics_of(CATALOG).values() if m.numerator)
    for name, scores in columns.items():
        parts = _parts(scores)
        rewards[name] = described(scores)
        rewards |= {f"{name}.{part}": described(values) for part, values in parts.items()}
        for above, below in ratios:
            if above in parts and below in parts:
                sums, counts = ([each.value for each in parts[part]] for part in (above, below))
                pooled = bootstrap_ratio(sums, counts).as_json()
                rewards[f"{name} ({above}/{below})"] = {**pooled, "eligible": len(scores), "reasons": {}}
    if rows and "total" in rows[0]:
        rewards["total"] = described([_total(row["total"]) for row in rows])
    flagged = Counter(flag.split()[0] for row in rows for flag in row["flags"])
    return {"clips": len(rows), "rewards": rewards, "guardrails": _guardrails(rows), "flags": dict(flagged)}


def described(scores: Sequence[Score], eligible: int | None = None) -> dict[str, Any]:
    """Mean, interval and coverage of one reward's scores."""
    interval = bootstrap_mean([score.value for score in scores])
    reasons = Counter(score.reason for score in scores if score.reason)
    return {
        **interval.as_json(),
        "eligible": len(scores) if eligible is None else eligible,
        "reasons": dict(reasons.most_common()),
    }


def show(summary: Mapping[str, Any]) -> None:
    """Prints the summary as a table for a person."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None)
    for heading in ("reward", "mean", "95 % interval", "scored / eligible", "not scored because"):
        table.add_column(heading, no_wrap=heading != "not scored because")
    for name, row in summary["rewards"].items():
        reasons = sorted(row["reasons"].items(), key=lambda item: -item[1])
        unscored = "; ".join(f"{count} {reason}" for reason, count in reasons[:MAX_REASONS]) + (
            "; ..." if len(reasons) > MAX_REASONS else ""
        )
        table.add_row(
            name,
            number(row["mean"]),
            span(row),
            f"{row['n']} / {row['eligible']}",
            unscored if "." not in name else "",
        )
    Console(width=None if sys.stdout.isatty() else PIPE_WIDTH).print(table)
    means = ", ".join(f"{name} {number(value)}" for name, value in summary["guardrails"].items())
    flagged = ", ".join(f"{name} {count}" for name, count in summary["flags"].items()) or "none"
    print(f"logged, not rewarded: {means}\nclips beyond a limit: {flagged}")


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def span(row: Mapping[str, Any]) -> str:
    return "-" if row["low"] is None else f"{row['low']:.4g} .. {row['high']:.4g}"


def _parts(scores: Sequence[Score]) -> dict[str, list[Score]]:
    names = dict.fromkeys(part for score in scores for part in score.parts)
    answers = {}
    for name in names:
        values = [score.parts.get(name, math.nan) for score in scores]
        answers[name] = [
            Score(value, score.reason or ("no such part" if math.isnan(value) else ""))
            for value, score in zip(values, scores, strict=True)
        ]
    return answers


def _total(entry: Mapping[str, Any]) -> Score:
    return Score(math.nan if entry["value"] is None else entry["value"], entry["reason"])


def _guardrails(rows: Sequence[StoredRow]) -> dict[str, float | None]:
    names = dict.fromkeys(name for row in rows for name in row["guardrails"])
    found = {
        name: [row["guardrails"][name] for row in rows if row["guardrails"].get(name) is not None]
        for name in names
    }
    return {name: sum(values) / len(values) if values else None for name, values in found.items()}
