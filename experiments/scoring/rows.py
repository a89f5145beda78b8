"""Scored clips as JSON rows, in two on-disk formats, and readers for reports and votes.

`nava score` writes {clip, scores: {name: {value, reason, parts, text, seconds}}} unrounded, so that scores
come back as they were; the score stage {data_id, scores: {name: value}, parts, texts, reasons} rounded.
"""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.scoring.statistics import Terms
from pretrain.jsonl import FieldError, scan
from rewards.metric import Metric
from rewards.options import nearest
from rewards.types import Score, split_part

log = logging.getLogger(__name__)

ScoredRow = Mapping[str, Any]
DECIMALS = 6


def full_scores(scores: Mapping[str, Score]) -> dict[str, dict[str, Any]]:
    """Field `scores` of a row of `nava score`; non-finite values are null."""
    return {name: full_score(score) for name, score in scores.items()}


def full_score(score: Score) -> dict[str, Any]:
    value = json_number(score.value)
    return {
        "value": value,
        "reason": score.reason or ("NaN" if value is None else ""),
        "parts": {name: json_number(part) for name, part in score.parts.items()},
        "text": score.text,
        "seconds": round(score.seconds, DECIMALS),
    }


def flat_scores(scores: Mapping[str, Score]) -> dict[str, dict[str, Any]]:
    """Score fields of a row of the score stage."""
    scored = {name: score for name, score in scores.items() if not score.reason}
    return {
        "scores": {
            name: round(score.value, DECIMALS) if name in scored else None for name, score in scores.items()
        },
        "parts": {
            name: {part: round(value, DECIMALS) for part, value in score.parts.items()}
            for name, score in scored.items()
        },
        "texts": {name: score.text for name, score in scored.items() if score.text},
        "reasons": {name: score.reason for name, score in scores.items() if score.reason},
    }


def flat_guardrails(measured: Mapping[str, float], flags: Sequence[str]) -> dict[str, Any]:
    """Guardrail fields of a row of the score stage; missing values are null."""
    return {
        "guardrails": {
            name: None if math.isnan(value) else round(value, DECIMALS) for name, value in measured.items()
        },
        "flags": list(flags),
    }


def score_in(row: ScoredRow, name: str) -> Score:
    """A reward's score from a row of either format; without value if the reward did not run."""
    found = row["scores"].get(name)
    if not isinstance(found, Mapping):
        details = {key: row.get(key, {}).get(name) for key in ("parts", "texts", "reasons")}
        found = {
            "value": found,
            "parts": details["parts"],
            "text": details["texts"],
            "reason": details["reasons"],
        }
    return Score(
        value=number(found.get("value")),
        reason=found.get("reason") or "",
        parts={part: number(value) for part, value in (found.get("parts") or {}).items()},
        text=found.get("text") or "",
        seconds=found.get("seconds", 0.0),
    )


def json_number(value: float) -> float | None:
    """JSON has no NaN and no infinity."""
    return float(value) if math.isfinite(value) else None


def number(value: Any) -> float:
    """NaN for JSON's null and what is no number."""
    known = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if known else math.nan


def absent_line(count: int) -> str:
    """What a reader says of rows that it leaves out because their clip was no longer there."""
    return f"left out {count} rows of clips that are no longer there (score the clips again if they are)"


def check_scored(path: Path) -> None:
    """Raises FileNotFoundError where there are no scores of the sets."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; run `nava evaluate`, which scores the clips first")


def read_scores(path: Path) -> dict[tuple[str, str], list[ScoredRow]]:
    """Rows by prompt set and source; FileNotFoundError or ValueError in one line."""
    check_scored(path)
    groups: dict[tuple[str, str], list[ScoredRow]] = defaultdict(list)
    for _, row in scan(path):
        if isinstance(row, FieldError):
            raise ValueError(row.at(path))
        groups[row["prompt_set"], row["source"]].append(row)
    return dict(groups)


def terms(rows: Sequence[ScoredRow], metric: Metric) -> Terms:
    """Numerator and denominator of a metric per row; NaN if the clip was not scored."""
    if metric.numerator:
        return column(rows, metric.scorer, metric.numerator), column(rows, metric.scorer, metric.denominator)
    return column(rows, metric.scorer, metric.part), [1.0] * len(rows)


def said_by(row: ScoredRow) -> Hashable:
    """What clips that fail alike share, so that intervals draw them together: the words of a row of the score
    stage and their voices; the prompt of one without either, of `nava score` its `group`. A clip without any
    is alone."""
    words, voices = (tuple(row.get(name, ())) for name in ("spans", "voices"))
    alone = row.get("data_id", row.get("clip"))
    return (words, voices) if words or voices else row.get("group") or row.get("prompt") or alone


def column(rows: Sequence[ScoredRow], scorer: str, part: str = "") -> list[float]:
    """A scorer's value, or a part of its score, per row; NaN if missing."""
    return [_value(row, scorer, part) for row in rows]


def _value(row: ScoredRow, scorer: str, part: str) -> float:
    score = score_in(row, scorer)
    return score.parts.get(part, math.nan) if part else score.value


@dataclass(frozen=True)
class ScoresFile:
    """A file of score rows.

    `model`: of all rows, None = each row's `model` or `source`; `source`: keep only rows of this source.
    """

    path: Path
    model: str | None = None
    source: str | None = None

    @classmethod
    def parsed(cls, text: str) -> ScoresFile:
        """Parse [MODEL=]FILE[#SOURCE]; an existing file name may contain = and #."""
        if Path(text).exists():
            return cls(Path(text))
        model, equals, path = text.partition("=")
        model, path = (model, path) if equals else ("", text)
        source = ""
        if not Path(path).exists():
            path, _, source = path.partition("#")
        return cls(Path(path), model or None, source or None)


@dataclass(frozen=True)
class VotedClip:
    """A clip that votes may refer to; `values` [features], NaN if not scored. `sha256` is "" if unknown."""

    model: str
    case_id: str
    prompt: str
    sha256: str
    values: tuple[float, ...]


def read_scored(file: ScoresFile, features: Sequence[str]) -> list[VotedClip]:
    """Rows of `nava score` or of a scores stage.

    Formats: {clip, scores: {name: {value, parts}}} and {data_id, source, scores: {name: value}, parts}. The
    case is `case_id`, else the clip's name. Rows of clips that are no longer there are left out and warned
    of. Raises FileNotFoundError, or ValueError naming the file.
    """
    rows, absent = [], 0
    for line, row in scan(file.path):
        if isinstance(row, FieldError):
            raise ValueError(row.at(file.path))
        if not isinstance(row.get("scores"), dict) or not isinstance(
            row.get("data_id", row.get("clip")), str
        ):
            raise ValueError(
                FieldError(line, "scores", "not a row of scores; give what `nava score --out` wrote").at(
                    file.path
                )
            )
        if file.source is None or row.get("source") == file.source:
            absent += bool(row.get("absent"))
            rows += [] if row.get("absent") else [(line, row)]
    if absent:
        log.warning("%s: %s", file.path, absent_line(absent))
    if not rows and absent:
        raise ValueError(f"{file.path}: no clip of it is there any longer; score clips that are")
    if not rows:
        raise ValueError(
            f"{file.path}: no row of source {file.source!r}; give a source that is there, or leave # out"
        )
    for feature in features:
        _check_feature(feature, [row for _, row in rows], file.path)
    return [_clip(line, row, file, features) for line, row in rows]


def _clip(line: int, row: Mapping[str, Any], file: ScoresFile, features: Sequence[str]) -> VotedClip:
    model = file.model or row.get("model") or row.get("source")
    if not isinstance(model, str):
        raise ValueError(
            FieldError(line, "model", "whose clip is it? give the scores as MODEL=FILE").at(file.path)
        )
    name = row.get("data_id", row.get("clip"))
    values = tuple(_value(row, *split_part(feature, row["scores"])) for feature in features)
    return VotedClip(
        model, str(row.get("case_id", name)), row.get("prompt") or "", row.get("sha256") or "", values
    )


def _check_feature(feature: str, rows: Sequence[ScoredRow], path: Path) -> None:
    scored_names = {name for row in rows for name in row["scores"]}
    name, part = split_part(feature, scored_names)
    if name not in scored_names:
        raise ValueError(
            f"{path}: no scores of {name!r}, score the clips with it; {nearest(name, scored_names)}"
        )
    parts = {key for row in rows for key in score_in(row, name).parts}
    if part and part not in parts and parts:
        raise ValueError(f"{path}: {name!r} has no part {part!r}; {nearest(part, parts)}")
