"""From finished arms to the study's numbers: means, paired differences, costs, and the two questions, as
plain values for JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.studies.objectives.arms import Arm, seeds_of
from experiments.studies.objectives.config import BASELINE, CHOSEN, NFT, NO_TIES, RANDOM, TIES
from experiments.studies.objectives.material import Sections
from experiments.studies.objectives.statistics import crossed_draws, difference, share_of_gain, verdict
from experiments.studies.objectives.totals import higher_is_better, target_of, units_of, with_totals
from experiments.studies.statistics import Table, mean_over_seeds

Results = Mapping[str, Mapping[str, Any]]  # label of an arm's run -> its result
Tables = Mapping[str, Table]  # by metric


def tabulate(sections: Sections, arms: Sequence[Arm], results: Results) -> dict[str, Any]:
    """`{arms: {arm: {metrics, differences, target, cost, unscored, flagged}}, metrics, ties, curation,
    clips}`.

    differences: the arm minus the pretrained model, over the clips that both could score. Raises ValueError
    where arms answered different prompts.
    """
    if len({tuple(results[arm.label]["scores"]["data_ids"]) for arm in arms}) > 1:
        raise ValueError("arms were scored on different prompts; remove the study's folder and run it again")
    features, resamples = sections.votes.panel.features, sections.objectives.resamples
    units = units_of(sections.align.rubric, features, results[BASELINE]["scores"])
    names = list(dict.fromkeys(arm.name for arm in arms))
    tables = {
        name: _tables([with_totals(results[arm.label]["scores"], units) for arm in seeds_of(arms, name)])
        for name in names
    }
    better = {metric: higher_is_better(metric, features) for metric in tables[BASELINE]}
    entries = {}
    for name in names:
        ours = seeds_of(arms, name)
        differences = (
            _differences(tables[name], tables[BASELINE], better, resamples) if name != BASELINE else {}
        )
        entries[name] = {
            "metrics": {metric: _mean(table, resamples) for metric, table in tables[name].items()},
            "differences": differences,
            "target": {}
            if name == BASELINE
            else _target(name, {key: list(parts) for key, parts in units.items()}, differences),
            "cost": _cost([results[arm.label] for arm in ours]),
            "unscored": _reasons([results[arm.label] for arm in ours]),
            "flagged": sum(results[arm.label]["scores"]["flagged"] for arm in ours),
        }
    found = {"arms": entries, "metrics": {name: {"higher_is_better": up} for name, up in better.items()}}
    found["clips"] = {
        "prompts": len(results[BASELINE]["scores"]["data_ids"]),
        "seeds": sections.objectives.seeds,
    }
    if TIES in tables and NO_TIES in tables:
        found["ties"] = _differences(tables[TIES], tables[NO_TIES], better, resamples)
    if {NFT, CHOSEN, RANDOM} <= tables.keys():
        found["curation"] = {
            "shares": {
                name: _shares(tables[name], tables[NFT], tables[BASELINE], better, resamples)
                for name in (CHOSEN, RANDOM)
            },
            "differences": _differences(tables[CHOSEN], tables[RANDOM], better, resamples),
        }
    return found


def _tables(metrics: Sequence[Mapping[str, Any]]) -> dict[str, Table]:
    """By metric, over seeds."""
    return {name: Table.of([one[name] for one in metrics]) for name in metrics[0]}


def _mean(table: Table, resamples: int) -> dict[str, Any]:
    seeds = [None if value != value else round(value, 6) for value in table.per_seed]
    return {**mean_over_seeds(table, crossed_draws(table, resamples)).as_json(), "seeds": seeds}


def _differences(ours: Tables, theirs: Tables, better: Mapping[str, bool], resamples: int) -> dict[str, Any]:
    found = {name: difference(table, theirs[name], resamples) for name, table in ours.items()}
    return {
        name: {**interval.as_json(), "verdict": verdict(interval, better[name])}
        for name, interval in found.items()
    }


def _target(name: str, parts: Mapping[str, list[str]], differences: Mapping[str, Any]) -> dict[str, Any]:
    """The arm's own target, as one total and metric by metric."""
    total = target_of(name)
    said = {metric: differences[metric]["verdict"] for metric in parts[total]}
    improved, worsened = (
        [metric for metric, word in said.items() if word == wanted] for wanted in ("better", "worse")
    )
    return {
        "total": total,
        "verdict": differences[total]["verdict"],
        "improved": improved,
        "worsened": worsened,
    }


def _shares(
    part: Tables, whole: Tables, base: Tables, better: Mapping[str, bool], resamples: int
) -> dict[str, Any]:
    """Of the gain on all prompts, where there is one."""
    return {
        name: share_of_gain(table, whole[name], base[name], better[name], resamples).as_json()
        for name, table in part.items()
    }


def _cost(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over seeds. `total`: what was made beforehand, and the whole alignment with starting and saving;
    `judging` is beside."""
    rows = []
    for result in results:
        cost, seconds = result["cost"], result["seconds"]
        before, rounds = cost.get("before", {}), cost.get("rounds", {})
        parts = {name: rounds.get(name, 0.0) + before.get(name, 0.0) for name in ("rollout", "score")}
        row = {**parts, "update": rounds.get("update", 0.0), "pilot": before.get("pilot", 0.0)}
        total = seconds.get("align", 0.0) + sum(before.values())
        rows.append(
            {**row, "other": max(0.0, total - sum(row.values())), "total": total, "judging": seconds["judge"]}
        )
    mean = {name: round(sum(row[name] for row in rows) / len(rows), 1) for name in rows[0]}
    first = results[0]["cost"]
    return {
        **mean,
        **{
            name: first[name]
            for name in ("clips", "optimizer_steps", "clips_per_step", "pairs")
            if name in first
        },
    }


def _reasons(results: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """Why clips were not scored: scorer -> reason -> how many, over seeds."""
    counted: dict[str, Counter[str]] = {}
    for result in results:
        for scorer, reasons in result["scores"]["reasons"].items():
            counted.setdefault(scorer, Counter()).update(filter(None, reasons))
    return {scorer: dict(counts) for scorer, counts in counted.items() if counts}
