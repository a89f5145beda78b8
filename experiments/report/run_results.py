"""What a command came to, for its run in MLflow: the final model's numbers, and a table of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.report.gates import GateResult, Reports
from experiments.report.metric_keys import IntervalJson, Metrics, MetricsByName, count_of, main_metrics, title
from pretrain.markdown import markdown_table

GSB_AXES = ("overall", "sync", "voice", "picture")
# of which a list of runs shows one each, a judge where there is one: words, lips, voice
_GROUPS = (("wer_", "cer_", "word_error"), ("sync_",), ("sim_", "voice_"))
MOST_CLIPS = 6


@dataclass(frozen=True)
class RunResults:
    """numbers: by name; text: Markdown; columns: the numbers that a list of runs shows."""

    numbers: Mapping[str, float]
    text: str
    columns: Sequence[str]


def results_of(reports: Reports, gates: Sequence[GateResult], known: MetricsByName) -> RunResults:
    """What the evaluation of a command's last model gives. known: metrics by name, for their titles."""
    numbers = final_numbers(reports.metrics, reports.alignment) | gate_numbers(gates)
    lines = filter(None, (gates_line(gates), gsb_line(reports.alignment)))
    text = "\n\n".join([*lines, results_table(reports.metrics, reports.alignment, known)])
    return RunResults(numbers, text, columns_of(numbers))


def final_numbers(metrics: Metrics, alignment: Mapping[str, Any]) -> dict[str, float]:
    """Mean of each metric for the model in the end: aligned, on the held-out prompts; where nothing was
    aligned, generated, on the main prompt set. GSB is that of aligned against pretrained."""
    if compared := alignment.get("metrics"):
        found = {name: row["after"]["mean"] for name, row in compared.items()}
    else:
        found = {name: metrics[name]["generated"]["mean"] for name in main_metrics(metrics)}
    raters = alignment.get("raters", {})
    word = "simulated_gsb" if raters.get("simulated", True) else "gsb"
    votes = {f"{word}_{axis}": row["gsb"] for axis, row in raters.get("gsb", {}).items() if axis in GSB_AXES}
    return {name: value for name, value in {**found, **votes}.items() if value is not None}


def gate_numbers(results: Sequence[GateResult]) -> dict[str, float]:
    """How many gates passed, and of how many."""
    passed = sum(result.status == "passed" for result in results)
    return {"gates_passed": float(passed), "gates": float(len(results))} if results else {}


def columns_of(numbers: Mapping[str, float]) -> list[str]:
    """The numbers that a list of runs shows: word error, sync, voice, GSB, gates."""
    shown = []
    for starts in _GROUPS:
        found = [name for name in numbers if name.startswith(starts)]
        shown += sorted(found, key=lambda name: (not name.endswith("_judge"), found.index(name)))[:1]
    return [*shown, *(name for name in numbers if name.endswith("gsb_overall") or name == "gates_passed")]


def results_table(metrics: Metrics, alignment: Mapping[str, Any], known: MetricsByName) -> str:
    """Every metric with its 95 % interval: before and after alignment, or of the generated clips; and of the
    codec's round trip where that was measured."""
    if compared := alignment.get("metrics"):
        header = ["metric", "role", "before", "after", "difference", "codec", "prompts"]
        rows = [
            [
                title(name, known),
                row["role"],
                *(_span(row.get(side)) for side in ("before", "after", "difference", "codec")),
                count_of(row["after"]),
            ]
            for name, row in compared.items()
        ]
    else:
        header = ["metric", "real", "codec", "generated", "clips"]
        rows = [
            [
                title(name, known),
                *(_span(metrics[name].get(side)) for side in ("real", "codec", "generated")),
                count_of(metrics[name]["generated"]),
            ]
            for name in main_metrics(metrics)
        ]
    return markdown_table(header, rows)


def gsb_line(alignment: Mapping[str, Any]) -> str:
    """One sentence on the votes; "" without any."""
    raters = alignment.get("raters", {})
    overall = raters.get("gsb", {}).get("overall")
    if not overall:
        return ""
    who = "simulated raters" if raters.get("simulated") else "raters"
    return (
        f"GSB of {raters['raters']} {who}, aligned against pretrained: {overall['gsb']:+.2f} "
        f"({overall['gsb_low']:+.2f} to {overall['gsb_high']:+.2f}); good {overall['good']}, same "
        f"{overall['same']}, bad {overall['bad']}."
    )


def gates_line(results: Sequence[GateResult]) -> str:
    """One sentence on the gates; "" without any."""
    if not results:
        return ""
    missed = [result.gate.title for result in results if result.status != "passed"]
    passed = len(results) - len(missed)
    return f"{passed} of {len(results)} gates passed" + (f"; not: {', '.join(missed)}." if missed else ".")


def example_clips(folder: Path, number: int = MOST_CLIPS) -> list[Path]:
    """The first clips of a folder, in order of name."""
    return sorted(folder.glob("*.mp4"))[:number] if folder.is_dir() else []


def _span(interval: IntervalJson | None) -> str:
    if interval is None or interval["mean"] is None:
        return ""
    low, high = interval["low"], interval["high"]
    return f"{interval['mean']:.3f}" + ("" if low is None else f" ({low:.3f} to {high:.3f})")
