"""Held-out scores over the rounds of any alignment, from its metrics.jsonl."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from experiments.report.pictures import DPI, INK, png
from pretrain.jsonl import FieldError, scan

HELD_OUT = "held_out/"
TOTAL = "held_out_total"
KINDS = ("reward", "judge", "watched")
COLUMNS = 4
COLOURS = {"judge": "#2f6f9f", "watched": "#2f6f9f"}


def held_out_curves(log: Path, names: Container[str] = ()) -> bytes | None:
    """A PNG with an axis for the total and for every held-out reward and judge; None without any.

    `names`: further quantities to draw, of any kind (`held_out/part/NAME`).
    """
    found = held_out_series(log, names)
    if not found:
        return None
    rows = -(-len(found) // COLUMNS)
    figure = Figure(figsize=(11, 2.3 * rows), dpi=DPI, layout="constrained")
    grid = figure.subplots(rows, COLUMNS, squeeze=False)
    for axes in grid.flat[len(found) :]:
        axes.set_axis_off()
    for axes, (name, points) in zip(grid.flat, found.items(), strict=False):
        kind, _, short = name.removeprefix(HELD_OUT).partition("/")
        colour = COLOURS.get(kind, "#c8642a")
        axes.plot(*zip(*points, strict=True), marker="o", markersize=4, color=colour)
        axes.set_title(
            "total of the rubric" if name == TOTAL else f"{short} ({kind})", loc="left", fontsize=8.5
        )
        axes.title.set_color(INK)
        axes.set_xlabel("round", fontsize=8)
        axes.grid(axis="y", color="#e6e9eb")
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    return png(figure)


def held_out_series(log: Path, names: Container[str] = ()) -> dict[str, list[tuple[int, float]]]:
    """Key of metrics.jsonl -> (round, value), the total first, then rewards, judges and the rest."""
    series: dict[str, list[tuple[int, float]]] = {}
    for row in _rows(log):
        for key, value in row.items():
            if _is_drawn(key, names) and isinstance(value, (int, float)) and math.isfinite(value):
                series.setdefault(key, []).append((int(row["step"]), float(value)))
    return {key: series[key] for key in sorted(series, key=_place)}


def _is_drawn(key: str, names: Container[str]) -> bool:
    kind, _, name = key.removeprefix(HELD_OUT).partition("/")
    return key == TOTAL or (
        key.startswith(HELD_OUT) and (kind in KINDS or (kind == "part" and name in names))
    )


def _place(key: str) -> tuple[int, str]:
    kind = key.removeprefix(HELD_OUT).partition("/")[0]
    return (-1 if key == TOTAL else KINDS.index(kind) if kind in KINDS else len(KINDS)), key


def _rows(log: Path) -> Sequence[Mapping[str, Any]]:
    if not log.is_file():
        return []
    return [row for _, row in scan(log) if not isinstance(row, FieldError) and "step" in row]
