"""What a set of scored clips comes to: means with intervals, coverage, and why clips have no score."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from experiments.scoring.rows import said_by
from experiments.scoring.score_files import to_scores
from experiments.scoring.statistics import bootstrap_mean, bootstrap_ratio
from experiments.scoring.store import StoredRow
from pretrain.terminal import plain, shown_all
from rewards.catalog import ratio_parts
from rewards.media_folder import left_out_line
from rewards.types import Score

if TYPE_CHECKING:
    from rich.table import Table

MAX_REASONS = 5
PIPE_WIDTH = 160  # characters, where there is no terminal to ask


def summarise(rows: Sequence[StoredRow], left_out: Mapping[str, int] = {}) -> dict[str, Any]:
    """`{clips, prompts, rewards: {name: {mean, low, high, n, eligible, reasons}}, guardrails: {name: mean},
    flags: {limit: clips}, unreadable: {reason: clips}, failed: {reward: {clips, first}}, mended: clips,
    floored: {item: clips}, left_out}`.

    Means are over scored clips, with a 95 % bootstrap interval that draws prompts with all their clips
    (`group`; a clip without a prompt is alone); `clusters` beside n: of how many prompts they are, where some
    share one. `reward.part` rows follow their reward; a
    reward with both parts of a ratio of the catalog gets `reward (errors/words)`, the ratio of their sums.
    With totals there is a row `total`. Reasons are counted without the names of files and clips. `left_out`:
    what lies in the folder of the clips beside them.
    """
    columns = {name: _column(rows, name) for name in (rows[0]["scores"] if rows else ())}
    rewards: dict[str, Any] = {}
    prompts = [said_by(row) for row in rows]
    ratios = ratio_parts()
    for name, scores in columns.items():
        parts = _parts(scores)
        rewards[name] = described(scores, prompts)
        rewards |= {f"{name}.{part}": described(values, prompts) for part, values in parts.items()}
        for above, below in ratios:
            if above in parts and below in parts:
                sums, counts = ([each.value for each in parts[part]] for part in (above, below))
                pooled = bootstrap_ratio(sums, counts, clusters=prompts).as_json()
                rewards[f"{name} ({above}/{below})"] = {**pooled, "eligible": len(scores), "reasons": {}}
    if rows and "total" in rows[0]:
        rewards["total"] = described([_total(row["total"]) for row in rows], prompts)
    flagged = Counter(flag.split()[0] for row in rows for flag in row["flags"])
    floored = Counter(item for row in rows for item in row.get("total", {}).get("floored", ()))
    return {
        "clips": len(rows),
        "prompts": len(set(prompts)),
        "rewards": rewards,
        "guardrails": _guardrails(rows),
        "flags": dict(flagged),
        "unreadable": _unreadable(rows),
        "failed": _failed(rows),
        "mended": sum(bool(row.get("mended")) for row in rows),
        "floored": dict(floored),
        "left_out": dict(left_out),
    }


def means(summary: Mapping[str, Any]) -> dict[str, float]:
    """Flat numbers for MLflow: the mean of each reward, beside it its interval and count as `.../low`,
    `.../high` and `.../n`; guardrails' means as `guardrails/name`."""
    found = {f"guardrails/{name}": value for name, value in summary["guardrails"].items()}
    for name, row in summary["rewards"].items():
        found |= {name: row["mean"], **{f"{name}/{part}": row[part] for part in ("low", "high", "n")}}
    return {name: float(value) for name, value in found.items() if value is not None}


def num_scored(summary: Mapping[str, Any]) -> int:
    """Clips that the reward with the most scores has scored."""
    return max((row["n"] for name, row in summary["rewards"].items() if name != "total"), default=0)


def described(scores: Sequence[Score], prompts: Sequence[Hashable] | None = None) -> dict[str, Any]:
    """Mean, interval and coverage of one reward's scores; prompts: of each clip, None = one each."""
    interval = bootstrap_mean([score.value for score in scores], clusters=prompts)
    reasons = Counter(score.reason for score in scores if score.reason)
    return {
        **interval.as_json(),
        "eligible": len(scores),
        "reasons": dict(reasons.most_common()),
    }


def show(summary: Mapping[str, Any]) -> None:
    """Prints the summary as a table for a person."""
    from rich.markup import escape
    from rich.table import Table

    table, summary = Table(box=None), shown_all(summary)
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
            f"{row['n']} / {row['eligible']}"
            + (f", of {row['clusters']} prompts" if "clusters" in row else ""),
            escape(unscored) if "." not in name else "",
        )
    print_table(table)
    for line in _notes(summary):
        print(line)


def print_table(table: Table) -> None:
    """As wide as the terminal; wide enough for whole lines in a pipe."""
    from rich.console import Console

    Console(file=plain(sys.stdout), width=None if sys.stdout.isatty() else PIPE_WIDTH).print(table)


def _notes(summary: Mapping[str, Any]) -> Iterator[str]:
    """What is said below the table."""
    if summary["prompts"] == 1 < summary["clips"]:
        yield "all clips are of one prompt: no intervals, nothing is known about other prompts"
    elif summary["prompts"] < summary["clips"]:
        yield f"{summary['clips']} clips of {summary['prompts']} prompts; intervals draw prompts, not clips"
    means = ", ".join(f"{name} {number(value)}" for name, value in summary["guardrails"].items())
    yield f"logged, not rewarded: {means}"
    yield f"clips beyond a limit: {_counted(summary['flags']) or 'none'}"
    if "total" in summary["rewards"] and summary["floored"]:
        yield f"clips beyond a floor: {_counted(summary['floored'])}"
    if summary["unreadable"]:
        reasons = "; ".join(f"{count} {why}" for why, count in summary["unreadable"].items())
        yield f"clips that cannot be read: {sum(summary['unreadable'].values())} ({reasons})"
    for name, found in summary["failed"].items():
        yield f"reward {name} failed on {found['clips']} clips, the first: {found['first']}"
    if summary["mended"]:
        yield f"clips with holes that were filled: {summary['mended']}"
    if summary["left_out"]:
        yield left_out_line(summary["left_out"])


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def span(row: Mapping[str, Any]) -> str:
    return "-" if row["low"] is None else f"{row['low']:.4g} .. {row['high']:.4g}"


def _column(rows: Sequence[StoredRow], name: str) -> list[Score]:
    """A reward's scores, with reasons that do not name a file or clip where the row has them apart."""
    return [
        replace(score, reason=_why(row, name, score.reason)) if score.reason else score
        for row, score in zip(rows, to_scores(rows, name), strict=True)
    ]


def _why(row: StoredRow, name: str, reason: str) -> str:
    if "unreadable" in row:
        return f"cannot be read: {row['unreadable']['why']}"
    return f"failed: {row['failed'][name]}" if name in row.get("failed", {}) else reason


def _unreadable(rows: Sequence[StoredRow]) -> dict[str, int]:
    return dict(Counter(row["unreadable"]["why"] for row in rows if "unreadable" in row).most_common())


def _failed(rows: Sequence[StoredRow]) -> dict[str, dict[str, Any]]:
    """Reward -> clips that it raised on, and the first of them with what it raised."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        for name, why in row.get("failed", {}).items():
            known = found.setdefault(name, {"clips": 0, "first": f"{row['clip']}: {why}"})
            known["clips"] += 1
    return found


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
