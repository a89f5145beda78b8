"""Before and after alignment for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from experiments.before_after_verdicts import alignment_verdicts, beyond_from_the_start
from experiments.verdict import Verdict, verdict_word

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

SIMULATED = "SIMULATED RATERS: no person voted"


def print_alignment(console: Console, found: Mapping[str, Any]) -> None:
    """Every metric before, after and of the codec's round trip, changes with their 95 % intervals; simulated raters; what must hold."""
    from rich import box
    from rich.table import Table

    console.print(f"  alignment on {found['prompts']} held-out prompts; ↑ higher is better, ↓ lower", highlight=False)
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("mean, 95 % interval", overflow="fold", min_width=18)
    for head in ("before", "after", "codec", "after - before", "gap closed"):
        table.add_column(head, justify="right", no_wrap=True)
    for name, metric in found["metrics"].items():
        means = [short_interval(metric[key]).partition("\n")[0] for key in ("before", "after", "codec")]
        about = f"{metric['role']} {'↓' if metric['better'] == 'lower' else '↑'} n {metric['difference']['n']}"
        table.add_row(f"{name}\n[dim]{about}[/]", *means, short_interval(metric["difference"]), short_interval(metric.get("closed"), 2))
    console.print(table)
    for line in rater_lines(found.get("raters", {})):
        console.print(line, markup=False, highlight=False)
    if names := beyond_from_the_start(found):
        console.print(f"beyond the codec's interval already before alignment: {', '.join(names)}", highlight=False)
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
    return f"good {gsb['good']}, same {gsb['same']}, bad {gsb['bad']}, GSB {gsb['gsb']:+.2f} ({interval}), sign test p {gsb['sign_p']:.2g}"


def kept_words(raters: Mapping[str, Any]) -> str:
    """How many raters the fixed rule kept, and what the others would have changed."""
    overall, of_all = raters["gsb"]["overall"], raters["gsb_all_raters"]["overall"]
    kept = f"{overall['raters']} of {raters['raters']} raters count, the fixed rule for answers to repeats and checks drops the others"
    return f"{kept}; with all of them overall {gsb_words(of_all)}"


def verdict_table(verdicts: Sequence[Verdict]) -> Table:
    """What must hold, what was measured, and the word for it."""
    from rich import box
    from rich.table import Table

    table = Table("must hold", "measured", "n", "limit", "verdict", box=box.SIMPLE_HEAD)
    for verdict in verdicts:
        colour = {True: "green", False: "yellow" if verdict.aim else "red", None: "yellow"}[verdict.met]
        value = measured(verdict).replace(" (", "\n[dim](").replace(")", ")[/]")
        table.add_row(verdict.metric, value, str(verdict.n), verdict.limit, f"[{colour}]{verdict_word(verdict)}[/]")
    return table


def measured(verdict: Verdict) -> str:
    """The value, with its interval where there is one; counts as whole numbers."""
    if verdict.value is None:
        return "–"
    if isinstance(verdict.value, int):
        return str(verdict.value)
    return f"{verdict.value:.3f}" + (f" ({verdict.interval[0]:.3f}..{verdict.interval[1]:.3f})" if verdict.interval else "")


def short_interval(interval: Mapping[str, Any] | None, digits: int = 3) -> str:
    """Mean over its interval in rich's markup; a dash for what was not measured."""
    if interval is None or interval["mean"] is None:
        return "–"
    return f"{interval['mean']:.{digits}f}\n[dim]{interval['low']:.{digits}f}..{interval['high']:.{digits}f}[/]"
