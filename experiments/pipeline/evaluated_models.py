"""What an evaluation tells of the models that it measured: their metrics, and which of them is the best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from experiments.job import StageJob
from experiments.report.gates import GateResult, Reports, all_passed
from experiments.report.metric_keys import Metrics
from experiments.runs.lineage import checkpoint_of
from experiments.runs.model_names import BEST, registered_name
from experiments.runs.tracker import SpoolTracker
from experiments.scoring.sets import ALIGN_SET

EVALUATED = "evaluated"  # first part of the metrics' names
BEFORE, AFTER = 0, 1  # steps: of the pretrained and of the aligned model, which share names
STATISTICS = ("low", "high", "n")


def tell_models(
    job: StageJob, tracker: SpoolTracker, written: Reports, results: Sequence[GateResult]
) -> None:
    """Attach the metrics of generated clips to the model that made them, those of aligned clips to theirs.

    The alias `best` moves to the last of the two where all gates passed; where not, a tag of the run says so.
    """
    layout = job.layout
    made = {"generated": _maker(layout.generated), "aligned": _maker(layout.aligned)}
    if not any("aligned" in sources for sources in written.metrics.values()):
        made["aligned"] = ""  # older clips may still lie there
    for step, (source, checkpoint) in zip((BEFORE, AFTER), made.items(), strict=True):
        if checkpoint and (values := metrics_of(written.metrics, source)):
            tracker.log_model_metrics(checkpoint, values, step)
    best, why = made["aligned"] or made["generated"], why_not(results)
    if best and not why:
        tracker.move_alias(registered_name(job.recipe.name), BEST, best)
    else:
        tracker.set_tags({f"nava.alias.{BEST}": f"not moved: {why or 'no generated clips'}"})


def why_not(results: Sequence[GateResult]) -> str:
    """Why a model is not the best one by its gates; "" if it is."""
    if not results:
        return "the recipe has no gates"
    failed = [f"{one.gate.metric} of {one.gate.set}" for one in results if one.status != "passed"]
    return "" if all_passed(results) else f"{len(failed)} of {len(results)} gates: {', '.join(failed)}"


def metrics_of(metrics: Metrics, source: str) -> dict[str, float]:
    """`evaluated/METRIC` and its /low, /high and /n, of one source of clips."""
    found: dict[str, float] = {}
    for key, sources in metrics.items():
        interval: Mapping[str, Any] = sources.get(source, {})
        named = {"": interval.get("mean")} | {f"/{name}": interval.get(name) for name in STATISTICS}
        found |= {
            f"{EVALUATED}/{key}{end}": float(value) for end, value in named.items() if value is not None
        }
    return found


def _maker(folder: Path) -> str:
    """Checkpoint id in the mark of a generated clip; "" without clips."""
    first = folder / ALIGN_SET
    places = [first, *sorted(folder.iterdir())] if folder.is_dir() else []
    for place in places:
        for clip in islice(sorted(place.glob("*.mp4")), 1):
            return checkpoint_of(clip)
    return ""
