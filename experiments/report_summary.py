"""The evaluation held against what the mini run must reach: the same verdicts for the terminal and for the page."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from experiments.report_alignment_table import print_alignment, verdict_table
from experiments.verdict import Verdict

Metrics = Mapping[str, Mapping[str, Mapping[str, Any]]]  # metric -> source -> {mean, low, high, n}

TITLES = {
    "wer_pocketsphinx": "Word error rate (PocketSphinx)",
    "wer_pocketsphinx_judge": "Word error rate (PocketSphinx, the judge's set-up)",
    "intelligibility_pocketsphinx": "Intelligibility, 0 to 1 (PocketSphinx)",
    "intelligibility_pocketsphinx_judge": "Intelligibility, 0 to 1 (PocketSphinx, the judge's set-up)",
    "voice_accuracy_resemblyzer": "Nearest voice is the right one (Resemblyzer)",
    "sim_resemblyzer": "Similarity to the reference voice (Resemblyzer)",
    "sync_mini": "Sync reward at zero lag (reward network)",
    "sync_judge": "Sync reward at zero lag (judge network)",
    "sync_c_mini": "Sync-C of the judge's reduced SyncNet",
    "sync_d_mini": "Sync-D of the judge's reduced SyncNet (lower is better)",
    "lip_loudness_correlation": "Lips follow loudness (correlation)",
    "lip_loudness_lag_frames": "Lips after sound (frames)",
    "picture_noise_judge": "Noise of the picture, estimated (lower is better)",
    "snr_estimate_db": "Signal to noise, estimated (dB)",
    "reference_wins_disagree": "Reference voice wins over the text",
}
SUFFIXES = {  # of prompt sets that get a column each
    "_heldout_pairs": "word-voice pairs never trained",
    "_disagree": "text and reference disagree",
    "_dialogue": "dialogue",
    "_camera": "camera moves",
}
SOURCES = ("real", "codec", "generated")


def verdicts(metrics: Metrics) -> list[Verdict]:
    """What must hold for single-speaker clips, held-out pairs and disagreeing references."""
    codec_voice, codec_lips = _mean(metrics, "voice_accuracy_resemblyzer", "codec"), _mean(metrics, "lip_loudness_correlation", "codec")
    voice = min(0.8, codec_voice - 0.05) if codec_voice is not None else 0.8
    lips = 0.85 * codec_lips if codec_lips is not None else None
    return [
        _verdict(metrics, "wer_pocketsphinx", "at most 0.30", lambda value: value <= 0.30, 200),
        _verdict(metrics, "wer_pocketsphinx", "at most 0.15", lambda value: value <= 0.15, aim=True),
        _verdict(metrics, "wer_pocketsphinx_heldout_pairs", "at most 0.50", lambda value: value <= 0.50, aim=True),
        _verdict(metrics, "voice_accuracy_resemblyzer", f"at least {voice:.2f}", lambda value: value >= voice),
        _verdict(metrics, "reference_wins_disagree", "at least 0.70", lambda value: value >= 0.70, 100),
        _verdict(
            metrics,
            "lip_loudness_correlation",
            "at least 85 % of the codec's" if lips is None else f"at least {lips:.2f} (85 % of the codec's)",
            None if lips is None else lambda value: value >= lips,
        ),
        _verdict(metrics, "lip_loudness_lag_frames", "0 ± 1", lambda value: abs(value) <= 1),
    ]


def main_metrics(metrics: Metrics) -> list[str]:
    """Those of the main set that its generated clips have, in order."""
    return [name for name, by_source in metrics.items() if name in TITLES and not name.endswith("_disagree") and "generated" in by_source]


def title(metric: str) -> str:
    """A metric's name for people, with what its suffix means."""
    if metric in TITLES:
        return TITLES[metric]
    for suffix, meaning in SUFFIXES.items():
        if metric.endswith(suffix):
            base = metric.removesuffix(suffix)
            return f"{TITLES.get(base, base)}, {meaning}"
    return metric


def by_set(metrics: Metrics) -> dict[str, dict[str, Mapping[str, Any]]]:
    """suffix of a prompt set -> metric without it -> interval of the generated clips; sets without clips are left out."""
    grid: dict[str, dict[str, Mapping[str, Any]]] = {}
    for suffix in SUFFIXES:
        for metric, by_source in metrics.items():
            if metric.endswith(suffix) and "generated" in by_source:
                base = metric if metric in TITLES else metric.removesuffix(suffix)
                grid.setdefault(suffix, {})[base] = by_source["generated"]
    return grid


def read_metrics(path: Path) -> dict[str, Any]:
    """The evaluation's JSON; FileNotFoundError or ValueError in one line."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; run `nava evaluate` first")
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not valid JSON ({error.msg} at line {error.lineno}); run `nava evaluate` again") from None


def print_summary(path: Path, alignment: Path | None = None) -> None:
    """For the terminal: the main metrics with their intervals, the other prompt sets, what must hold, and the same of `alignment`
    (what `evaluate` wrote of before and after) where there is that file."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    metrics, console = read_metrics(path), Console()
    main = Table("mean, 95 % interval", *SOURCES, "clips", box=box.SIMPLE_HEAD)
    for metric in main_metrics(metrics):
        clips = max(interval["n"] for interval in metrics[metric].values())
        main.add_row(metric, *(_short(metrics[metric].get(source)) for source in SOURCES), str(clips))
    console.print(main)
    if grid := by_set(metrics):
        others = Table("other prompts, generated", *(suffix.removeprefix("_") for suffix in grid), box=box.SIMPLE_HEAD)
        for base in dict.fromkeys(base for column in grid.values() for base in column):
            others.add_row(base, *(_short(column.get(base)) for column in grid.values()))
        console.print(others)
    console.print(verdict_table(verdicts(metrics)))
    if alignment is not None and alignment.is_file():
        print_alignment(console, read_metrics(alignment))


def _short(interval: Mapping[str, Any] | None) -> str:
    if interval is None or interval["mean"] is None:
        return "–"
    return f"{interval['mean']:.2f}\n[dim]{interval['low']:.2f}..{interval['high']:.2f}[/]"


def _verdict(
    metrics: Metrics, metric: str, limit: str, holds: Callable[[float], bool] | None, min_clips: int = 1, aim: bool = False
) -> Verdict:
    value = _mean(metrics, metric, "generated")
    n = metrics[metric]["generated"]["n"] if value is not None else 0
    met = None if value is None or holds is None or n < min_clips else bool(holds(value))
    text = f"{limit} on {min_clips} clips" if min_clips > 1 else limit
    return Verdict(metric, value, text, met, n, aim)


def _mean(metrics: Metrics, metric: str, source: str) -> float | None:
    if metric not in metrics or source not in metrics[metric]:
        return None
    return metrics[metric][source]["mean"]
