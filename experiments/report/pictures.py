"""Figures of the report, drawn with matplotlib without a display: filmstrips, contact sheet, losses."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pretrain.jsonl import FieldError, scan
from rewards.types import Clip

COLOURS = {"video": "#2f6f9f", "audio": "#c8642a"}
INK, FAINT = "#22282e", "#8a949c"
STRIP_FRAMES = 8
DPI = 110
FFT, HOP = 512, 128


def filmstrip(frames: np.ndarray, count: int = STRIP_FRAMES) -> np.ndarray:
    """uint8 [H, count * W, 3]: frames evenly spread over [T, H, W, 3]."""
    chosen = np.linspace(0, len(frames) - 1, min(count, len(frames))).round().astype(int)
    return np.concatenate(list(frames[chosen]), axis=1)


def spectrogram_db(waveform: np.ndarray) -> np.ndarray:
    """[257, S] in dB below the loudest bin, floor -70; frequencies 0 to half the sample rate."""
    padded = np.pad(waveform, (FFT // 2, FFT // 2 + FFT))
    windows = np.lib.stride_tricks.sliding_window_view(padded, FFT)[::HOP] * np.hanning(FFT)
    power = np.abs(np.fft.rfft(windows, axis=1).T) ** 2
    return np.clip(10 * np.log10(power / max(power.max(), 1e-12) + 1e-12), -70.0, 0.0)


def draw_clip(figure: Figure, area: tuple[float, float, float, float], clip: Clip) -> None:
    """Filmstrip, spectrogram and waveform in `area` (left, bottom, width, height as shares of the figure).

    The place of a modality that the clip lacks stays empty.
    """
    left, bottom, width, height = area
    if clip.frames is not None:
        strip = figure.add_axes((left, bottom + 0.58 * height, width, 0.42 * height))
        strip.imshow(filmstrip(clip.frames), aspect="auto", interpolation="nearest")
        strip.set_axis_off()
    if clip.waveform is None:
        return
    sound = figure.add_axes((left, bottom + 0.23 * height, width, 0.33 * height))
    sound.imshow(
        spectrogram_db(clip.waveform), aspect="auto", origin="lower", cmap="magma", interpolation="bilinear"
    )
    sound.set_axis_off()
    wave = figure.add_axes((left, bottom, width, 0.22 * height))
    # its shape; the loudness is in the numbers
    samples = clip.waveform / max(float(np.abs(clip.waveform).max()), 1e-6)
    envelope = np.abs(samples[: len(samples) // 32 * 32]).reshape(-1, 32).max(axis=1)
    wave.fill_between(np.arange(len(envelope)), envelope, -envelope, color=INK, linewidth=0)
    wave.set(xlim=(0, len(envelope)), ylim=(-1.05, 1.05))
    wave.set_axis_off()


def clip_png(clip: Clip, width_inches: float = 3.6) -> bytes:
    """One clip as a picture."""
    figure = Figure(figsize=(width_inches, width_inches * 0.36), dpi=DPI)
    draw_clip(figure, (0.0, 0.0, 1.0, 1.0), clip)
    return png(figure)


def contact_sheet(rows: Sequence[Mapping[str, tuple[Clip, str]]], titles: Sequence[str]) -> bytes:
    """One row per prompt with real, codec and generated (clip, caption); missing ones stay empty."""
    sources = ("real", "codec", "generated")
    width, row_height, head = 14.0, 1.95, 0.45
    height = head + row_height * len(rows)
    figure = Figure(figsize=(width, height), dpi=DPI)
    for column, source in enumerate(sources):
        label = {"real": "real clip", "codec": "real clip through the codec", "generated": "generated"}[
            source
        ]
        figure.text(0.01 + column * 0.33, 1 - 0.28 / height, label, fontsize=12, weight="bold", color=INK)
    for index, (row, heading) in enumerate(zip(rows, titles, strict=True)):
        top = 1 - (head + index * row_height) / height
        figure.text(0.01, top - 0.16 / height, heading, fontsize=9.5, color=INK)
        for column, source in enumerate(sources):
            if source in row:
                clip, caption = row[source]
                left = 0.01 + column * 0.33
                draw_clip(figure, (left, top - 1.55 / height, 0.315, 1.3 / height), clip)
                figure.text(left, top - 1.72 / height, caption, fontsize=8.5, color=FAINT)
    return png(figure)


def loss_curves(stages: Mapping[str, Path]) -> bytes | None:
    """Training loss per modality over all stages, and the validation loss; None without data.

    `stages`: folders with a metrics.jsonl each.
    """
    series, borders = read_losses(stages)
    styles: dict[str, dict[str, Any]] = {
        "train": {"linewidth": 1.2},
        "validation": {"marker": "o", "linestyle": "--", "markersize": 4},
    }
    if not any(steps for steps, _ in series.values()):
        return None
    figure = Figure(figsize=(10.5, 3.4), dpi=DPI)
    for column, modality in enumerate(("video", "audio")):
        axes = figure.add_axes((0.06 + 0.5 * column, 0.16, 0.42, 0.7))
        for kind, style in styles.items():
            steps, values = series[modality, kind]
            if steps:
                axes.plot(
                    steps, values, color=COLOURS[modality] if kind == "train" else INK, label=kind, **style
                )
        for name, start in borders:
            axes.axvline(start, color=FAINT, linewidth=0.8, linestyle=":")
            axes.text(
                start, 1.02, f" {name}", transform=axes.get_xaxis_transform(), fontsize=8.5, color=FAINT
            )
        axes.set_title(modality, loc="right", fontsize=11, color=COLOURS[modality], pad=12)
        axes.set_xlabel("step, all stages in a row")
        axes.set_ylabel("mean squared error of velocity")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#e6e9eb")
        if axes.lines and len(axes.get_legend_handles_labels()[1]):
            axes.legend(frameon=False, fontsize=9)
    return png(figure)


def png(figure: Figure) -> bytes:
    """The figure as a PNG file, the same bytes for the same figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def read_losses(
    stages: Mapping[str, Path],
) -> tuple[dict[tuple[str, str], tuple[list[float], list[float]]], list[tuple[str, float]]]:
    """(modality, train or validation) -> steps and values; and the first step of each stage."""
    series: dict[tuple[str, str], tuple[list[float], list[float]]] = {
        (modality, kind): ([], []) for modality in ("video", "audio") for kind in ("train", "validation")
    }
    offset, borders = 0.0, []
    for name, folder in stages.items():
        rows = read_rows(folder / "metrics.jsonl")
        if not rows:
            continue
        borders.append((name, offset))
        for row in rows:
            for modality in ("video", "audio"):
                buckets = [value for key, value in row.items() if key.startswith(f"validation/{modality}")]
                for kind, values in (
                    ("train", [row[f"loss_{modality}"]] if f"loss_{modality}" in row else []),
                    ("validation", buckets),
                ):
                    if values:
                        series[modality, kind][0].append(offset + row["step"])
                        series[modality, kind][1].append(float(np.mean(values)))
        offset += max(row["step"] for row in rows)
    return series, borders


# (topic, judge), (topic, reward or monitored metric); "" = none
PANELS = (
    (("words wrong", "wer_pocketsphinx_judge"), ("words wrong", "wer_pocketsphinx")),
    (
        ("intelligibility", "intelligibility_pocketsphinx_judge"),
        ("intelligibility", "intelligibility_pocketsphinx"),
    ),
    (("lips with sound", "sync_judge"), ("lips with sound", "sync_mini")),
    (("voice", ""), ("voice", "sim_resemblyzer")),
    (("noise of the picture", "picture_noise_judge"), ("signal to noise, dB", "snr_estimate_db")),
)
SIDES = {"before": ("#8a949c", "o"), "after": ("#c8642a", "o"), "codec": (INK, "D")}
HELD_OUT, TRAINED = "held_out/reward/", "reward/"


def before_after_dots(found: Mapping[str, Any]) -> bytes:
    """One row per topic: the judge left, its reward right; one row per other reward."""
    metrics = found["metrics"]
    shown = {name for row in PANELS for _, name in row}
    others = [name for name, metric in metrics.items() if metric["role"] == "reward" and name not in shown]
    panels_of = (*PANELS, *(((name, ""), (name, name)) for name in others))
    rows = [row for row in panels_of if any(name in metrics for _, name in row)]
    figure = Figure(figsize=(11, 0.5 + 1.2 * max(len(rows), 1)), dpi=DPI, layout="constrained")
    for panels, row in zip(figure.subplots(max(len(rows), 1), 2, squeeze=False), rows, strict=False):
        for axes, (about, name) in zip(panels, row, strict=True):
            if name in metrics:
                _dots(axes, about, name, metrics[name])
            else:
                axes.set_axis_off()
                missing = "not measured" if name else "no judge"
                axes.text(0.5, 0.5, f"{about}: {missing}", ha="center", color=FAINT, transform=axes.transAxes)
        # judge and reward share one scale
        if row[0][0] == row[1][0] and all(name in metrics for _, name in row):
            low, high = zip(*(axes.get_xlim() for axes in panels), strict=True)
            for axes in panels:
                axes.set_xlim(min(low), max(high))
    return png(figure)


def reward_curves(log: Path) -> bytes | None:
    """Held-out rewards (line) and rollout rewards (dots) over rounds of metrics.jsonl; None without data."""
    rows = read_rows(log)
    names = sorted(
        {
            key.removeprefix(HELD_OUT).removeprefix(TRAINED)
            for row in rows
            for key in row
            if key.startswith((HELD_OUT, TRAINED))
        }
    )
    if not names:
        return None
    figure = Figure(figsize=(11, 2.7), dpi=DPI, layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for prefix, style in (
            (TRAINED, {"marker": ".", "linestyle": "", "color": FAINT}),
            (HELD_OUT, {"marker": "o", "color": "#c8642a"}),
        ):
            points = [
                (row["step"], row[prefix + name])
                for row in rows
                if math.isfinite(row.get(prefix + name) or math.nan)
            ]
            if points:
                label = "held-out prompts" if prefix == HELD_OUT else "rolled-out clips"
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
            ends = [interval["mean"] if end is None else end for end in (interval["low"], interval["high"])]
            axes.plot(ends, [-place, -place], color=colour, linewidth=2, solid_capstyle="round")
            axes.plot([interval["mean"]], [-place], color=colour, marker=marker, markersize=7, linestyle="")
            text = f"{interval['mean']:.3f}"
            axes.annotate(
                text,
                (interval["mean"], -place),
                (0, 6),
                textcoords="offset points",
                ha="center",
                fontsize=7.5,
                color=colour,
            )
    axes.set_yticks([0, -1, -2], list(SIDES), fontsize=8.5)
    axes.set_ylim(-2.6, 0.8)
    axes.set_title(
        f"{about} · {metric['role']} · {metric['better']} is better", loc="left", fontsize=9, color=INK
    )
    axes.set_title(name, loc="right", fontsize=8, color=FAINT)
    axes.margins(x=0.12)
    _plain(axes, "x")


def _plain(axes: Axes, grid: Any) -> None:
    axes.grid(axis=grid, color="#e6e9eb")
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8.5)
    axes.spines[["top", "right"]].set_visible(False)


def read_rows(log: Path) -> Sequence[Mapping[str, Any]]:
    if not log.is_file():
        return []
    found = [row for _, row in scan(log)]
    return [row for row in found if not isinstance(row, FieldError)]
