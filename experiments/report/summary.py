"""The evaluation held against what the mini run must reach: the same verdicts for the terminal and for the
page."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.report.before_after import Verdict, verdict_word
from experiments.report.verdicts import alignment_verdicts, beyond_from_the_start

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


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
    codec_voice, codec_lips = (
        _mean(metrics, "voice_accuracy_resemblyzer", "codec"),
        _mean(metrics, "lip_loudness_correlation", "codec"),
    )
    voice = min(0.8, codec_voice - 0.05) if codec_voice is not None else 0.8
    lips = 0.85 * codec_lips if codec_lips is not None else None
    return [
        _verdict(metrics, "wer_pocketsphinx", "at most 0.30", lambda value: value <= 0.30, 200),
        _verdict(metrics, "wer_pocketsphinx", "at most 0.15", lambda value: value <= 0.15, aim=True),
        _verdict(
            metrics, "wer_pocketsphinx_heldout_pairs", "at most 0.50", lambda value: value <= 0.50, aim=True
        ),
        _verdict(
            metrics, "voice_accuracy_resemblyzer", f"at least {voice:.2f}", lambda value: value >= voice
        ),
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
    return [
        name
        for name, by_source in metrics.items()
        if name in TITLES and not name.endswith("_disagree") and "generated" in by_source
    ]


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
    """suffix of a prompt set -> metric without it -> interval of the generated clips; sets without clips are
    left out."""
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
        raise ValueError(
            f"{path}: not valid JSON ({error.msg} at line {error.lineno}); run `nava evaluate` again"
        ) from None


def print_summary(path: Path, alignment: Path | None = None) -> None:
    """For the terminal: the main metrics with their intervals, the other prompt sets, what must hold, and the
    same of `alignment` (what `evaluate` wrote of before and after) where there is that file."""
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
        others = Table(
            "other prompts, generated", *(suffix.removeprefix("_") for suffix in grid), box=box.SIMPLE_HEAD
        )
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
    metrics: Metrics,
    metric: str,
    limit: str,
    holds: Callable[[float], bool] | None,
    min_clips: int = 1,
    aim: bool = False,
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


SIMULATED = "SIMULATED RATERS: no person voted"


def print_alignment(console: Console, found: Mapping[str, Any]) -> None:
    """Every metric before, after and of the codec's round trip, changes with their 95 % intervals; simulated
    raters; what must hold."""
    from rich import box
    from rich.table import Table

    console.print(
        f"  alignment on {found['prompts']} held-out prompts; ↑ higher is better, ↓ lower", highlight=False
    )
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("mean, 95 % interval", overflow="fold", min_width=18)
    for head in ("before", "after", "codec", "after - before", "gap closed"):
        table.add_column(head, justify="right", no_wrap=True)
    for name, metric in found["metrics"].items():
        means = [short_interval(metric[key]).partition("\n")[0] for key in ("before", "after", "codec")]
        about = (
            f"{metric['role']} {'↓' if metric['better'] == 'lower' else '↑'} n {metric['difference']['n']}"
        )
        table.add_row(
            f"{name}\n[dim]{about}[/]",
            *means,
            short_interval(metric["difference"]),
            short_interval(metric.get("closed"), 2),
        )
    console.print(table)
    for line in rater_lines(found.get("raters", {})):
        console.print(line, markup=False, highlight=False)
    if names := beyond_from_the_start(found):
        console.print(
            f"beyond the codec's interval already before alignment: {', '.join(names)}", highlight=False
        )
    console.print(verdict_table(alignment_verdicts(found)))


def rater_lines(raters: Mapping[str, Any]) -> list[str]:
    """Good, same and bad by axis, and what must be known about it."""
    if not raters:
        return []
    lines = [f"{SIMULATED}; {axis}: {gsb_words(gsb)}" for axis, gsb in raters["gsb"].items()]
    if reason := raters.get("reason"):
        return [f"{SIMULATED}; {reason}"]
    return [*lines, f"{SIMULATED}; {kept_words(raters)}"]


def gsb_words(gsb: Mapping[str, Any]) -> str:
    """Counts, GSB with its interval, and the sign test."""
    interval = f"{gsb['gsb_low']:+.2f}..{gsb['gsb_high']:+.2f}"
    return (
        f"good {gsb['good']}, same {gsb['same']}, bad {gsb['bad']}, GSB {gsb['gsb']:+.2f} ({interval}), "
        f"sign test p {gsb['sign_p']:.2g}"
    )


def kept_words(raters: Mapping[str, Any]) -> str:
    """How many raters the fixed rule kept, and what the others would have changed."""
    overall, of_all = raters["gsb"]["overall"], raters["gsb_all_raters"]["overall"]
    kept = (
        f"{overall['raters']} of {raters['raters']} raters count, the fixed rule for answers to repeats "
        "and checks drops the others"
    )
    return f"{kept}; with all of them overall {gsb_words(of_all)}"


def verdict_table(verdicts: Sequence[Verdict]) -> Table:
    """What must hold, what was measured, and the word for it."""
    from rich import box
    from rich.table import Table

    table = Table("must hold", "measured", "n", "limit", "verdict", box=box.SIMPLE_HEAD)
    for verdict in verdicts:
        colour = {True: "green", False: "yellow" if verdict.aim else "red", None: "yellow"}[verdict.met]
        value = measured(verdict).replace(" (", "\n[dim](").replace(")", ")[/]")
        table.add_row(
            verdict.metric, value, str(verdict.n), verdict.limit, f"[{colour}]{verdict_word(verdict)}[/]"
        )
    return table


def measured(verdict: Verdict) -> str:
    """The value, with its interval where there is one; counts as whole numbers."""
    if verdict.value is None:
        return "–"
    if isinstance(verdict.value, int):
        return str(verdict.value)
    return f"{verdict.value:.3f}" + (
        f" ({verdict.interval[0]:.3f}..{verdict.interval[1]:.3f})" if verdict.interval else ""
    )


def short_interval(interval: Mapping[str, Any] | None, digits: int = 3) -> str:
    """Mean over its interval in rich's markup; a dash for what was not measured."""
    if interval is None or interval["mean"] is None:
        return "–"
    return (
        f"{interval['mean']:.{digits}f}\n[dim]{interval['low']:.{digits}f}..{interval['high']:.{digits}f}[/]"
    )
