"""Pictures of alignment: every metric before, after and of the codec, judges beside rewards; and rewards over the rounds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.report_pictures import DPI, FAINT, INK, png
from pretrain.jsonl import FieldError, scan

# (what it is about, judge), (what it is about, reward or what is watched); "" = there is none
PANELS = (
    (("words wrong", "wer_pocketsphinx_judge"), ("words wrong", "wer_pocketsphinx")),
    (("intelligibility", "intelligibility_pocketsphinx_judge"), ("intelligibility", "intelligibility_pocketsphinx")),
    (("lips with sound", "sync_judge"), ("lips with sound", "sync_mini")),
    (("voice", ""), ("voice", "sim_resemblyzer")),
    (("noise of the picture", "picture_noise_judge"), ("signal to noise, dB", "snr_estimate_db")),
)
SIDES = {"before": ("#8a949c", "o"), "after": ("#c8642a", "o"), "codec": (INK, "D")}
ASIDE, TRAINED = "aside/reward/", "reward/"


def before_after_dots(found: Mapping[str, Any]) -> bytes:
    """One row per topic: the judge on the left, its reward on the right; dots are means, lines their 95 % intervals."""
    metrics = found["metrics"]
    rows = [row for row in PANELS if any(name in metrics for _, name in row)]
    figure = Figure(figsize=(11, 0.5 + 1.2 * max(len(rows), 1)), dpi=DPI, layout="constrained")
    for panels, row in zip(figure.subplots(max(len(rows), 1), 2, squeeze=False), rows, strict=False):
        for axes, (about, name) in zip(panels, row, strict=True):
            if name in metrics:
                _dots(axes, about, name, metrics[name])
            else:
                axes.set_axis_off()
                missing = "not measured" if name else "no judge"
                axes.text(0.5, 0.5, f"{about}: {missing}", ha="center", color=FAINT, transform=axes.transAxes)
        if row[0][0] == row[1][0] and all(name in metrics for _, name in row):  # judge and reward on one scale
            low, high = zip(*(axes.get_xlim() for axes in panels), strict=True)
            for axes in panels:
                axes.set_xlim(min(low), max(high))
    return png(figure)


def reward_curves(log: Path) -> bytes | None:
    """Rewards of the prompts set aside (line) and of the rolled-out clips (dots) over the rounds of metrics.jsonl; None without any."""
    rows = _rows(log)
    names = sorted({key.removeprefix(ASIDE).removeprefix(TRAINED) for row in rows for key in row if key.startswith((ASIDE, TRAINED))})
    if not names:
        return None
    figure = Figure(figsize=(11, 2.7), dpi=DPI, layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for prefix, style in ((TRAINED, {"marker": ".", "linestyle": "", "color": FAINT}), (ASIDE, {"marker": "o", "color": "#c8642a"})):
            points = [(row["step"], row[prefix + name]) for row in rows if math.isfinite(row.get(prefix + name) or math.nan)]
            if points:
                label = "prompts set aside" if prefix == ASIDE else "rolled-out clips"
                axes.plot(*zip(*points, strict=True), label=label, markersize=5, **style)
        axes.set_title(name, loc="left", fontsize=9, color=INK)
        axes.set_xlabel("round", fontsize=8.5)
        _plain(axes, "y")
    figure.axes[0].legend(frameon=False, fontsize=8)
    return png(figure)


def _dots(axes: Axes, about: str, name: str, metric: Mapping[str, Any]) -> None:
    for place, (side, (colour, marker)) in enumerate(SIDES.items()):
        interval = metric[side]
        if interval["mean"] is not None:
            axes.plot([interval["low"], interval["high"]], [-place, -place], color=colour, linewidth=2, solid_capstyle="round")
            axes.plot([interval["mean"]], [-place], color=colour, marker=marker, markersize=7, linestyle="")
            text = f"{interval['mean']:.3f}"
            axes.annotate(text, (interval["mean"], -place), (0, 6), textcoords="offset points", ha="center", fontsize=7.5, color=colour)
    axes.set_yticks([0, -1, -2], list(SIDES), fontsize=8.5)
    axes.set_ylim(-2.6, 0.8)
    axes.set_title(f"{about} · {metric['role']} · {metric['better']} is better", loc="left", fontsize=9, color=INK)
    axes.set_title(name, loc="right", fontsize=8, color=FAINT)
    axes.margins(x=0.12)
    _plain(axes, "x")


def _plain(axes: Axes, grid: Any) -> None:
    axes.grid(axis=grid, color="#e6e9eb")
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8.5)
    axes.spines[["top", "right"]].set_visible(False)


def _rows(log: Path) -> Sequence[Mapping[str, Any]]:
    if not log.is_file():
        return []
    found = [row for _, row in scan(log)]
    return [row for row in found if not isinstance(row, FieldError)]
