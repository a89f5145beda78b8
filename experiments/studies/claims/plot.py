"""The study's picture: measures over the scales of guidance, and the deciding difference of every row."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.studies.claims.guidance import DIRECTIONS, NONE
from experiments.studies.plot import errorbars, save

COLUMNS = 4
COLOURS = {"text": "#1b6ca8", "align": "#c8553d", "timbre": "#4f7942"}
VERDICTS = {"favours": "#4f7942", "against": "#c8553d"}  # otherwise grey


def draw(study: Mapping[str, Any], path: Path) -> None:
    """Panels of each metric over the scale, a line per direction; below, the deciding differences of the rows
    that were run, in units of what each could have seen. Filled with grey text where nothing was run."""
    rows = {name: row for name, row in study["claims"].items() if row["seeds"]}
    guided = {
        name: rows[f"guidance_{name}"] for name in DIRECTIONS if rows.get(f"guidance_{name}", {}).get("cells")
    }
    metrics = [name for name in study["metrics"] if not name.startswith("validation/")] if guided else []
    lines = -(-len(metrics) // COLUMNS)
    height = 2.3 * lines + 0.8 + 0.28 * max(1, len(rows))
    figure = Figure(figsize=(13, height), layout="constrained")
    grid = figure.add_gridspec(
        lines + 1, COLUMNS, height_ratios=[2.3] * lines + [0.8 + 0.28 * max(1, len(rows))]
    )
    for place, name in enumerate(metrics):
        axes = figure.add_subplot(grid[place // COLUMNS, place % COLUMNS])
        _over_scales(axes, name, guided)
        axes.set_title(
            f"{name} ({'up' if study['metrics'][name]['higher_is_better'] else 'down'})", fontsize=8
        )
        if place == 0:
            axes.legend(fontsize=7)
    _differences(figure.add_subplot(grid[lines, :]), rows)
    save(figure, path)


def _over_scales(axes: Axes, metric: str, guided: Mapping[str, Any]) -> None:
    for number, (direction, row) in enumerate(guided.items()):
        points = [
            (
                0.0 if cell["sampling"] == NONE else float(cell["sampling"].split()[-1]),
                cell["metrics"][metric],
            )
            for cell in row["cells"]
            if metric in cell["metrics"]
        ]
        shifted = [(scale + 0.06 * (number - 1), found) for scale, found in sorted(points, key=_place)]
        style = {"color": COLOURS[direction], "label": direction, "markersize": 4}
        errorbars(axes, shifted, style)
    axes.set_xlabel("scale", fontsize=7)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.3)


def _differences(axes: Axes, rows: Mapping[str, Any]) -> None:
    """In units of the difference that the row would have told apart; positive as the paper claims."""
    if not rows:
        axes.text(0.5, 0.5, "no row was run yet", ha="center", color="#888888", transform=axes.transAxes)
    for place, row in enumerate(rows.values()):
        found = row["contrasts"][0]["differences"][row["measure"]]
        if not found["detectable"] or found["mean"] is None:
            continue
        sign = 1.0 if row["higher_is_better"] else -1.0
        ends = sorted(sign * found[end] / found["detectable"] for end in ("low", "high"))
        point = {"mean": sign * found["mean"] / found["detectable"], "low": ends[0], "high": ends[1]}
        style = {"color": VERDICTS.get(row["verdict"], "#888888"), "markersize": 5}
        errorbars(axes, [(place, point)], style, horizontal=True)
    axes.axvline(0.0, color="#333333", linewidth=0.8)
    axes.set_yticks(range(len(rows)), list(rows), fontsize=8)
    axes.set_ylim(max(1, len(rows)) - 0.5, -0.5)
    axes.set_xlabel("deciding difference / detectable difference, positive as the paper claims", fontsize=8)
    axes.grid(alpha=0.3, axis="x")


def _place(point: tuple[float, Any]) -> float:
    return point[0]
