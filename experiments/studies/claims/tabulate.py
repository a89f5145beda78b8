"""From the scores that are there to the study's JSON: a row per claim, run or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments.scoring.statistics import ClipDraws, Clusters, SeedTerms, Table, mean_over_seeds
from experiments.studies.claims.one_unit import core_seconds
from experiments.studies.claims.registry import VALIDATION, Claim, ClaimCell, Contrast
from experiments.studies.claims.units import ClaimUnits
from experiments.studies.claims.verdict import NOT_MEASURED, NOT_RUN, compared, together
from experiments.studies.tables import check_prompts, unscored
from pretrain.files import read_json
from rewards.catalog import metric

HOUR_S = 3600.0
CellScores = Mapping[ClaimCell, Sequence[Mapping[str, Any]]]  # by seed: what `score_clips` wrote


def tabulate(
    claims: Mapping[str, Claim], units: ClaimUnits, trained: set[str], recipe: str
) -> dict[str, dict[str, Any]]:
    """`{name: {says, where, asked, command, seeds, seeds_wanted, prompts, verdict, decides, contrasts, cells,
    core_hours, arms, refused}}`. arms: how each was trained (`Trainings.described`); refused: why the row
    cannot be asked of this recipe.

    A seed counts where the deciding contrast has its scores, another contrast is there where all seeds that
    count have it. trained: names of the claims whose trainings
    may be there; the others with trainings are not looked for. Raises ValueError where cells answered
    different prompts.
    """
    return {
        name: _row(
            name,
            claim,
            units,
            *(_there(claim, units) if not claim.trains or name in trained else _nothing(claim)),
            recipe,
        )
        for name, claim in claims.items()
    }


def higher_is_better(measure: str) -> bool:
    """Direction of a metric; a validation loss is better where it is lower."""
    return not measure.startswith("validation/") and not metric(measure).lower_is_better


def _there(claim: Claim, units: ClaimUnits) -> tuple[dict[ClaimCell, list[Mapping[str, Any]]], set[Path]]:
    """Scores of the seeds that count, of every cell that they all have, and all folders of the claim."""
    found = {seed: {cell: units.of(claim, cell, seed) for cell in claim.cells} for seed in units.seeds(claim)}
    folders = {known[0].folder for cells in found.values() for known in cells.values() if known}
    for arm in claim.arms.values():
        trials = units.trainings.trials(arm) if arm.own_rate else {}
        folders |= {units.trainings.folder(0, trial) for trial in trials.values()}
    files = {
        seed: {cell: known for cell, known in cells.items() if known and known[1].is_file()}
        for seed, cells in found.items()
    }
    decides = {claim.contrasts[0].ours, claim.contrasts[0].theirs}
    counted = [cells for cells in files.values() if decides <= cells.keys()]
    shared = [cell for cell in claim.cells if counted and all(cell in cells for cells in counted)]
    scores: dict[ClaimCell, list[Mapping[str, Any]]] = {cell: [] for cell in shared}
    for cells in counted:
        for cell in shared:
            unit, path = cells[cell]
            content = read_json(path, f"remove {unit.folder}")
            scores[cell].append({**content, "stages": _validation(unit.folder)})
    return scores, folders


def _nothing(claim: Claim) -> tuple[dict[ClaimCell, list[Mapping[str, Any]]], set[Path]]:
    return {}, set()


def _validation(folder: Path) -> dict[str, dict[str, float]]:
    """The validation losses at the end of each stage."""
    path = folder / VALIDATION
    return read_json(path, f"remove {folder}") if path.is_file() else {}


def _row(
    name: str, claim: Claim, units: ClaimUnits, scores: CellScores, folders: set[Path], recipe: str
) -> dict[str, Any]:
    every = [one for found in scores.values() for one in found]
    check_prompts(every, f"claim {name}: its cells")
    seeds = len(next(iter(scores.values()), ()))
    said = units.said(claim, every[0]["data_ids"]) if every else []
    row: dict[str, Any] = {
        "says": claim.says,
        "where": claim.where,
        "asked": claim.asked,
        "trains": claim.trains,
        "measure": claim.measure,
        "higher_is_better": higher_is_better(claim.measure),
        "command": f"nava study claims {recipe} --rows {name}",
        "seeds": seeds,
        "seeds_wanted": len(units.seeds(claim)),
        "prompts": {"set": claim.prompts, "clips": len(said), "distinct": len(set(said))},
        "core_hours": round(sum(core_seconds(folder) for folder in folders) / HOUR_S, 3),
        "verdict": NOT_RUN,
        "contrasts": [],
        "cells": [],
        "missing": [],
        "unscored": unscored(every),
        "arms": {},
        "refused": claim.refusal(units.trainings.recipe),
    }
    if not seeds:
        return row
    row["arms"] = {arm: units.trainings.described(found) for arm, found in claim.arms.items()}
    resamples = units.config.resamples
    for contrast in claim.contrasts:
        if not {contrast.ours, contrast.theirs} <= scores.keys():
            row["missing"].append(contrast.about)
            continue
        found = _differences(scores, contrast, claim.trains, resamples, said)
        found.setdefault(claim.measure, NOT_MEASURED)
        row["contrasts"].append(
            {"about": contrast.about, "ours": contrast.ours[1], "arm": contrast.ours[0], "differences": found}
        )
    row["cells"] = [
        {"arm": cell[0], "sampling": cell[1], "metrics": _means(found, resamples, said)}
        for cell, found in scores.items()
    ]
    row["verdict"] = row["contrasts"][0]["differences"][claim.measure]["verdict"]
    return row


def _differences(
    scores: CellScores, contrast: Contrast, trained: bool, resamples: int, said: Clusters
) -> dict[str, Any]:
    mine, its = _terms(scores[contrast.ours]), _terms(scores[contrast.theirs], contrast.after)
    return {
        name: compared(mine[name], its[name], higher_is_better(name), trained, resamples, said)
        for name in mine
        if name in its
    }


def _means(scores: Sequence[Mapping[str, Any]], resamples: int, said: Clusters) -> dict[str, Any]:
    """Mean over seeds by measure, with an interval over what the prompts say."""
    found = {}
    for name, terms in _terms(scores).items():
        table = Table.of(terms)
        summed = Table(table.above.sum(0, keepdims=True), table.below.sum(0, keepdims=True))
        drawn = together(summed, said)
        draws = ClipDraws.make(drawn.below.shape[1], resamples, 0)
        found[name] = replace(mean_over_seeds(drawn, draws), n=summed.scored).as_json()
    return found


def _terms(scores: Sequence[Mapping[str, Any]], after: str = "") -> dict[str, SeedTerms]:
    """[seeds][clips] of each metric, and [seeds][1] of each validation loss that all seeds have; after: the
    losses at the end of that stage, and nothing else."""
    metrics = {} if after else scores[0]["metrics"]
    found = {name: [one["metrics"][name] for one in scores] for name in metrics}
    ends = [list(one["stages"]) for one in scores]
    losses = [
        one["stages"].get(after or (stages[-1] if stages else ""), {})
        for one, stages in zip(scores, ends, strict=True)
    ]
    shared = set.intersection(*map(set, losses))
    shown = sorted(name for name in shared if name.count("/") == 2 and not name[-1].isdigit())
    return {**found, **{name: [[[one[name], 1.0]] for one in losses] for name in shown}}
