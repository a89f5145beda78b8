"""Totals of a rubric and flags of guardrails: derived from the scores of rows, so that other settings need no
scoring again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from experiments.scoring.rows import full_score, number, score_in
from experiments.scoring.store import StoredRow, config_id
from rewards.catalog import is_plugin
from rewards.guardrails import GuardrailLimits, flags
from rewards.rubric import Rubric
from rewards.types import split_part


def with_totals(rows: Sequence[StoredRow], rubric: Rubric | None, limits: GuardrailLimits) -> list[StoredRow]:
    """The rows with `flags` and, with a rubric, `total`.

    total {value, reason, parts, floored: items whose floor the clip is beyond, rubric: its id, relative: the
    value is about the other clips of this file}.
    """
    answers = []
    for row in rows:
        kept = {key: value for key, value in row.items() if key not in ("flags", "total")}
        measured = {name: number(value) for name, value in row["guardrails"].items()}
        answers.append({**kept, "flags": list(flags(measured, limits))})
    if rubric is None or not rows:
        return answers
    called: Mapping[str, str] = rows[0].get("called", {})
    named = renamed(rubric, called)
    columns = {name: [score_in(row, name) for row in rows] for name in rows[0]["scores"]}
    columns |= {entry: columns[name] for entry, name in called.items()}
    found = named.total(columns, [row["group"] for row in rows])
    shared: dict[str, Any] = {
        "rubric": config_id({item.reward: vars(item) for item in named.items})[:8],
        "relative": named.relative,
    }
    for index, (row, total) in enumerate(zip(answers, found.totals, strict=True)):
        entry = full_score(total)
        floored = [name for name, beyond in found.beyond.items() if beyond[index]]
        row["total"] = {
            **{key: entry[key] for key in ("value", "reason", "parts")},
            "floored": floored,
            **shared,
        }
    return answers


def renamed(rubric: Rubric, called: Mapping[str, str]) -> Rubric:
    """Items asked for as package.module:Class by the name that the class gives to its scores."""
    items = []
    for item in rubric.items:
        entry, part = split_part(item.reward, called)
        own = ".".join(filter(None, (called.get(entry, entry), part)))
        items.append(replace(item, reward=own) if is_plugin(entry) else item)
    return Rubric(tuple(items))
