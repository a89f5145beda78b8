"""Plots of estimates with 95 % intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pretrain.files import replacing


def errorbars(
    axes: Axes,
    points: Sequence[tuple[float, Mapping[str, Any]]],
    style: Mapping[str, Any],
    horizontal: bool = False,
) -> None:
    """Draw `points`: positions along one axis and {mean, low, high}; unmeasured ones are left out, and those
    without an interval are points.

    `horizontal`: intervals along x. `style`: of matplotlib's errorbar.
    """
    known = [(place, found) for place, found in points if found["mean"] is not None]
    if not known:
        return
    places, means = [place for place, _ in known], [found["mean"] for _, found in known]
    below, above = (
        [0.0 if found[end] is None else max(0.0, sign * (found[end] - found["mean"])) for _, found in known]
        for end, sign in (("low", -1.0), ("high", 1.0))
    )
    x, y, error = (means, places, "xerr") if horizontal else (places, means, "yerr")
    axes.errorbar(x, y, **{error: [below, above], "marker": "o", "capsize": 2, **style})


def save(figure: Figure, path: Path) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
