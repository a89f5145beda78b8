"""Rows of `score_sets` as they are summed up: which metric is read from what, clip by clip."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.scoring.statistics import Terms
from pretrain.jsonl import FieldError, scan
from rewards.metric import Metric
from rewards.options import nearest

Row = Mapping[str, Any]


def read_scores(path: Path) -> dict[tuple[str, str], list[Row]]:
    """Rows by prompt set and source; FileNotFoundError or ValueError in one line."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; run `nava evaluate`, which scores the clips first")
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for _, row in scan(path):
        if isinstance(row, FieldError):
            raise ValueError(row.at(path))
        groups[row["prompt_set"], row["source"]].append(row)
    return dict(groups)


def terms(rows: Sequence[Row], metric: Metric) -> Terms:
    """Numerators and denominators of a metric, one each for every row; NaN where the clip could not be
    scored."""
    if metric.denominator:
        return column(rows, metric.scorer, metric.numerator), column(rows, metric.scorer, metric.denominator)
    return column(rows, metric.scorer, metric.part), [1.0] * len(rows)


def column(rows: Sequence[Row], scorer: str, part: str = "") -> list[float]:
    """A scorer's value or a part of its score for every row; NaN where the clip could not be scored or the
    scorer did not run."""
    return [
        number(row["parts"].get(scorer, {}).get(part) if part else row["scores"].get(scorer)) for row in rows
    ]


def number(value: float | None) -> float:
    """NaN for JSON's null."""
    return math.nan if value is None else float(value)


@dataclass(frozen=True)
class ScoresFile:
    """Rows of scores. `model`: whose they all are, None = each row's `model` or `source`; `source`: only rows
    of this source."""

    path: Path
    model: str | None = None
    source: str | None = None

    @classmethod
    def parsed(cls, text: str) -> ScoresFile:
        """From [MODEL=]FILE[#SOURCE]; what exists as a file is one, with = and # in its name too."""
        if Path(text).exists():
            return cls(Path(text))
        model, equals, path = text.partition("=")
        model, path = (model, path) if equals else ("", text)
        source = ""
        if not Path(path).exists():
            path, _, source = path.partition("#")
        return cls(Path(path), model or None, source or None)


@dataclass(frozen=True)
class ScoredClip:
    """A clip that votes may speak of; `values` [features], NaN where it could not be scored. `sha256` ""
    where it is not known."""

    model: str
    case_id: str
    prompt: str
    sha256: str
    values: tuple[float, ...]


def read_scored(file: ScoresFile, features: Sequence[str]) -> list[ScoredClip]:
    """Rows of `nava score` ({clip, scores: {name: {value, parts}}}) or of a scores stage ({data_id, source,
    scores: {name: value}, parts}). The case is `case_id`, else the clip's name. Raises FileNotFoundError, or
    ValueError naming the file."""
    rows = []
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
            rows.append((line, row))
    if not rows:
        raise ValueError(
            f"{file.path}: no row of source {file.source!r}; give a source that is there, or leave # out"
        )
    for feature in features:
        _check_feature(feature, [row for _, row in rows], file.path)
    return [_clip(line, row, file, features) for line, row in rows]


def _clip(line: int, row: Mapping[str, Any], file: ScoresFile, features: Sequence[str]) -> ScoredClip:
    model = file.model or row.get("model") or row.get("source")
    if not isinstance(model, str):
        raise ValueError(
            FieldError(line, "model", "whose clip is it? give the scores as MODEL=FILE").at(file.path)
        )
    name = row.get("data_id", row.get("clip"))
    values = tuple(_value(row, feature) for feature in features)
    return ScoredClip(
        model, str(row.get("case_id", name)), row.get("prompt") or "", row.get("sha256") or "", values
    )


def _value(row: Mapping[str, Any], feature: str) -> float:
    name, part = _split(feature, row["scores"])
    entry = row["scores"].get(name)
    if isinstance(entry, Mapping):
        found = entry.get("parts", {}).get(part) if part else entry.get("value")
    else:
        found = row.get("parts", {}).get(name, {}).get(part) if part else entry
    return float(found) if isinstance(found, (int, float)) and not isinstance(found, bool) else math.nan


def _split(feature: str, scores: Iterable[str]) -> tuple[str, str]:
    """(reward, part) of a feature, part "" for its value."""
    if feature in scores:
        return feature, ""
    name, _, part = feature.partition(".")
    return name, part


def _check_feature(feature: str, rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    there = {name for row in rows for name in row["scores"]}
    name, part = _split(feature, there)
    if name not in there:
        raise ValueError(f"{path}: no scores of {name!r}, score the clips with it; {nearest(name, there)}")
    entries = [row["scores"][name] for row in rows if isinstance(row["scores"].get(name), Mapping)]
    nested = [row.get("parts", {}).get(name, {}) for row in rows]
    parts = {key for found in (*(entry.get("parts", {}) for entry in entries), *nested) for key in found}
    if part and part not in parts and parts:
        raise ValueError(f"{path}: {name!r} has no part {part!r}; {nearest(part, parts)}")
