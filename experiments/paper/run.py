"""Scores the clips that answer a benchmark and makes its table: the published metrics, our own, coverage and
intervals."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.paper.layouts import BenchItem
from experiments.paper.metrics import PublishedMetric, eligible_for, looks_at_frames
from experiments.paper.published import PaperTable, composites
from experiments.paper.tables import NO_CLIP
from experiments.scoring.score_files import ScoreSettings, score_files, to_scores
from experiments.scoring.store import StoredRow
from experiments.scoring.summary import described
from rewards.types import Score

MISSING = "weights missing"
Columns = dict[str, dict[str, Score]]  # reward (as asked for) -> case -> score, under the reward's own name
COMPOSITE_NAMES = {"LSE-C": "Sync-C"}  # their name for a metric -> the table's


@dataclass(frozen=True)
class Benchmark:
    """A benchmark's cases, the metrics of its table, and the published figures beside them."""

    name: str
    items: Sequence[BenchItem]
    metrics: Sequence[PublishedMetric]
    paper: PaperTable
    with_composites: bool = False
    of_sound: bool = False  # everything is given the sounds; there need not be a video


def measure(benchmark: Benchmark, settings: ScoreSettings, out: Path) -> dict[str, Any]:
    """Scores what is not scored yet (rows in `out`, picture and sound apart) and returns the table as plain
    values.

    `{benchmark, cases, clips, without: {reason: cases without a clip}, metrics: {label: {mean, low, high, n,
    eligible, reasons, status, needs, paper}}, own: {score: {...}}, composites, paper}`; status is scored, not
    scored, or weights missing. Means are over scored cases alone.
    """
    pictures = [file for item in benchmark.items if (file := item.video_file())]
    sounds = [file for item in benchmark.items if (file := item.sound_file())]
    rows: dict[str, StoredRow] = {}
    columns: dict[str, dict[str, Score]] = {}
    asked: dict[str, str] = {}
    for side, files in (("video", pictures), ("sound", sounds)):
        names = tuple(
            name
            for name in settings.rewards
            if (looks_at_frames(name) and not benchmark.of_sound) == (side == "video")
        )
        if not names or not files:  # no case has such a file, which their reasons say
            columns |= {name: {} for name in names}
            asked |= {name: name for name in names}
            continue
        options = {name: value for name, value in settings.options.items() if name in names}
        part = ScoreSettings(rewards=names, options=options, batch=settings.batch)
        found = score_files(files, part, out / f"scores_{side}.jsonl")
        for reward in names:
            # rows of an earlier call may have them in another order
            name = next((row["called"][reward] for row in found if reward in row.get("called", {})), reward)
            columns[name] = dict(zip((row["clip"] for row in found), to_scores(found, name), strict=True))
            asked[name] = reward
        rows |= {f"{side}/{row['clip']}": row for row in found}
    metrics = {metric.label: _row(benchmark, metric, columns) for metric in benchmark.metrics}
    return {
        "benchmark": benchmark.name,
        "cases": len(benchmark.items),
        "clips": sum(item.sound is not None for item in benchmark.items),
        "without": dict(
            Counter(item.reason or NO_CLIP for item in benchmark.items if item.sound is None).most_common()
        ),
        "metrics": metrics,
        "own": _own(benchmark, columns, asked),
        "composites": _composites(metrics) if benchmark.with_composites else {},
        "paper": benchmark.paper,
        "clip_digests": {name: row.get("sha256", "") for name, row in rows.items()},
    }


def _row(benchmark: Benchmark, metric: PublishedMetric, columns: Columns) -> dict[str, Any]:
    """A published metric from the one score that may be called so."""
    scores = _scores(metric.score, columns, [item for item in benchmark.items if metric.eligible(item)])
    paper = {
        system: figures[metric.label]
        for system, figures in benchmark.paper.items()
        if metric.label in figures
    }
    row = (
        described(scores)
        if scores
        else {**described([]), "eligible": sum(map(metric.eligible, benchmark.items))}
    )
    for key in ("mean", "low", "high"):
        row[key] = None if row[key] is None else round(row[key] * metric.scale, 6)
    status = MISSING if scores is None else "scored" if row["n"] else "not scored"
    return {
        **row,
        "status": status,
        "needs": metric.needs,
        "higher_is_better": metric.higher_is_better,
        "paper": paper,
    }


def _scores(name: str, columns: Columns, items: Sequence[BenchItem]) -> list[Score] | None:
    """Scores of these cases by a reward or part; None when nothing by that name was scored."""
    reward, _, part = (name, "", "") if name in columns else name.partition(".")
    if reward not in columns:
        return None
    column = columns[reward]
    found = [column.get(item.key, Score(math.nan, item.reason or NO_CLIP)) for item in items]
    if not part:
        return found
    if column and not any(part in score.parts for score in column.values()):
        return None
    return [
        score
        if score.reason
        else Score(score.parts.get(part, math.nan), "" if part in score.parts else f"no {part}")
        for score in found
    ]


def _own(benchmark: Benchmark, columns: Columns, asked: Mapping[str, str]) -> dict[str, Any]:
    """Every score under its own name, parts too, over the cases that ask for what it judges."""
    published = {metric.score for metric in benchmark.metrics}
    rows: dict[str, Any] = {}
    for name, column in columns.items():
        items = [item for item in benchmark.items if eligible_for(asked[name], item)]
        parts = dict.fromkeys(part for score in column.values() for part in score.parts)
        for key in (name, *(f"{name}.{part}" for part in parts)):
            scores = _scores(key, columns, items) if key not in published else None
            if scores is not None:
                rows[key] = described(scores)
    return rows


def _composites(metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, float | None]:
    values = {label: row["mean"] for label, row in metrics.items()}
    return composites({**values, **{theirs: values[ours] for theirs, ours in COMPOSITE_NAMES.items()}})
