"""Scores clip by clip as CSV, which MLflow's page shows as a table."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.runs.tracker import SpoolTracker
from experiments.scoring.rows import ScoredRow, score_in
from pretrain.files import replacing

log = logging.getLogger(__name__)
TABLE = "clips.csv"
_KEYS = ("prompt_set", "source", "data_id", "clip")  # by which the two formats of rows name a clip


def clip_table(rows: Sequence[ScoredRow]) -> str:
    """CSV with a line for each clip: what it is, each score and its parts as `name.part`, total, guardrails,
    flags, and why scores are missing. What was not scored or measured is an empty field."""
    lines = [_line(row) for row in rows]
    keys = [key for key in _KEYS if any(key in line for line in lines)]
    columns = dict.fromkeys((*keys, *(name for line in lines for name in line if name not in _LAST), *_LAST))
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


_LAST = ("flags", "not_scored")


def _line(row: ScoredRow) -> dict[str, Any]:
    scores = {name: score_in(row, name) for name in row["scores"]}
    found: dict[str, Any] = {key: row[key] for key in _KEYS if key in row}
    for name, score in scores.items():
        found |= _numbers({name: score.value, **{f"{name}.{part}": n for part, n in score.parts.items()}})
    total = row.get("total") or {}
    found |= _numbers({"total": total.get("value")} if total else {})
    found |= _numbers(row.get("guardrails") or {})
    reasons = {name: score.reason for name, score in scores.items() if score.reason}
    return {
        **found,
        "flags": "; ".join(row.get("flags") or ()),
        "not_scored": "; ".join(f"{name}: {reason}" for name, reason in reasons.items()),
    }


def _numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: "" if value is None or value != value else value for name, value in values.items()}


def log_clip_table(tracker: SpoolTracker, rows: Sequence[ScoredRow]) -> None:
    """Keep the table in the run's spool, as an artifact of the run. A full disk is told and stops nothing."""
    path = tracker.folder / TABLE
    try:
        with replacing(path) as temporary:
            temporary.write_text(clip_table(rows), "utf-8", "backslashreplace")
    except OSError as error:
        log.warning("tracking: %s cannot be written (%s)", path, error)
        return
    tracker.log_artifact(str(path))
