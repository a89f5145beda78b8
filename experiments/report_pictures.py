"""Pictures of the report, drawn with matplotlib and no screen: filmstrips with spectrograms, the contact sheet, loss curves."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

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
    """Filmstrip, spectrogram and waveform in `area` (left, bottom, width, height as shares of the figure)."""
    left, bottom, width, height = area
    assert clip.frames is not None and clip.waveform is not None
    strip = figure.add_axes((left, bottom + 0.58 * height, width, 0.42 * height))
    strip.imshow(filmstrip(clip.frames), aspect="auto", interpolation="nearest")
    strip.set_axis_off()
    sound = figure.add_axes((left, bottom + 0.23 * height, width, 0.33 * height))
    sound.imshow(spectrogram_db(clip.waveform), aspect="auto", origin="lower", cmap="magma", interpolation="bilinear")
    sound.set_axis_off()
    wave = figure.add_axes((left, bottom, width, 0.22 * height))
    samples = clip.waveform / max(float(np.abs(clip.waveform).max()), 1e-6)  # its shape; the loudness is in the numbers
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
    """One row per prompt; each holds real, codec and generated (clip, caption), what is missing stays empty."""
    sources = ("real", "codec", "generated")
    width, row_height, head = 14.0, 1.95, 0.45
    height = head + row_height * len(rows)
    figure = Figure(figsize=(width, height), dpi=DPI)
    for column, source in enumerate(sources):
        label = {"real": "real clip", "codec": "real clip through the codec", "generated": "generated"}[source]
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
    """Training loss per modality over all stages (folder with metrics.jsonl each) and the validation loss; None without a row."""
    series, borders = _read_losses(stages)
    styles: dict[str, dict[str, Any]] = {"train": {"linewidth": 1.2}, "validation": {"marker": "o", "linestyle": "--", "markersize": 4}}
    if not any(steps for steps, _ in series.values()):
        return None
    figure = Figure(figsize=(10.5, 3.4), dpi=DPI)
    for column, modality in enumerate(("video", "audio")):
        axes = figure.add_axes((0.06 + 0.5 * column, 0.16, 0.42, 0.7))
        for kind, style in styles.items():
            steps, values = series[modality, kind]
            if steps:
                axes.plot(steps, values, color=COLOURS[modality] if kind == "train" else INK, label=kind, **style)
        for name, start in borders:
            axes.axvline(start, color=FAINT, linewidth=0.8, linestyle=":")
            axes.text(start, 1.02, f" {name}", transform=axes.get_xaxis_transform(), fontsize=8.5, color=FAINT)
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


def _read_losses(stages: Mapping[str, Path]) -> tuple[dict[tuple[str, str], tuple[list[float], list[float]]], list[tuple[str, float]]]:
    """(modality, train or validation) -> steps and values; and where each stage begins."""
    series: dict[tuple[str, str], tuple[list[float], list[float]]] = {
        (modality, kind): ([], []) for modality in ("video", "audio") for kind in ("train", "validation")
    }
    offset, borders = 0.0, []
    for name, folder in stages.items():
        path = folder / "metrics.jsonl"
        rows: list[dict[str, Any]] = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
        if not rows:
            continue
        borders.append((name, offset))
        for row in rows:
            for modality in ("video", "audio"):
                buckets = [value for key, value in row.items() if key.startswith(f"validation/{modality}")]
                for kind, values in (("train", [row[f"loss_{modality}"]] if f"loss_{modality}" in row else []), ("validation", buckets)):
                    if values:
                        series[modality, kind][0].append(offset + row["step"])
                        series[modality, kind][1].append(float(np.mean(values)))
        offset += max(row["step"] for row in rows)
    return series, borders
