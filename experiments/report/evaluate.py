"""Aggregate per-clip scores to means with intervals, next to real and codec clips."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.report.before_after import before_after
from experiments.report.exchanged import voices_exchanged
from experiments.report.gates import GSB, Gate, GateResult, gate_name, gsb_interval
from experiments.report.metric_keys import (
    VOICES_EXCHANGED,
    Metrics,
    MetricsByName,
    metric_key,
    reported_metrics,
)
from experiments.report.simulated_gsb import simulated_gsb
from experiments.scoring.rows import ScoredRow, read_scores, said_by, terms
from experiments.scoring.sets import ALIGN_SET, EXCHANGED_SET, MAIN_SET
from experiments.scoring.statistics import Interval, bootstrap_ratio
from finetune.gsb.simulated_raters import SimulatedRatersConfig
from pretrain.files import write_json
from rewards.guardrails import GuardrailLimits
from rewards.options import fill

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Settings of aggregation, and quality gates."""

    seed: int = 0  # of the bootstrap
    # simulated raters of before and after alignment
    panel: SimulatedRatersConfig = field(default_factory=SimulatedRatersConfig)
    gates: tuple[Gate, ...] = ()  # overriding replaces the whole list


def evaluate(
    config: EvaluateConfig,
    scores: Path,
    out: Path,
    alignment_out: Path | None = None,
    votes_out: Path | None = None,
    rewarded: Mapping[str, float] = {},
    limits: Mapping[str, float] = {},
    known: MetricsByName | None = None,
) -> dict[str, Any]:
    """Reads the rows of `score_sets` and writes `out`: `{metric: {real|codec|generated|aligned: {mean, low,
    high, n}}}`, with `clusters` where the n clips are of fewer pairs of words and voices: clips of one pair
    fail alike, so intervals draw pairs.

    Of dialogues generated twice, the second time with their references exchanged, `voices_exchanged` is the
    share in which every turn has its reference's voice both times.
    With clips before and after alignment, `alignment_out` gets what `before_after` finds and, with
    `votes_out` (votes of simulated raters), `raters`. `rewarded`: weights of the rubric; `limits`: the
    guardrails' that the clips were scored with; `known`: metrics to report, None = the catalog's. Without
    clips of both an old `alignment_out` is removed. Raises FileNotFoundError or ValueError in one line; only
    votes are written then.
    """
    groups, known = read_scores(scores), known or reported_metrics()
    metrics: dict[str, dict[str, dict[str, Any]]] = {}
    for (prompt_set, source), rows in groups.items():
        for name, interval in summarise(rows, known, config.seed).items():
            metrics.setdefault(metric_key(name, prompt_set), {})[source] = interval.as_json()
    if (exchanged := voices_exchanged(groups, config.seed)) is not None:
        key = metric_key(VOICES_EXCHANGED, EXCHANGED_SET)
        metrics[key] = {"generated": exchanged.as_json()}
    alignment = _alignment(config, groups, votes_out, rewarded, limits, known) if alignment_out else None
    write_json(out, metrics, indent=1, allow_nan=False)
    if alignment_out and alignment:
        write_json(alignment_out, alignment, indent=1, allow_nan=False)
    elif alignment_out:
        alignment_out.unlink(missing_ok=True)  # stale: it describes other clips
    return metrics


def summarise(rows: Sequence[ScoredRow], known: MetricsByName, seed: int = 0) -> dict[str, Interval]:
    """One interval per metric, over pairs of words and voices; metrics without scored clips are left out."""
    clusters = [said_by(row) for row in rows]
    intervals = {
        name: bootstrap_ratio(*terms(rows, metric), seed, clusters=clusters) for name, metric in known.items()
    }
    return {name: interval for name, interval in intervals.items() if interval.n}


def _alignment(
    config: EvaluateConfig,
    groups: Mapping[tuple[str, str], Sequence[ScoredRow]],
    votes_out: Path | None,
    rewarded: Mapping[str, float],
    limits: Mapping[str, float],
    known: MetricsByName,
) -> dict[str, Any] | None:
    before, after, codec = (
        groups.get(key, ()) for key in ((ALIGN_SET, "generated"), (ALIGN_SET, "aligned"), (MAIN_SET, "codec"))
    )
    if not before or not after or not codec:
        log.warning(
            "%s: clips before or after alignment, or of the codec, are not among the scores; no comparison "
            "is written",
            ALIGN_SET,
        )
        return None
    return {
        "prompt_set": ALIGN_SET,
        "codec_of": MAIN_SET,
        **compare(config, before, after, codec, votes_out, rewarded, limits, known),
    }


def compare(
    config: EvaluateConfig,
    before: Sequence[ScoredRow],
    after: Sequence[ScoredRow],
    codec: Sequence[ScoredRow],
    votes_out: Path | None,
    rewarded: Mapping[str, float],
    limits: Mapping[str, float],
    known: MetricsByName,
) -> dict[str, Any]:
    """Result of `before_after` and, with `votes_out`, of the simulated raters; arguments as in `evaluate`."""
    weighed = [name for name, weight in rewarded.items() if weight]
    bounds = fill(GuardrailLimits, limits, "align.guardrails")
    found = before_after(before, after, codec, bounds, weighed, config.seed, known)
    raters = simulated_gsb(config.panel, before, after, votes_out, rewarded) if votes_out else None
    return {**found, "raters": raters} if raters else found


def metrics_to_log(
    metrics: Metrics, alignment: Mapping[str, Any], gates: Sequence[GateResult] = ()
) -> dict[str, float]:
    """Flat numbers for MLflow: the mean of `source/key` of every set, of `alignment/key/after`, `difference`
    and `closed`, and of `alignment/simulated_gsb/axis`; beside each its 95 % interval and count as `.../low`,
    `.../high` and `.../n`. Also the clips that guardrails flag, and `gates/name`, 1 passed and 0 failed."""
    found = {
        f"{source}/{key}": interval
        for key, sources in metrics.items()
        for source, interval in sources.items()
    }
    for key, metric in alignment.get("metrics", {}).items():
        names = ("after", "difference", "closed")
        found |= {f"alignment/{key}/{name}": metric[name] for name in names if name in metric}
    raters = alignment.get("raters", {})
    votes = GSB if raters.get("simulated", True) else "gsb"
    found |= {f"alignment/{votes}/{axis}": gsb_interval(row) for axis, row in raters.get("gsb", {}).items()}
    numbers: dict[str, float] = {}
    for name, interval in found.items():
        parts = {"": interval["mean"], **{f"/{part}": interval[part] for part in ("low", "high", "n")}}
        numbers |= {f"{name}{part}": value for part, value in parts.items() if value is not None}
    return numbers | _flagged(alignment) | _passed(gates)


def _flagged(alignment: Mapping[str, Any]) -> dict[str, float]:
    """Clips beyond a limit, before and after alignment and of the codec: of each guardrail, and of any."""
    sides = alignment.get("flagged", {})
    found = {f"alignment/guardrails/flagged_{side}": float(count) for side, count in sides.items()}
    for name, row in alignment.get("guardrails", {}).items():
        counts = {side: row[f"flagged_{side}"] for side in sides}
        found |= {f"alignment/guardrails/{name}/flagged_{side}": float(n) for side, n in counts.items()}
    return found


def _passed(gates: Sequence[GateResult]) -> dict[str, float]:
    """1 where every gate on a number passed, 0 where one failed; one that was not measured is left out."""
    found: dict[str, float] = {}
    for result in gates:
        if result.status != "not measured":
            name = f"gates/{gate_name(result)}"
            found[name] = min(found.get(name, 1.0), float(result.status == "passed"))
    return found
