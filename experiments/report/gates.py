"""Quality gates: limits on metrics, checked against the output of `evaluate`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from experiments.report.before_after import beyond_codec
from experiments.report.metric_keys import (
    VOICES_EXCHANGED,
    IntervalJson,
    Metrics,
    metric_key,
    reported_metrics,
    title,
)
from experiments.scoring.sets import ALIGN_SET, EXCHANGED_SET, PROMPT_SETS
from finetune.gsb.votes import AXES
from pretrain.config import nearest
from rewards.catalog import is_plugin, metric

ALIGNMENT = "alignment"
SETS = (*PROMPT_SETS, ALIGN_SET, ALIGNMENT)
GSB, BEYOND_CODEC, GUARDRAILS = "simulated_gsb", "metrics_beyond_codec", "guardrails"
# metrics of "alignment" outside the catalog -> their statistics
OF_ALIGNMENT = {GSB: AXES, BEYOND_CODEC: ("driven",), GUARDRAILS: ("worse",)}
TITLES = {
    GSB: "GSB of simulated raters",
    BEYOND_CODEC: "Metrics that alignment drove beyond the codec's interval",
    GUARDRAILS: "Guardrails that flag more clips after alignment",
}
SOURCES = ("real", "codec", "generated", "aligned")
COMPARED = ("before", "after", "codec", "difference", "closed")
Status = Literal["passed", "failed", "not measured"]


@dataclass(frozen=True, kw_only=True)
class Gate:
    """One limit on one number; a value at the limit passes.

    `metric`: of the catalog, or a plug-in package.module:Class. Raises ValueError for what cannot be checked.
    `statistic` on a prompt set: the clips' source. On "alignment": before, after, codec, difference or closed
    of a metric; an axis of `simulated_gsb`; `driven` of `metrics_beyond_codec` and `worse` of `guardrails`
    count metrics that alignment pushed beyond the codec, guardrails that flag more clips after it.
    """

    metric: str
    set: str
    statistic: str = "generated"
    at_least: float | None = None
    at_most: float | None = None
    value: Literal["mean", "low", "high"] = "mean"  # of the estimate and its 95 % interval
    min_n: int = 1  # fewer clips, prompts or votes count as not measured
    why: str

    def __post_init__(self) -> None:
        aligned, plugin = self.set == ALIGNMENT, (self.metric,) if is_plugin(self.metric) else ()
        paired = (VOICES_EXCHANGED,) if self.set == EXCHANGED_SET else ()
        for name, value, valid in (
            ("set", self.set, SETS),
            (
                "metric",
                self.metric,
                (*reported_metrics(), *plugin, *paired, *(OF_ALIGNMENT if aligned else ())),
            ),
            ("statistic", self.statistic, OF_ALIGNMENT.get(self.metric, COMPARED if aligned else SOURCES)),
        ):
            if value not in valid:
                raise ValueError(f"{name}: unknown {value!r}; {nearest(value, valid)}")
        if self.metric in (BEYOND_CODEC, GUARDRAILS) and self.value != "mean":
            raise ValueError(f"value: {self.metric} is a count without an interval; leave it out")
        limits = [limit for limit in (self.at_least, self.at_most) if limit is not None]
        if not limits or not all(map(math.isfinite, limits)) or limits != sorted(limits):
            raise ValueError(f"{self.metric}: expected at_least, at_most or both in order, got {limits}")

    @property
    def title(self) -> str:
        """Display name of the measured number."""
        if self.metric == VOICES_EXCHANGED:
            return title(self.metric, {})
        return TITLES.get(self.metric) or metric(self.metric).title

    @property
    def limit(self) -> str:
        """The limits in words."""
        bounds = (("at least", self.at_least), ("at most", self.at_most))
        text = ", ".join(f"{word} {value:g}" for word, value in bounds if value is not None)
        end = f" ({self.value} end of the interval)" if self.value != "mean" else ""
        return text + end + (f", on {self.min_n} or more" if self.min_n > 1 else "")


@dataclass(frozen=True)
class Reports:
    """Output of `evaluate`; `alignment` is empty if nothing was aligned."""

    metrics: Metrics
    alignment: Mapping[str, Any]


@dataclass(frozen=True)
class GateResult:
    """Result of a gate. `mean`, `low`, `high` are None without a number; `note` gives the reason or count."""

    gate: Gate
    status: Status
    mean: float | None
    low: float | None
    high: float | None
    n: int
    counted: str  # what n counts: clips, "clips of 72 pairs of word and voice", ...
    note: str

    def as_json(self) -> dict[str, Any]:
        """The gate's fields and the result's in one mapping."""
        return {**asdict(self.gate), **{key: value for key, value in vars(self).items() if key != "gate"}}


def check_gates(gates: Sequence[Gate], reports: Reports) -> list[GateResult]:
    """One result for each gate, in order."""
    return [_check(gate, reports) for gate in gates]


def gate_name(result: GateResult) -> str:
    """Name of the number that a gate limits."""
    gate = result.gate
    if gate.set == ALIGNMENT:
        name = gate.metric if gate.metric in OF_ALIGNMENT else metric(gate.metric).name
        return f"alignment_{name}_{gate.statistic}"
    name = _key(gate)
    return name if gate.statistic == "generated" else f"{name}_{gate.statistic}"


def all_passed(results: Sequence[GateResult]) -> bool:
    """False if a gate failed or was not measured."""
    return all(result.status == "passed" for result in results)


def read_reports(metrics: Path, alignment: Path | None = None) -> Reports:
    """Read both output files of `evaluate`. Raises FileNotFoundError or ValueError in one line."""
    compared = _read(alignment) if alignment is not None and alignment.is_file() else {}
    return Reports(_read(metrics), compared)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; run `nava evaluate` first")
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}: not valid JSON ({error.msg} at line {error.lineno}); run `nava evaluate` again"
        ) from None


def _check(gate: Gate, reports: Reports) -> GateResult:
    found = reports.alignment
    if gate.set != ALIGNMENT:
        by_source = reports.metrics.get(_key(gate), {})
        return _result(gate, by_source.get(gate.statistic), "clips", f"no {gate.statistic} clips were scored")
    if not found:
        return _result(gate, None, "prompts", "nothing was aligned")
    if gate.metric == BEYOND_CODEC:
        return _driven(gate, found["metrics"], beyond_codec(found))
    if gate.metric == GUARDRAILS:
        guards = found["guardrails"].items()
        worse = [name for name, guard in guards if guard["flagged_after"] > guard["flagged_before"]]
        return _count(gate, worse, found["prompts"], "prompts")
    if gate.metric == GSB:
        raters = found.get("raters", {})
        votes = raters.get("gsb", {}).get(gate.statistic)
        return _result(gate, votes and gsb_interval(votes), "votes", raters.get("reason", "nobody voted"))
    compared = found["metrics"].get(metric(gate.metric).name, {})
    return _result(gate, compared.get(gate.statistic), "prompts", "not measured before and after alignment")


def gsb_interval(votes: Mapping[str, Any]) -> IntervalJson:
    """GSB of one axis, as other metrics have it."""
    n = votes["good"] + votes["same"] + votes["bad"]
    return {"mean": votes["gsb"], "low": votes["gsb_low"], "high": votes["gsb_high"], "n": n}


def _driven(gate: Gate, metrics: Mapping[str, Any], names: Sequence[str]) -> GateResult:
    """Not measured where it would pass although the codec of some metric has no interval to be beyond of."""
    result = _count(gate, names, len(metrics), "metrics")
    blind = [
        name
        for name, one in metrics.items()
        if one["codec"]["mean"] is not None and one["codec"]["low"] is None
    ]
    if result.status != "passed" or not blind:
        return result
    note = f"no interval of the codec, which has too few clips: {', '.join(blind)}"
    return replace(result, status="not measured", note=note)


def _count(gate: Gate, names: Sequence[str], n: int, counted: str) -> GateResult:
    return _result(
        gate, {"mean": len(names), "low": None, "high": None, "n": n}, counted, "", ", ".join(names)
    )


def _result(
    gate: Gate, interval: IntervalJson | None, counted: str, missing: str, note: str = ""
) -> GateResult:
    """`missing`: the note where there is no interval."""
    if interval is None:
        return GateResult(gate, "not measured", None, None, None, 0, counted, missing)
    mean, low, high, n = (interval[key] for key in ("mean", "low", "high", "n"))
    if interval.get("clusters"):
        counted = f"{counted} of {interval['clusters']} pairs of word and voice"
    value = interval[gate.value]
    status: Status = "failed"
    if value is None:
        status, note = "not measured", _unknown(gate, mean, n, counted) or missing
    elif n < gate.min_n:
        status, note = "not measured", f"{n} of at least {gate.min_n} {counted}"
    elif _kept(gate, value):
        status = "passed"
    return GateResult(gate, status, mean, low, high, n, counted, note)


def _unknown(gate: Gate, mean: float | None, n: int, counted: str) -> str:
    """Why there is no such number of `n` clips, prompts or votes; "" where there are none."""
    if mean is not None:
        return f"no interval: {n} {counted} that do not tell their spread"
    return "the gap to the codec is not measurable" if n else ""


def _key(gate: Gate) -> str:
    """Of the number among the metrics of prompt sets."""
    name = gate.metric if gate.metric == VOICES_EXCHANGED else metric(gate.metric).name
    return metric_key(name, gate.set)


def _kept(gate: Gate, value: float) -> bool:
    return (gate.at_least is None or value >= gate.at_least) and (
        gate.at_most is None or value <= gate.at_most
    )
