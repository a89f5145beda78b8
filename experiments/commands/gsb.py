"""`nava gsb`: votes on clips to statistics, and to preference pairs for training."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

Axis = Literal["overall", "sync", "voice", "picture"]
Votes = Annotated[Path, tyro.conf.Positional]
Names = Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME", help="the only models there may be; each must have been compared")]
Indices = Annotated[tuple[str, ...], tyro.conf.arg(metavar="[MODEL=]INDEX", help="index.jsonl of `nava generate`, or its folder")]


def stats(
    votes: Votes,
    /,
    axis: Axis | None = None,
    ours: str | None = None,
    models: Names = (),
    keep_all_raters: bool = False,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> None:
    """Win, tie, lose against every baseline from a votes JSONL (user_id, left_model, right_model, choice, ours_side, case_id).

    GSB = (good - bad) / n with its 95 % interval (analytic, or bootstrap over raters or prompts where that is wider), exact
    sign test with Holm's correction, Bradley-Terry-Davidson strengths with tie parameter nu and side effect, agreement of
    raters. Repeats and attention checks are not counted; raters who fail the fixed rule are dropped unless --keep-all-raters.
    """
    from finetune.gsb.summary import summarise
    from finetune.gsb.votes import read_votes

    found = summarise(read_votes(votes, ours, models), axis, models, keep_all_raters)
    print(json.dumps(found, indent=1, allow_nan=False)) if as_json else _show(found)


def export(
    votes: Votes,
    /,
    clips: Indices,
    out: Path = Path("pairs.jsonl"),
    ours: str | None = None,
    keep_all_raters: bool = False,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> None:
    """Turn votes into preference pairs for training: a row for each case and pair of clips, with counts and a label per axis.

    +1 the first clip wins, 0 Same, -1 the second, null where nobody was asked; the most frequent answer decides, a draw is
    Same. Clips are found by model and case, and by their digest where the votes have one; --clips is given per model as
    MODEL=INDEX, or as an index whose rows name their model.
    """
    from finetune.gsb.pairs import pair_up, read_clips, tie_shares, write_pairs
    from finetune.gsb.raters import check_raters, first_votes, kept_votes
    from finetune.gsb.votes import read_votes

    found = read_votes(votes, ours)
    known = [clip for model, source in map(_index, clips) for clip in read_clips(source, model)]
    counted = first_votes(found.votes) if keep_all_raters else kept_votes(found.votes, check_raters(found.votes))
    pairs = pair_up(counted, known, votes)
    write_pairs(out, pairs)
    shares = tie_shares(pairs)
    simulated = sum(pair.simulated for pair in pairs)
    if as_json:
        print(json.dumps({"pairs": len(pairs), "votes": len(counted), "same_share": shares, "simulated_pairs": simulated, "out": str(out)}))
        return
    print(f"{out}: {len(pairs)} pairs from {len(counted)} votes" + (f", {simulated} of them from SIMULATED votes" if simulated else ""))
    print("share of Same: " + ", ".join(f"{axis} {share:.1%}" for axis, share in shares.items()))


def _index(text: str) -> tuple[str | None, Path]:
    """A path that exists is a path, also with a = in it."""
    model, equals, path = text.partition("=")
    return (model, Path(path)) if equals and not Path(text).exists() else (None, Path(text))


def _show(found: Mapping[str, Any]) -> None:
    from rich.console import Console

    console = Console()
    votes = found["votes"]
    if found["simulated"]:
        console.print(f"SIMULATED VOTES ({votes['simulated']} of {votes['read']}): no person was asked", style="bold", markup=False)
    left_out = ", ".join(f"{votes[name]} {name.replace('_', ' ')}" for name in ("repeats", "attention", "of_dropped_raters") if votes[name])
    out = f" ({left_out} not counted)" if left_out else ""
    console.print(f"{votes['counted']} of {votes['read']} votes{out}, ours = {found['ours']}", markup=False, highlight=False)
    axes = found.get("axes", {found["axis"]: found})
    for axis, part in axes.items():
        console.print(f"\n{axis}", style="bold", markup=False)
        console.print(_pairs_table(part["pairs"]))
        if part["davidson"]:
            console.print(_strengths(part["davidson"]), markup=False, highlight=False)
        if agreed := part["agreement"]:
            named = (("Krippendorff alpha", "krippendorff_alpha"), ("Fleiss kappa", "fleiss_kappa"), ("Gwet AC1", "gwet_ac1"))
            values = ", ".join(f"{label} {_number(agreed[name])}" for label, name in named)
            console.print(f"agreement over {agreed['items']} items: {values}", markup=False, highlight=False)
    console.print(f"\n{_raters(found['raters'])}", markup=False, highlight=False)
    for warning in found["warnings"]:
        console.print(f"warning: {warning}", markup=False, highlight=False)


def _pairs_table(pairs: Mapping[str, Any]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("baseline", overflow="fold", min_width=8)
    for name in ("good", "same", "bad", "GSB", "95 %", "wins (Wilson)", "sign p", "Holm p"):
        table.add_column(name, justify="right", no_wrap=True)
    for baseline, pair in pairs.items():
        interval = f"{pair['gsb_low']:+.2f}..{pair['gsb_high']:+.2f}"
        wins = "-" if pair["win_rate"] is None else f"{pair['win_rate']:.0%} ({100 * pair['win_low']:.0f}..{100 * pair['win_high']:.0f})"
        counts = (str(pair[name]) for name in ("good", "same", "bad"))
        table.add_row(Text(baseline), *counts, f"{pair['gsb']:+.2f}", interval, wins, f"{pair['sign_p']:.2g}", f"{pair['sign_p_holm']:.2g}")
    return table


def _strengths(fit: Mapping[str, Any]) -> str:
    errors = fit["standard_error"]
    models = ", ".join(f"{model} {value:+.3f} (se {errors['strength'][model]:.3f})" for model, value in list(fit["strength"].items())[1:])
    side = "fixed at 0" if fit["side_fixed"] else f"{fit['side']:+.3f} (se {errors['side']:.3f})"
    ties = f"tie nu {fit['tie']:.3f}; left side {side}; log-likelihood {fit['log_likelihood']:.2f}"
    return f"Davidson strengths, ours 0: {models}; {ties}"


def _raters(raters: Sequence[Mapping[str, Any]]) -> str:
    checks, passed, repeats, same = (
        sum(rater[name] for rater in raters) for name in ("attention_checks", "attention_passed", "swapped_repeats", "same_answer")
    )
    consistency = f"same answer in {same} of {repeats} swapped repeats" if repeats else "no swapped repeats"
    attention = f"passed {passed} of {checks} attention checks" if checks else "no attention checks"
    return f"raters: {len(raters)}, {consistency}, {attention}"


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"
