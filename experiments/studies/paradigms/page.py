"""The study as a page a person reads: what was held equal, the tables, what they say and what they cannot
say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiments.studies.paradigms.config import FLOPS, PARADIGMS, REFERENCE, STEPS
from experiments.studies.scores import METRICS

TITLES = {STEPS: "At equal steps", FLOPS: "At equal training FLOPs"}


def page(study: Mapping[str, Any], picture: str) -> str:
    """Markdown of what `tabulate` found, with `facts` beside it."""
    facts, clips = study["facts"], study["clips"]
    lines = [
        "# Paradigms: NAVA, dual tower, fully unified",
        "",
        f"Mean over {clips['seeds']} seeds x {clips['prompts']} prompts, in brackets the 95 % interval of a "
        "hierarchical bootstrap "
        f"(seeds, then clips within a seed; {study['config']['resamples']} resamples). Arrows say which way "
        "is better; **bold**: the "
        "interval of the difference to NAVA leaves 0 out.",
        "",
        "Held equal: width, heads, embedders, loss, optimizer, learning rates, schedule shape, guidance and "
        "sampler. Equal steps are equal "
        "data: with one seed all three see the same samples in the same order with the same flow levels, "
        "noise and dropout, because "
        "randomness belongs to the sample. The number of blocks makes the parameters agree within 10 %.",
        "",
        *_models(facts),
        "",
    ]
    for budget, title in TITLES.items():
        lines += [f"## {title}", "", *_budget(study, budget), "", *_verdicts(study["budgets"][budget]), ""]
    lines += [
        f"![metrics against steps and FLOPs]({picture})",
        "",
        "## What this cannot say",
        "",
        *_limits(study),
        "",
    ]
    return "\n".join(lines)


def _models(facts: Mapping[str, Any]) -> list[str]:
    rows = [
        f"| {name} | {fact['blocks']} | {fact['params']:,} | {fact['flops_per_step'] / 1e9:.0f} | "
        f"{fact['flops_per_step_of_nava']:.2f} |"
        for name, fact in facts.items()
    ]
    return [
        "| paradigm | blocks | parameters | training GFLOP per step | of NAVA's |",
        "|---|---|---|---|---|",
        *rows,
    ]


def _budget(study: Mapping[str, Any], budget: str) -> list[str]:
    found = study["budgets"][budget]
    shown = [name for name in METRICS if name in found[REFERENCE]["metrics"]]
    heads = [f"{name} {'↑' if METRICS[name].higher_is_better else '↓'}" for name in shown]
    rows = []
    for paradigm in PARADIGMS:
        entry = found[paradigm]
        steps = "+".join(str(count) for count in entry["steps"].values())
        cells = [_cell(entry["metrics"][name], entry["differences"].get(name)) for name in shown]
        note = " *" if entry["served_by"] != budget else ""
        rows.append(
            f"| {paradigm}{note} | {steps} | {entry['flops_total'] / 1e12:.1f} | {' | '.join(cells)} |"
        )
    lines = [f"| paradigm | steps | TFLOP | {' | '.join(heads)} |", f"|{'---|' * (3 + len(heads))}", *rows]
    served = [name for name in PARADIGMS if found[name]["served_by"] != budget]
    if served:
        within = f"{100 * study['config']['same_within']:g} %"
        lines += [
            "",
            f"\\* the equal-steps runs serve here: NAVA is the budget, others are within {within} of it.",
        ]
    return lines


def _cell(value: Mapping[str, Any], difference: Mapping[str, Any] | None) -> str:
    if value["mean"] is None:
        return "-"
    text = f"{value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"
    return f"**{text}**" if difference and _decided(difference) else text


def _decided(difference: Mapping[str, Any]) -> bool:
    return difference["mean"] is not None and (difference["low"] > 0 or difference["high"] < 0)


def _verdicts(found: Mapping[str, Any]) -> list[str]:
    lines = []
    for paradigm in PARADIGMS:
        for name, difference in found[paradigm]["differences"].items():
            if difference["mean"] is None:
                continue
            better = (difference["mean"] > 0) == METRICS[name].higher_is_better
            word = ("better" if better else "worse") if _decided(difference) else "not told apart"
            interval = f"{difference['mean']:+.3f} [{difference['low']:+.3f}, {difference['high']:+.3f}]"
            lines.append(f"- {paradigm} against NAVA, {name}: {interval}, {word}")
    return lines


def _limits(study: Mapping[str, Any]) -> list[str]:
    seeds = study["clips"]["seeds"]
    lines = [
        f"- {seeds} seeds are few: the percentile interval over so few is too narrow more often than 1 time "
        "in 20.",
        "- One learning rate and one guidance setting, chosen on NAVA's mini, serve all three; each might "
        "do better with its own.",
        "- Models of 4 M parameters on one-second clips of a rendered corpus; nothing here is about full "
        "size.",
        "- FLOPs are matmuls; time per step also depends on kernels and masks (seconds are in the JSON).",
    ]
    if not study["judge"]:
        lines.append(
            "- No sync network was there to judge (`nava` fits one into out/syncnet/judge); "
            "lip_loudness_correlation stands alone."
        )
    for scorer, reasons in study["unscored"].items():
        counted = ", ".join(f"{reason}: {count}" for reason, count in sorted(reasons.items()))
        lines.append(f"- Clips without {scorer}, over all trainings: {counted}.")
    return lines
