"""The study as a page a person reads: what was held equal, costs, gains, the two questions, and what it
cannot say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.studies.objectives.config import BASELINE, CHOSEN, NO_TIES, RANDOM, TIES
from experiments.studies.objectives.scores import REWARDS
from experiments.studies.objectives.totals import PANEL, RUBRIC

TOTALS = {RUBRIC: "all rewards of the rubric", PANEL: "all judges of the panel"}


def page(study: Mapping[str, Any], picture: str) -> str:
    """Markdown of what `tabulate` found, with the budget beside it."""
    clips, stored = study["clips"], study["stored"]
    judged = [name for name in study["metrics"] if name not in REWARDS and name not in TOTALS]
    lines = [
        "# Objectives of alignment at one rollout budget",
        "",
        f"Every arm rolls out {study['budget_clips']} clips of {study['training_prompts']} training prompts "
        f"(a third: {study['third']}), "
        f"starts from one pretrained model and is asked {clips['prompts']} held-out prompts that no "
        f"alignment saw ({clips['seeds']} "
        f"alignment seed(s); {study['ranks']} rank(s)). In brackets: 95 % intervals of the paired "
        "difference to the pretrained model, "
        f"prompts and seeds resampled together ({study['config']['resamples']} resamples). **Bold**: the "
        "interval leaves 0 out. Arrows: "
        "which way is better.",
        "",
        f"The votes are simulated: a panel of judges on a store of {stored['prompts']} prompts x "
        f"{stored['clips_per_prompt']} clips by the "
        f"pretrained model. `{NO_TIES}` has the same votes without the pairs on whose questions nobody won, "
        "as plain flow-DPO.",
        "",
        "## What it costs, and whether an arm improves what it is after",
        "",
        *_costs(study),
        "",
        "Seconds of wall-clock. Rolling out and scoring of the voted arms: making the store, and the judges "
        "and votes on it. "
        f"`{RUBRIC}` is the weighted mean of the rewards in standard deviations over the pretrained model's "
        f"clips, `{PANEL}` that of the "
        "judges in the units the panel notices; both 0 for the pretrained model.",
        "",
        *_targets(study),
        "",
        "## Rewards: what the rubric pays for, and what hears the same",
        "",
        *_gains(study, [RUBRIC, *(name for name in study["metrics"] if name in REWARDS)]),
        "",
        "## Judges: never in a rubric",
        "",
        *_gains(study, [PANEL, *judged]),
        "",
        *_ties(study),
        *_curation(study),
        f"![differences to the pretrained model]({picture})",
        "",
        "## What this cannot say",
        "",
        *_limits(study),
        "",
    ]
    return "\n".join(lines)


def _costs(study: Mapping[str, Any]) -> list[str]:
    heads = [
        "clips",
        "optimizer steps x clips",
        "roll out",
        "score",
        "update",
        "pilot",
        "other",
        "total s",
        "own target",
        "gain there",
    ]
    rows = []
    for name, entry in study["arms"].items():
        if name == BASELINE:
            continue
        cost, target = entry["cost"], entry["target"]
        seconds = [f"{cost[part]:.0f}" for part in ("rollout", "score", "update", "pilot", "other", "total")]
        steps = f"{cost['optimizer_steps']} x {cost['clips_per_step']:g}" + (
            f" ({cost['pairs']} pairs)" if "pairs" in cost else ""
        )
        gain = _cell(entry["differences"][target["total"]])
        rows.append([name, str(cost["clips"]), steps, *seconds, target["total"], gain])
    return _rows(["arm", *heads], rows)


def _targets(study: Mapping[str, Any]) -> list[str]:
    lines = []
    for name, entry in study["arms"].items():
        if name == BASELINE:
            continue
        target = entry["target"]
        parts = [
            f"{word} {', '.join(target[key])}"
            for word, key in (("improved", "improved"), ("worse", "worsened"))
            if target[key]
        ]
        metrics = "; ".join(parts) or "no metric of it told apart"
        word = {"better": "improves its own target", "worse": "worsens its own target"}.get(
            target["verdict"], "own target not told apart"
        )
        flagged = f"; {entry['flagged']} clips beyond a guardrail" if entry["flagged"] else ""
        lines.append(f"- **{name}** {word} ({TOTALS[target['total']]}; {metrics}{flagged}).")
    return lines


def _gains(study: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    heads = [f"{name} {'↑' if study['metrics'][name]['higher_is_better'] else '↓'}" for name in names]
    rows = []
    for arm, entry in study["arms"].items():
        means = [entry["metrics"][name]["mean"] for name in names]
        if arm == BASELINE:
            rows.append([arm, *("-" if mean is None else f"{round(mean, 3) + 0.0:.3f}" for mean in means)])
        else:
            rows.append([arm, *(_cell(entry["differences"][name]) for name in names)])
    return _rows(["arm", *heads], rows)


def _ties(study: Mapping[str, Any]) -> list[str]:
    if "ties" not in study:
        return []
    found = study["ties"]
    word = {"better": "Yes", "worse": "No, they hurt"}.get(found[PANEL]["verdict"], "Not told apart")
    lines = [
        "## Do ties help?",
        "",
        f"**{word}**: `{TIES}` minus `{NO_TIES}`, {PANEL} {_interval(found[PANEL])}. By metric:",
        "",
    ]
    return [*lines, *_told(found, exclude=(PANEL, RUBRIC)), ""]


def _curation(study: Mapping[str, Any]) -> list[str]:
    if "curation" not in study:
        return []
    found = study["curation"]
    differences, shares = found["differences"], found["shares"]
    names = [RUBRIC, PANEL, *(name for name in differences if name not in TOTALS)]
    rows = [
        [name, *(_share(shares[arm][name]) for arm in (CHOSEN, RANDOM)), _cell(differences[name])]
        for name in names
    ]
    kept = [
        f"{total}: {_share(shares[CHOSEN][total])} by the chosen, {_share(shares[RANDOM][total])} by the "
        "random"
        for total in TOTALS
    ]
    word = {"better": "keeps more than", "worse": "keeps less than"}.get(
        differences[RUBRIC]["verdict"], "is not told apart from"
    )
    return [
        "## How much of the gain comes from chosen prompts?",
        "",
        f"A third of the training prompts, as many rounds. The chosen third **{word}** a random one "
        f"({RUBRIC} "
        f"{_interval(differences[RUBRIC])}). Of nft's gain on all prompts is kept, {'; '.join(kept)} (- : "
        "there is no gain whose interval "
        "leaves 0 out).",
        "",
        *_rows(
            ["metric", "share kept by the chosen third", "by a random third", "chosen minus random"], rows
        ),
        "",
    ]


def _limits(study: Mapping[str, Any]) -> list[str]:
    seeds = study["clips"]["seeds"]
    lines = [
        f"- {seeds} alignment seed(s)"
        + (
            ": the intervals know which prompts were drawn, not how much another seed would differ."
            if seeds == 1
            else " are few."
        )
        + " Store, votes and chosen third are one for all seeds; a random third is drawn for each.",
        "- The budget is of clips, not of time: objectives keep their own sampler, epochs and learning rate "
        "of the recipe, which were not "
        "searched for each alike. Voted arms take nft's optimizer steps; the clips a step are as near as "
        "whole pairs allow.",
        "- The prompts that the recipe holds out for stopping early are left out of all arms, and none "
        "stops early.",
        "- A clip that a scorer refuses takes no part in that metric's difference, on both sides.",
    ]
    for arm, entry in study["arms"].items():
        for scorer, reasons in entry["unscored"].items():
            counted = ", ".join(f"{reason}: {count}" for reason, count in sorted(reasons.items()))
            lines.append(f"- {arm}, clips without {scorer}: {counted}.")
    return lines


def _told(found: Mapping[str, Any], exclude: Sequence[str]) -> list[str]:
    return [
        f"- {name}: {_interval(entry)}, {entry['verdict']}"
        for name, entry in found.items()
        if name not in exclude
    ]


def _interval(found: Mapping[str, Any]) -> str:
    return (
        "-" if found["mean"] is None else f"{found['mean']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]"
    )


def _cell(found: Mapping[str, Any]) -> str:
    return f"**{_interval(found)}**" if found["verdict"] in ("better", "worse") else _interval(found)


def _share(found: Mapping[str, Any]) -> str:
    return (
        "-"
        if found["mean"] is None
        else f"{100 * found['mean']:.0f} % [{100 * found['low']:.0f}, {100 * found['high']:.0f}]"
    )


def _rows(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [
        f"| {' | '.join(heads)} |",
        f"|{'---|' * len(heads)}",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]
