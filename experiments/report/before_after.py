"""Effect of alignment on held-out prompts: metrics before, after and of the codec; guardrails.

Judges were never rewarded; rewards were optimised; other metrics are only monitored. A gap closed of 1 means
that the aligned model equals real clips through its codec.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import compress
from typing import Any

from experiments.report.metric_keys import MetricsByName, reported_metrics
from experiments.scoring.rows import ScoredRow, number, said_by, terms
from experiments.scoring.statistics import (
    Interval,
    bootstrap_closed,
    bootstrap_difference,
    bootstrap_mean,
    bootstrap_ratio,
)
from pretrain.statistics import CONFIDENCE
from rewards.guardrails import BOUNDS, UNITS, GuardrailLimits
from rewards.metric import Metric

AFTER, BEFORE = "aligned", "pretrained"  # names of the models


def before_after(
    before: Sequence[ScoredRow],
    after: Sequence[ScoredRow],
    codec: Sequence[ScoredRow] | None,
    limits: GuardrailLimits,
    rewarded: Iterable[str] = (),
    seed: int = 0,
    known: MetricsByName | None = None,
    judged: Iterable[str] = (),
) -> dict[str, Any]:
    """`{prompts, codec_clips, confidence, seed, metrics, guardrails, flagged}` from rows of `score_sets`.

    `codec` None: there are no real clips, so nothing of the codec is in the result, no gap closed and nothing
    beyond it. `known`: metrics to compare, None = the catalog's; what was not scored is left out. `rewarded`:
    names of the rubric, whose role is "reward" even if the catalog lists another, likewise `judged` metrics.
    Clips of the same words and voices fail alike and are drawn together (`said_by`).
    The order of the rows does not matter. Raises ValueError where before and after do not answer the same
    prompts.
    """
    before, after = paired(before, after)
    if codec is not None:
        codec = sorted(codec, key=lambda row: row["data_id"])
    sides = {"before": before, "after": after, **({} if codec is None else {"codec": codec})}
    judges = set(judged)
    names = {name.partition(".")[0] for name in rewarded}
    compared = {}
    for metric in _in_order((known or reported_metrics()).values()):
        found = _metric(metric, before, after, codec, seed)
        if found:
            role = "reward" if metric.name in names else "judge" if metric.name in judges else metric.role
            compared[metric.name] = {"role": role, **found}
    return {
        "prompts": len(before),
        **({} if codec is None else {"codec_clips": len(codec)}),
        "confidence": CONFIDENCE,
        "seed": seed,
        "metrics": compared,
        "guardrails": {name: _guardrail(name, sides, limits, seed) for name in BOUNDS},
        "flagged": {key: _flagged(rows) for key, rows in sides.items()},
    }


def paired(
    before: Sequence[ScoredRow], after: Sequence[ScoredRow]
) -> tuple[list[ScoredRow], list[ScoredRow]]:
    """Both in the order of data_id.

    Raises ValueError for an unpaired or duplicate row, or different prompts.
    """
    sides = [{row["data_id"]: row for row in rows} for rows in (before, after)]
    for rows, by_id, what in ((before, sides[0], "before"), (after, sides[1], "after")):
        if len(by_id) < len(rows):
            raise ValueError(
                f"{len(rows)} clips {what} alignment with {len(by_id)} data_ids; generate the set again"
            )
    if alone := sorted(sides[0].keys() ^ sides[1].keys()):
        where = "before" if alone[0] in sides[0] else "after"
        raise ValueError(
            f"{alone[0]}: there only {where} alignment ({len(alone)} such clips); generate both sets from "
            "the same prompts"
        )
    order = sorted(sides[0])
    for name in order:
        if sides[0][name]["prompt"] != sides[1][name]["prompt"]:
            raise ValueError(
                f"{name}: another prompt before than after alignment; generate both sets from the same "
                "prompts"
            )
    return [sides[0][name] for name in order], [sides[1][name] for name in order]


def beyond(mean: float, codec: Interval, lower_is_better: bool) -> bool:
    """True if a mean is better than the whole interval; False for NaN."""
    return mean < codec.low if lower_is_better else mean > codec.high


def _in_order(metrics: Iterable[Metric]) -> list[Metric]:
    """Judges with the rewards that they check (same first word: wer, sync), then other rewards, then the
    rest.
    """
    metrics = [metric for metric in metrics if metric.has_direction]
    roles: dict[str, set[str]] = defaultdict(set)
    for metric in metrics:
        roles[metric.name.partition("_")[0]].add(metric.role)
    families = list(roles)

    def place(metric: Metric) -> tuple[int, int, int]:
        family = metric.name.partition("_")[0]
        if not roles[family] >= {"judge", "reward"}:
            return (1 if metric.role == "reward" else 2), 0, 0
        main = 1 if metric.role == "reward" else 0 if metric.role == "judge" and not metric.part else 2
        return 0, families.index(family), main

    return sorted(metrics, key=place)


def _metric(
    metric: Metric,
    before: Sequence[ScoredRow],
    after: Sequence[ScoredRow],
    codec: Sequence[ScoredRow] | None,
    seed: int,
) -> dict[str, Any] | None:
    """None if no prompt was scored both before and after.

    Everything but the codec's values uses prompts that were.
    """
    old, new = (terms(rows, metric) for rows in (before, after))
    said = [said_by(row) for row in before]
    difference = bootstrap_difference(new, old, seed, clusters=said)
    if not difference.n:
        return None
    scored = [
        [not (math.isnan(above) or math.isnan(below)) for above, below in zip(*side, strict=True)]
        for side in (old, new)
    ]
    both = [all(pair) for pair in zip(*scored, strict=True)]
    intervals = [
        bootstrap_ratio(
            list(compress(above, both)), list(compress(below, both)), seed, clusters=[*compress(said, both)]
        )
        for above, below in (old, new)
    ]
    found = {
        "better": "lower" if metric.lower_is_better else "higher",
        "before": intervals[0].as_json(),
        "after": intervals[1].as_json(),
        "difference": difference.as_json(),
        "unscored": {"before": scored[0].count(False), "after": scored[1].count(False)},
    }
    if codec is None:
        return found
    reference, real = terms(codec, metric), [said_by(row) for row in codec]
    goal = bootstrap_ratio(*reference, seed, clusters=real)
    if metric.gap_closed:
        closed = bootstrap_closed(old, new, reference, seed, clusters=said, reference_clusters=real)
        found["closed"] = closed.as_json()
    return {
        **found,
        "codec": goal.as_json(),
        "beyond_codec": beyond(intervals[1].mean, goal, metric.lower_is_better),
        "beyond_codec_before": beyond(intervals[0].mean, goal, metric.lower_is_better),
        "unscored": {**found["unscored"], "codec": goal.unscored},
    }


def _guardrail(
    name: str, sides: Mapping[str, Sequence[ScoredRow]], limits: GuardrailLimits, seed: int
) -> dict[str, Any]:
    bounds = [asdict(limits).get(field) for field in BOUNDS[name]]
    measured = {
        key: bootstrap_mean(
            [number(row.get("guardrails", {}).get(name)) for row in rows],
            seed,
            clusters=[said_by(row) for row in rows],
        )
        for key, rows in sides.items()
    }
    return {
        "unit": UNITS[name],
        "low": bounds[0],
        "high": bounds[1],
        **{key: interval.as_json() for key, interval in measured.items()},
        **{f"flagged_{key}": _flagged(rows, name) for key, rows in sides.items()},
    }


def _flagged(rows: Sequence[ScoredRow], name: str = "") -> float:
    """Clips beyond a limit, of one measurement or of any; of rows that stand for several seeds, the mean of
    the seeds' numbers."""
    found = sum(flagged_share(row, name) for row in rows)
    return found if isinstance(found, int) else round(found, 6)


def flagged_share(row: ScoredRow, name: str = "") -> float:
    """Whether a clip is beyond the limit of one measurement, or of any; of a row that stands for several
    seeds, in which share of them it is (`flagged_shares`)."""
    if "flagged_shares" in row:
        return row["flagged_shares"].get(name, 0.0)
    return int(any(text.split()[0] == name or not name for text in row.get("flags", ())))


def beyond_codec(found: Mapping[str, Any]) -> list[str]:
    """Metrics that alignment moved beyond the codec's interval, or (95 %) further beyond it.

    A weak estimate can read a blurred clip as better than real ones before any alignment; that alone is no
    hacking.
    """
    return [
        name for name, metric in found["metrics"].items() if metric["beyond_codec"] and _moved_there(metric)
    ]


def beyond_from_the_start(found: Mapping[str, Any]) -> list[str]:
    """Metrics beyond the codec's interval both before and after alignment that did not move further."""
    return [
        name
        for name, metric in found["metrics"].items()
        if metric["beyond_codec"] and not _moved_there(metric)
    ]


def _moved_there(metric: Mapping[str, Any]) -> bool:
    difference = metric["difference"]
    if difference["low"] is None:
        return not metric["beyond_codec_before"]
    further = difference["high"] < 0 if metric["better"] == "lower" else difference["low"] > 0
    return not metric["beyond_codec_before"] or further
