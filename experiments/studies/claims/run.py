"""`nava study claims`: what the paper claims, each asked at the recipe's size, on one page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from experiments.layout import Layout
from experiments.runs.provenance import md5_of
from experiments.scoring.sets import ScoreConfig
from experiments.studies.claims.config import ClaimsConfig
from experiments.studies.claims.guidance import guidance_rows
from experiments.studies.claims.one_unit import UnitRunner, core_seconds
from experiments.studies.claims.plot import draw
from experiments.studies.claims.registry import Claim
from experiments.studies.claims.tabulate import HOUR_S, higher_is_better, tabulate
from experiments.studies.claims.training_rows import training_rows
from experiments.studies.claims.trainings import Trainings
from experiments.studies.claims.units import ClaimUnit, ClaimUnits
from experiments.studies.harness import Study, require
from experiments.studies.scores import Scoring, added_metrics, voices_of
from experiments.studies.workers import core_shares, run_all
from pretrain.config import nearest, to_json
from pretrain.files import read_json
from pretrain.generation.config import GenerateConfig
from pretrain.launch.stage_run import model_config
from pretrain.recipe import PretrainConfig
from rewards.catalog import metric
from rewards.metric import Metric

NAME = "claims"
METRICS = (
    "wer_pocketsphinx_judge",
    "intelligibility_pocketsphinx_judge",
    "sync_judge",
    "lip_loudness_correlation",
    "sim_resemblyzer",
    "voice_accuracy_resemblyzer",
    "picture_noise_judge",
    "snr_estimate_db",
)


@dataclass(frozen=True)
class ClaimsRecipe:
    """The sections of a recipe that the study uses, and its name."""

    name: str
    claims: ClaimsConfig
    pretrain: PretrainConfig
    generate: GenerateConfig
    score: ScoreConfig = field(default_factory=ScoreConfig)


def all_claims(config: ClaimsConfig, recipe: PretrainConfig) -> dict[str, Claim]:
    """Every row of the page, by name, in the words of the recipe's numbers."""
    return {**guidance_rows(config.scales), **training_rows(config, recipe)}


def study_claims(
    recipe: ClaimsRecipe,
    layout: Layout,
    model: Path,
    rows: Sequence[str] = (),
    only_page: bool = False,
    root: Path = Path(),
) -> dict[str, Any]:
    """Run what is missing of the rows (() = all) and write OUT/study/claims.{json,md,png}; returns the JSON.

    The page has every row, those that were not run too. model: the folder of a trained model, of rows that
    only sample. only_page: run and track nothing. What is finished is reused and a killed training resumed
    while settings and data are the same. Raises FileNotFoundError or ValueError in one line before anything
    runs, Interrupted on a signal.
    """
    claims = all_claims(recipe.claims, recipe.pretrain)
    if not only_page:
        _check_rows(claims, rows, recipe.pretrain)
    asked = [claims[name] for name in rows or claims]
    folder = layout.out / "study" / NAME
    inputs = _inputs(layout, model, claims.values(), [] if only_page else asked)
    study = Study(NAME, folder, layout, recipe.claims, recipe, inputs, root)
    metrics = metrics_of(recipe.score)
    data = {name: inputs[name] for name in ("latents", "codec")}
    trainings = Trainings(recipe.claims, recipe.pretrain, layout.latents, folder / "runs", data)
    judged = {name: value for name, value in inputs.items() if name not in ("model", "latents")}
    scored = {**judged, "metrics": [*metrics]}
    units = ClaimUnits(recipe.claims, recipe.generate, trainings, inputs["model"], scored, layout.prompts)
    if only_page:  # also while another command trains, whose tracked run is not to end by it
        return _publish(study, units, claims, metrics)
    with study.alone(), study.tracked():
        _run(study, units, asked, metrics, model)
        return _publish(study, units, claims, metrics)


def metrics_of(score: ScoreConfig) -> dict[str, Metric]:
    """Judges and measures that no training was rewarded by, and what the recipe adds."""
    return {**{name: metric(name) for name in METRICS}, **added_metrics(score)}


def _run(
    study: Study, units: ClaimUnits, asked: Sequence[Claim], metrics: Mapping[str, Metric], model: Path
) -> None:
    """Until nothing is missing: the best learning rate of an arm is known when its first seeds are there."""
    config: ClaimsConfig = study.settings
    scoring: Scoring | None = None
    while missing := [unit for unit in units.needed(asked) if not unit.run.finished]:
        if scoring is None:
            bank = voices_of(study.layout.corpus)
            scoring = Scoring(metrics, study.layout, config.recognizer_processes, bank=bank)
        runner = UnitRunner(study, scoring, config.num_prompts, model)
        by_label: dict[str, ClaimUnit] = {str(unit.run.folder): unit for unit in missing}
        run_all(
            f"study {NAME}",
            [unit.run for unit in missing],
            lambda run, runner=runner, by=by_label: partial(runner, run, by[str(run.folder)]),
            core_shares(config.parallel_runs),
        )


def _publish(
    study: Study, units: ClaimUnits, claims: Mapping[str, Claim], metrics: Mapping[str, Metric]
) -> dict[str, Any]:
    recipe: ClaimsRecipe = study.recipe
    trained = {
        name
        for name, claim in claims.items()
        if claim.trains and not claim.refusal(recipe.pretrain) and _begun(units, claim)
    }
    table = tabulate(claims, units, trained, recipe.name)
    return study.publish(_found(table, units, metrics), draw)


def _check_rows(claims: Mapping[str, Claim], rows: Sequence[str], recipe: PretrainConfig) -> None:
    """Raises ValueError for rows that there are not, and for those that cannot be asked of the recipe."""
    for name in rows:
        if name not in claims:
            raise ValueError(f"--rows: unknown row {name!r}; {nearest(name, claims)}")
    possible = " ".join(name for name, claim in claims.items() if not claim.refusal(recipe))
    for name in rows or claims:
        if reason := claims[name].refusal(recipe):
            raise ValueError(f"claim {name}: {reason}; name the rows that can be asked: --rows {possible}")


def _begun(units: ClaimUnits, claim: Claim) -> bool:
    """Whether some training of the claim may have been started, so that its schedule is worth working out."""
    flavors = {arm.change(units.trainings.recipe).flavor for arm in claim.arms.values()}
    return any(any(units.trainings.runs.glob(f"{flavor}-seed*")) for flavor in flavors)


def _found(table: Mapping[str, Any], units: ClaimUnits, metrics: Mapping[str, Metric]) -> dict[str, Any]:
    measured = [*metrics, *(row["measure"] for row in table.values())]
    for row in table.values():
        for contrast in row["contrasts"]:
            measured += contrast["differences"]
    total = sum(core_seconds(path) for path in units.trainings.runs.glob("*")) / HOUR_S
    return {
        "claims": dict(table),
        "metrics": {
            name: {"higher_is_better": higher_is_better(name)}
            for name in dict.fromkeys(measured)
            if name.startswith("validation/") or metric(name).has_direction
        },
        "core_hours": round(total, 3),
        "levels": to_json(units.trainings.recipe.objective.levels),
    }


def _inputs(layout: Layout, model: Path, claims: Iterable[Claim], asked: Sequence[Claim]) -> dict[str, str]:
    """Digests of the study's inputs; "" for prompts that are not there.

    Raises FileNotFoundError, with the command to run first, where one that `asked` needs is missing.
    """
    corpus, judge = layout.corpus / "validation.jsonl", layout.syncnet / "judge" / "config.json"
    needed = {
        layout.codec / "config.json": "fit the codec first: `nava codec`",
        corpus: "render the corpus first: `nava corpus`",
        judge: "fit the sync networks first: run `nava demo`",
    }
    if any(not claim.trains for claim in asked):
        needed[model / "config.json"] = "name a trained model's folder with --model, or run `nava demo` first"
    if any(claim.trains for claim in asked):
        needed[layout.latents] = "encode the corpus first: `nava encode`"
    for name in {claim.prompts for claim in asked}:
        needed[layout.prompts / f"{name}.jsonl"] = "render the corpus first: `nava corpus`"
    require(needed)
    there = (model / "config.json").is_file()
    prompts = {claim.prompts: layout.prompts / f"{claim.prompts}.jsonl" for claim in claims}
    return {
        "model": str(model_config(model)["checkpoint_id"]) if there else "",
        "codec": str(read_json(layout.codec / "config.json", "fit the codec again")["codec_id"]),
        "corpus": md5_of(corpus),
        "syncnet_judge": md5_of(judge.parent),
        "latents": ",".join(md5_of(path) for path in sorted(layout.latents.glob("*/manifest.json"))),
        **{name: md5_of(path) if path.is_file() else "" for name, path in prompts.items()},
    }
