"""The study's picture: every metric's difference to the pretrained model, arm by arm, with its interval."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from experiments.studies.objectives.config import BASELINE
from pretrain.files import replacing

COLUMNS = 4
COLOURS = {"better": "#4f7942", "worse": "#c8553d"}  # all else grey


def draw(study: Mapping[str, Any], path: Path) -> None:
    """Green: better, red: worse, grey: the 95 % interval reaches 0."""
    arms = [name for name in study["arms"] if name != BASELINE]
    names = list(study["metrics"])
    rows = -(-len(names) // COLUMNS)
    figure = Figure(figsize=(13, rows * (0.7 + 0.26 * len(arms))), layout="constrained")
    panels = figure.subplots(rows, COLUMNS, squeeze=False, sharey=True).flatten()
    for axes, name in zip(panels, names, strict=False):
        for place, arm in enumerate(arms):
            found = study["arms"][arm]["differences"][name]
            if found["mean"] is not None:
                errors = [[max(0.0, found["mean"] - found["low"])], [max(0.0, found["high"] - found["mean"])]]
                colour = COLOURS.get(found["verdict"], "#888888")
                axes.errorbar(
                    [found["mean"]], [place], xerr=errors, marker="o", markersize=4, capsize=2, color=colour
                )
        axes.axvline(0.0, color="#333333", linewidth=0.8)
        axes.set_title(
            f"{name} ({'up' if study['metrics'][name]['higher_is_better'] else 'down'})", fontsize=8
        )
        axes.tick_params(labelsize=7)
        axes.locator_params(axis="x", nbins=5)
        axes.grid(alpha=0.3, axis="x")
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    panels[0].set_yticks(range(len(arms)), arms)
    panels[0].set_ylim(len(arms) - 0.5, -0.5)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
