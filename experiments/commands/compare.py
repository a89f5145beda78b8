"""`nava compare`: two scored sets, pair by pair."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from experiments.commands.options import JsonFlag

if TYPE_CHECKING:
    from experiments.scoring.compare import Compared, SetComparison

ScoresPath = Annotated[Path, tyro.conf.Positional]


def compare(
    a: ScoresPath,
    b: ScoresPath,
    /,
    by: Annotated[
        Literal["name", "prompt"],
        tyro.conf.arg(help="clips of the same name are a pair, or all clips of the same prompt"),
    ] = "name",
    other_settings: Annotated[
        bool, tyro.conf.arg(help="compare rewards that were scored with other options too")
    ] = False,
    other_prompts: Annotated[
        bool,
        tyro.conf.arg(help="compare clips of the same name that answer other prompts too, as rewritten ones"),
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Compare two files of `nava score` pairwise: for each reward the means of A and B over the pairs that
    both have scored, and their difference B - A with a paired bootstrap 95 % interval.

    Prompts are drawn, with all their clips. The arrow says which way is better. Fewer than 6 prompts give no
    verdict ("too few prompts"), one no interval either ("one prompt"). What could not be paired is counted,
    and rows of clips that were gone when the file was last scored into are left out. Refused: clips of one
    name with two prompts, unless --other-prompts; rewards of other settings, unless --other-settings. Totals
    are compared where their rubric is the same and takes raw values (normalise: none).
    """
    from experiments.scoring.compare import compare_sets, read_set

    found = compare_sets(read_set(a), read_set(b), by, other_settings, other_prompts)
    if as_json:
        print(json.dumps({"a": str(a), "b": str(b), "by": by, **found.as_json()}, indent=1, allow_nan=False))
    else:
        _show(found, by)


def _show(found: SetComparison, by: str) -> None:
    from rich.table import Table

    from experiments.scoring.summary import print_table

    table = Table(box=None)
    for heading in ("metric", "", "A", "B", "B - A", "95 % interval", "pairs", "prompts", "B is"):
        table.add_column(heading, no_wrap=True)
    for one in found.metrics:
        table.add_row(*_cells(one))
    print_table(table)
    what = "clips" if by == "name" else "prompts"
    of = f", {found.prompts} prompts" if by == "name" else ""
    print(f"{found.pairs} pairs of {what}{of}; only in A {found.only_a}, only in B {found.only_b} {what}")
    if found.without_prompt:
        print(f"clips without a prompt, which have no pair: {found.without_prompt}")
    for note in found.notes:
        print(note)


def _cells(one: Compared) -> list[str]:
    from experiments.scoring.summary import number

    row = one.as_json()
    arrow = {True: "↑", False: "↓", None: ""}[one.higher_is_better]
    between = "-" if row["low"] is None else f"{row['low']:+.4g} .. {row['high']:+.4g}"
    difference = "-" if row["difference"] is None else f"{row['difference']:+.4g}"
    pairs = f"{row['pairs']}" + (f" ({row['unscored_pairs']} unscored)" if row["unscored_pairs"] else "")
    return [
        one.metric,
        arrow,
        number(row["mean_a"]),
        number(row["mean_b"]),
        difference,
        between,
        pairs,
        str(row["prompts"]),
        one.verdict,
    ]
