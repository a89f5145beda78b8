"""From finished trainings to the study's numbers: means, differences to NAVA, and what was spent, as plain
values for JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.studies.paradigms.config import FLOPS, PARADIGMS, REFERENCE, STEPS, StudyConfig
from experiments.studies.paradigms.plan import StudyPlan
from experiments.studies.scores import METRICS
from experiments.studies.statistics import Draws, Table, difference_over_seeds, mean_over_seeds

BUDGETS = (STEPS, FLOPS)
Results = Mapping[str, Mapping[str, Any]]  # label of a training -> its result.json


def tabulate(config: StudyConfig, plan: StudyPlan, results: Results) -> dict[str, Any]:
    """`{budget: {paradigm: {steps, flops, metrics, differences, curve}}}` with the list of paradigms whose
    runs served twice.

    metrics: mean over seeds, interval and the seeds' own values; differences: the paradigm's minus NAVA's,
    where they were trained on the same seeds; curve: after which stage (steps and FLOPs so far) the metrics
    and validation losses were what.
    """
    last = config.score_after[-1]
    tables = {
        (budget, name): _tables(plan, results, budget, name, last) for budget in BUDGETS for name in PARADIGMS
    }
    budgets = {
        budget: {
            name: {
                "steps": dict(plan.steps[budget][name]),
                "flops": dict(plan.flops[budget][name]),
                "flops_total": sum(plan.flops[budget][name].values()),
                "served_by": STEPS if budget == FLOPS and name in plan.served else budget,
                "metrics": _summed(config, tables[budget, name]),
                "differences": _differences(config, tables[budget, name], tables[budget, REFERENCE])
                if name != REFERENCE
                else {},
                "curve": _curve(config, plan, results, budget, name),
            }
            for name in PARADIGMS
        }
        for budget in BUDGETS
    }
    return {
        "budgets": budgets,
        "equal_steps_serve_equal_flops": list(plan.served),
        "clips": _clips(tables),
        "unscored": _reasons(results),
    }


def _tables(plan: StudyPlan, results: Results, budget: str, paradigm: str, stage: str) -> dict[str, Table]:
    scores = [results[training.label]["scores"][stage] for training in plan.of(paradigm, budget)]
    ids = {tuple(score["data_ids"]) for score in scores}
    if len(ids) > 1:
        raise ValueError(
            f"{paradigm} {budget}: seeds were scored on different prompts; remove the study's folder and "
            "run it again"
        )
    return {
        name: Table.of([score["metrics"][name] for score in scores])
        for name in METRICS
        if name in scores[0]["metrics"]
    }


def _draws(config: StudyConfig, table: Table) -> Draws:
    seeds, clips = table.above.shape
    return Draws.make(seeds, clips, config.resamples)


def _summed(config: StudyConfig, tables: Mapping[str, Table]) -> dict[str, Any]:
    return {
        name: {
            **mean_over_seeds(table, _draws(config, table)).as_json(),
            "seeds": [_number(value) for value in table.per_seed],
        }
        for name, table in tables.items()
    }


def _differences(
    config: StudyConfig, ours: Mapping[str, Table], reference: Mapping[str, Table]
) -> dict[str, Any]:
    return {
        name: difference_over_seeds(table, reference[name], _draws(config, table)).as_json()
        for name, table in ours.items()
        if name in reference
    }


def _curve(
    config: StudyConfig, plan: StudyPlan, results: Results, budget: str, paradigm: str
) -> list[dict[str, Any]]:
    points, steps, flops = [], 0, 0
    made = plan.of(paradigm, budget)
    for stage, count in plan.steps[budget][paradigm].items():
        steps, flops = steps + count, flops + plan.flops[budget][paradigm][stage]
        validation = [results[training.label]["validation"].get(stage, {}) for training in made]
        point: dict[str, Any] = {
            "stage": stage,
            "steps": steps,
            "flops": flops,
            "metrics": {},
            "validation": _averaged(validation),
        }
        if stage in config.score_after:
            point["metrics"] = _summed(config, _tables(plan, results, budget, paradigm, stage))
        points.append(point)
    return points


def _averaged(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = set.intersection(*(set(row) for row in rows)) if rows else set()
    return {name: round(sum(row[name] for row in rows) / len(rows), 6) for name in sorted(names)}


def _clips(tables: Mapping[tuple[str, str], Mapping[str, Table]]) -> dict[str, int]:
    seeds, clips = next(iter(tables[STEPS, REFERENCE].values())).above.shape
    return {"seeds": seeds, "prompts": clips}


def _reasons(results: Results) -> dict[str, dict[str, int]]:
    """Why clips were not scored: scorer -> reason -> how many, over all trainings' last stages."""
    found: dict[str, dict[str, int]] = {}
    for result in results.values():
        for scorer, reasons in list(result["scores"].values())[-1]["reasons"].items():
            for reason in filter(None, reasons):
                counts = found.setdefault(scorer, {})
                counts[reason] = counts.get(reason, 0) + 1
    return found


def _number(value: float) -> float | None:
    return None if value != value else round(value, 6)
