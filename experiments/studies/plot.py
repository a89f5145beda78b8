"""The study's picture: every metric against steps and against training FLOPs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.studies.paradigms.config import FLOPS, PARADIGMS, REFERENCE, STEPS
from experiments.studies.scores import METRICS
from pretrain.files import replacing

COLOURS = {"nava": "#1b6ca8", "dual_tower": "#c8553d", "unified": "#4f7942"}
VALIDATION = ("validation/video", "validation/audio")
AXES = {"steps": ("steps", 1.0), "flops": ("training TFLOP", 1e12)}


def draw(study: Mapping[str, Any], path: Path) -> None:
    """Filled: equal steps, after each scored stage; open: the runs at equal FLOPs. Bars are 95 %
    intervals."""
    metrics = [name for name in METRICS if name in study["budgets"][STEPS][REFERENCE]["metrics"]]
    rows = [
        *metrics,
        *(
            name
            for name in VALIDATION
            if any(name in point["validation"] for point in _curve(study, STEPS, REFERENCE))
        ),
    ]
    figure = Figure(figsize=(9, 2.3 * len(rows)), layout="constrained")
    panels = figure.subplots(len(rows), len(AXES), squeeze=False, sharey="row")
    for panel_row, name in zip(panels, rows, strict=True):
        for axes, (key, (label, unit)) in zip(panel_row, AXES.items(), strict=True):
            for paradigm in PARADIGMS:
                _line(axes, study, paradigm, name, key, unit)
            axes.grid(alpha=0.3)
            axes.set_xlabel(label)
        better = "" if name in VALIDATION else " (up)" if METRICS[name].higher_is_better else " (down)"
        panel_row[0].set_ylabel(name.removesuffix("_correlation") + better, fontsize=8)
    panels[0][0].legend(fontsize=8)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def _line(axes: Axes, study: Mapping[str, Any], paradigm: str, name: str, key: str, unit: float) -> None:
    for budget, fill in ((STEPS, "full"), (FLOPS, "none")):
        if budget == FLOPS and study["budgets"][FLOPS][paradigm]["served_by"] == STEPS:
            continue
        points = [
            found for point in _curve(study, budget, paradigm) if (found := _point(point, name, key, unit))
        ]
        if not points:
            continue
        x, y, low, high = zip(*points, strict=True)
        errors = [[a - b for a, b in zip(y, low, strict=True)], [b - a for a, b in zip(y, high, strict=True)]]
        label = paradigm if budget == STEPS else f"{paradigm}, equal FLOPs"
        axes.errorbar(
            x,
            y,
            yerr=errors,
            marker="o",
            fillstyle=fill,
            linestyle="-" if budget == STEPS else ":",
            color=COLOURS[paradigm],
            label=label,
            capsize=2,
        )


def _point(
    point: Mapping[str, Any], name: str, key: str, unit: float
) -> tuple[float, float, float, float] | None:
    if name in VALIDATION:
        value = point["validation"].get(name)
        return None if value is None else (point[key] / unit, value, value, value)
    found = point["metrics"].get(name)
    return (
        (
            point[key] / unit,
            found["mean"],
            min(found["low"], found["mean"]),
            max(found["high"], found["mean"]),
        )
        if found and found["mean"] is not None
        else None
    )


def _curve(study: Mapping[str, Any], budget: str, paradigm: str) -> list[Mapping[str, Any]]:
    return study["budgets"][budget][paradigm]["curve"]
