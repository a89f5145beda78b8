"""Profiles of JSONL files: one pass over the rows, whatever their kind, that never raises for a row."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune.gsb.surveys import survey_of

MAX_BYTES = 32 << 20  # of a file that is counted; half a second
MAX_LINE = 1 << 20  # of the first row, which tells the kind of a larger file
MAX_NAMES = 50  # that a profile lists
_TYPES = {bool: "boolean", int: "long", float: "double", str: "string", list: "array", dict: "object"}


class Budget:
    """Bytes that may still be read for all profiles of a run."""

    def __init__(self, left: int = 2 * MAX_BYTES) -> None:
        self.left = left

    def take(self, size: int) -> str:
        """Reserve a file's bytes; why it is not to be read, "" if it is."""
        if size > MAX_BYTES:
            return f"{size} bytes; files of more than {MAX_BYTES} are not counted"
        if size > self.left:
            return f"{size} bytes; {self.left} are left of what a run counts"
        self.left -= size
        return ""


def profile_of_rows(path: Path, budget: Budget) -> dict[str, Any]:
    """{profile, schema} of a JSONL file; the first readable row tells its kind.

    kind: manifest, prompts, votes, preference pairs, scores, clips, rollouts or rows.
    """
    size = path.stat().st_size
    refusal = budget.take(size)
    counts = _Counts()
    with path.open("rb") as file:
        if refusal:
            counts.add(file.readline(MAX_LINE))
        else:
            for line in file:
                counts.add(line)
    head = {"kind": counts.kind, "bytes": size}
    profile = {**head, "uncounted": refusal} if refusal else {**head, **counts.result()}
    return {"profile": profile, "schema": counts.schema}


class _Counts:
    """Running counts over the rows of one file."""

    def __init__(self) -> None:
        self.kind, self.schema = "rows", []
        self.rows = self.unreadable = 0
        self.sums: Counter[str] = Counter()
        self.seconds = 0.0
        self.distinct: dict[str, set[str]] = {}
        self.tallies: dict[str, Counter[str]] = {}

    def add(self, line: bytes) -> None:
        if not line.strip():
            return
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            self.unreadable += 1
            return
        if not self.rows:
            self.kind = _kind(row)
            self.schema = [
                {"name": str(name)[:200], "type": _TYPES.get(type(value), "any")}
                for name, value in list(row.items())[:MAX_NAMES]
            ]
        self.rows += 1
        _COUNTERS[self.kind](self, row)

    def names(self, what: str, *values: Any) -> None:
        self.distinct.setdefault(what, set()).update(
            str(value) for value in values if value not in (None, "")
        )

    def tally(self, what: str, value: Any) -> None:
        if isinstance(value, str) and value:
            self.tallies.setdefault(what, Counter())[value] += 1

    def duration(self, value: Any) -> None:
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            self.seconds += value

    def result(self) -> dict[str, Any]:
        found: dict[str, Any] = {"num_rows": self.rows}
        found |= {"unreadable": self.unreadable} if self.unreadable else {}
        found |= {"hours": round(self.seconds / 3600, 4)} if self.seconds else {}
        found |= dict(self.sums)
        found |= {what: len(names) for what, names in self.distinct.items() if names}
        found |= {what: dict(counts.most_common(MAX_NAMES)) for what, counts in self.tallies.items()}
        return found


def _kind(row: Mapping[str, Any]) -> str:
    """What a file of such rows is."""
    for kind, fields in (
        ("manifest", ("video_info",)),
        ("votes", ("user_id", "left_model", "right_model")),
        ("preference pairs", ("first", "second", "labels")),
        ("scores", ("scores",)),
        ("rollouts", ("case_id", "shard")),
        ("clips", ("prompt", "duration")),
        ("prompts", ("prompt",)),
    ):
        if all(field in row for field in fields):
            return kind
    return "rows"


def _meta(counts: _Counts, row: Mapping[str, Any]) -> None:
    """What our own files say beside the public fields."""
    meta = row.get("meta")
    if isinstance(meta, Mapping):
        counts.tally("kinds", meta.get("kind"))
        if isinstance(voices := meta.get("voices"), list):
            counts.names("speakers", *voices)


def _manifest(counts: _Counts, row: Mapping[str, Any]) -> None:
    info = row["video_info"]
    first = info[0] if isinstance(info, list) and info and isinstance(info[0], Mapping) else {}
    counts.duration(first.get("duration"))
    counts.sums["with_picture"] += bool(first.get("fps"))
    _meta(counts, row)


def _prompts(counts: _Counts, row: Mapping[str, Any]) -> None:
    counts.sums["with_speech"] += "<S>" in str(row.get("prompt"))
    counts.sums["with_image"] += bool(row.get("image_path"))
    counts.sums["with_voice"] += bool(row.get("spk_wavs") or row.get("reference_paths"))
    _meta(counts, row)


def _clips(counts: _Counts, row: Mapping[str, Any]) -> None:
    counts.duration(row.get("duration"))
    _prompts(counts, row)


def _rollouts(counts: _Counts, row: Mapping[str, Any]) -> None:
    counts.names("prompts", row.get("case_id"))
    _prompts(counts, row)


def _votes(counts: _Counts, row: Mapping[str, Any]) -> None:
    rater = row.get("user_id")  # within its survey
    counts.names("raters", "" if rater in (None, "") else "/".join((*survey_of(row), str(rater))))
    counts.names("cases", row.get("case_id"))
    counts.names("models", row.get("left_model"), row.get("right_model"))
    counts.tally("axes", row.get("axis", "overall"))
    counts.tally("choices", row.get("choice"))
    counts.sums["simulated"] += bool(row.get("simulated"))


def _pairs(counts: _Counts, row: Mapping[str, Any]) -> None:
    counts.names("cases", row.get("case_id"))
    counts.sums["simulated"] += bool(row.get("simulated"))


def _scores(counts: _Counts, row: Mapping[str, Any]) -> None:
    if isinstance(row["scores"], Mapping):
        counts.names("rewards", *row["scores"])
    counts.tally("sets", "/".join(str(row[key]) for key in ("prompt_set", "source") if key in row))


def _rows(counts: _Counts, row: Mapping[str, Any]) -> None:
    _meta(counts, row)


_COUNTERS = {
    "manifest": _manifest,
    "prompts": _prompts,
    "clips": _clips,
    "rollouts": _rollouts,
    "votes": _votes,
    "preference pairs": _pairs,
    "scores": _scores,
    "rows": _rows,
}
