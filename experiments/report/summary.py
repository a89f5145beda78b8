"""The evaluation as tables for the terminal."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from experiments.report.before_after import beyond_from_the_start
from experiments.report.gates import GateResult, Reports
from experiments.report.metric_keys import (
    SOURCES,
    IntervalJson,
    by_set,
    count_of,
    main_metrics,
    most_clips,
)
from pretrain.terminal import plain

if TYPE_CHECKING:
    from rich.console import Console

PAIRS = "of N pairs: of word and voice; clips of the same ones fail alike, and intervals draw the pairs"
SIMULATED = "SIMULATED RATERS: no person voted"
COLOURS = {"passed": "green", "failed": "red", "not measured": "yellow"}


def print_summary(reports: Reports) -> None:
    """The main metrics with their intervals, the other prompt sets, and what alignment changed."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    metrics, console = reports.metrics, Console(file=plain(sys.stdout))
    main = Table("mean, 95 % interval", *SOURCES, "clips", box=box.SIMPLE_HEAD)
    for metric in main_metrics(metrics):
        clips = count_of(most_clips(metrics[metric].values()))
        cells = (short_interval(metrics[metric].get(source), 2) for source in SOURCES)
        main.add_row(metric, *cells, clips)
    console.print(main)
    if any(interval.get("clusters") for by_source in metrics.values() for interval in by_source.values()):
        console.print(f"  {PAIRS}", highlight=False)
    if grid := by_set(metrics):
        names = (suffix.removeprefix("_") for suffix in grid)
        others = Table("other prompts, generated", *names, box=box.SIMPLE_HEAD)
        others.add_row("clips", *(count_of(most_clips(column.values())) for column in grid.values()))
        for base in dict.fromkeys(base for column in grid.values() for base in column):
            others.add_row(base, *(short_interval(column.get(base), 2) for column in grid.values()))
        console.print(others)
    if reports.alignment:
        _print_alignment(console, reports.alignment)


def print_gates(results: Sequence[GateResult]) -> None:
    """A row per quality gate, failed ones with the reason for the limit; nothing without gates."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    if not results:
        return
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("quality gate", overflow="fold", min_width=20)
    for head in ("measured", "limit", "result"):
        table.add_column(head, no_wrap=head == "result")
    for result in results:
        gate, status = result.gate, f"[{COLOURS[result.status]}]{result.status}[/]"
        value, _, interval = measured(result).partition(" (")
        about = (interval.removesuffix(")"), f"{result.n} {result.counted}", result.note)
        why = "" if result.status == "passed" else gate.why
        table.add_row(
            f"{gate.metric}{_dim(f'{gate.set}, {gate.statistic}')}",
            value + "".join(map(_dim, about)),
            gate.limit + _dim(why),
            status,
        )
    Console(file=plain(sys.stdout)).print(table)


def _dim(text: str) -> str:
    return f"\n[dim]{text}[/]" if text else ""


def measured(result: GateResult) -> str:
    """The value with its interval where there is one; counts as whole numbers."""
    if result.mean is None:
        return "–"
    if result.low is None:
        return f"{result.mean:g}"
    return f"{result.mean:.3f} ({result.low:.3f}..{result.high:.3f})"


def _print_alignment(console: Console, found: Mapping[str, Any]) -> None:
    """Every metric before, after and of the codec, changes with 95 % intervals, and the simulated raters."""
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
        arrow = "↓" if metric["better"] == "lower" else "↑"
        about = f"{name}\n[dim]{metric['role']} {arrow} n {count_of(metric['difference'])}[/]"
        change, closed = short_interval(metric["difference"]), short_interval(metric.get("closed"), 2)
        table.add_row(about, *means, change, closed)
    console.print(table)
    for line in _rater_lines(found.get("raters", {})):
        console.print(line, markup=False, highlight=False)
    if names := beyond_from_the_start(found):
        console.print(
            f"beyond the codec's interval already before alignment: {', '.join(names)}", highlight=False
        )


def _rater_lines(raters: Mapping[str, Any]) -> list[str]:
    """Good, same and bad by axis, and caveats."""
    if not raters:
        return []
    if reason := raters.get("reason"):
        return [f"{SIMULATED}; {reason}"]
    lines = [f"{SIMULATED}; {axis}: {gsb_words(gsb)}" for axis, gsb in raters["gsb"].items()]
    return [*lines, f"{SIMULATED}; {kept_words(raters)}"]


def gsb_words(gsb: Mapping[str, Any]) -> str:
    """Counts, GSB with its interval, and the sign test."""
    interval = f"{gsb['gsb_low']:+.2f}..{gsb['gsb_high']:+.2f}"
    return (
        f"good {gsb['good']}, same {gsb['same']}, bad {gsb['bad']}, GSB {gsb['gsb']:+.2f} ({interval}), "
        f"sign test p {gsb['sign_p']:.2g}"
    )


def kept_words(raters: Mapping[str, Any]) -> str:
    """How many raters the fixed rule kept, and the effect of dropping the others."""
    overall, of_all = raters["gsb"]["overall"], raters["gsb_all_raters"]["overall"]
    return (
        f"{overall['raters']} of {raters['raters']} raters count, the fixed rule for answers to repeats "
        f"and checks drops the others; with all of them overall {gsb_words(of_all)}"
    )


def short_interval(interval: IntervalJson | None, digits: int = 3) -> str:
    """Mean and interval in rich markup; a dash if not measured, no interval if there is none."""
    if interval is None or interval["mean"] is None:
        return "–"
    if interval["low"] is None:
        return f"{interval['mean']:.{digits}f}"
    low, high = f"{interval['low']:.{digits}f}", f"{interval['high']:.{digits}f}"
    return f"{interval['mean']:.{digits}f}\n[dim]{low}..{high}[/]"
