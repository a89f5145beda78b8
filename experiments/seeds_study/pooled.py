"""Several alignments as one: each prompt's scores are the mean over the seeds, so that intervals over prompts are of their average."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.score_rows import Row, number


def mean_rows(runs: Sequence[Sequence[Row]]) -> list[Row]:
    """A row per prompt; a value that some seed could not be scored on is the mean of the others. Raises ValueError for other prompts."""
    by_id = [{row["data_id"]: row for row in rows} for rows in runs]
    if any(rows.keys() != by_id[0].keys() for rows in by_id):
        raise ValueError("seeds: not all of them answer the same prompts; remove OUT/study/seeds and run it again")
    return [_mean([rows[name] for rows in by_id]) for name in by_id[0]]


def _mean(rows: Sequence[Row]) -> Row:
    scorers = rows[0]["scores"].keys()
    parts = {name: _means([row["parts"].get(name, {}) for row in rows]) for name in scorers}
    return {
        **rows[0],
        "scores": _means([row["scores"] for row in rows]),
        "parts": parts,
        "guardrails": _means([row.get("guardrails", {}) for row in rows]),
        "flags": [flag for row in rows for flag in row.get("flags", ())],
    }


def _means(values: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    names = dict.fromkeys(name for some in values for name in some)
    found = {name: [known for some in values if not math.isnan(known := number(some.get(name)))] for name in names}
    return {name: sum(known) / len(known) if known else None for name, known in found.items()}
