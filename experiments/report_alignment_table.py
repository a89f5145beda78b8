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
    """Every metric before, after and of the codec's round trip; the simulated raters; what must hold."""
    from rich import box
    from rich.table import Table

    heads = ("", "before", "after", "codec", "after - before", "gap closed", "n")
    table = Table(f"alignment, {found['prompts']} held-out prompts", *heads, box=box.SIMPLE_HEAD)
    for name, metric in found["metrics"].items():
        cells = [short_interval(metric.get(key)) for key in ("before", "after", "codec", "difference", "closed")]
        table.add_row(f"{name}\n[dim]{metric['better']} is better[/]", metric["role"], *cells, str(metric["difference"]["n"]))
    console.print(table)
    for axis, gsb in found.get("raters", {}).get("gsb", {}).items():
        counts = f"good {gsb['good']}, same {gsb['same']}, bad {gsb['bad']}"
        interval = f"{gsb['gsb_low']:+.2f}..{gsb['gsb_high']:+.2f}"
        console.print(f"{SIMULATED}; {axis}: {counts}, GSB {gsb['gsb']:+.2f} ({interval}), sign p {gsb['sign_p']:.2g}", highlight=False)
    if reason := found.get("raters", {}).get("reason"):
        console.print(f"{SIMULATED}; {reason}", markup=False, highlight=False)
    if names := beyond_from_the_start(found):
        console.print(f"beyond the codec's interval already before alignment: {', '.join(names)}", highlight=False)
    console.print(verdict_table(alignment_verdicts(found)))


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


def short_interval(interval: Mapping[str, Any] | None) -> str:
    """Mean over its interval in rich's markup; a dash for what was not measured."""
    if interval is None or interval["mean"] is None:
        return "–"
    return f"{interval['mean']:.3f}\n[dim]{interval['low']:.3f}..{interval['high']:.3f}[/]"
