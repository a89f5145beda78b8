"""`nava study paradigms`: three architectures at equal data, width and schedule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from experiments.layout import Layout
from experiments.runs.provenance import md5_of
from experiments.scoring.sets import ScoreConfig
from experiments.scoring.statistics import Clusters, Draws, SeedTerms, Table
from experiments.studies.claims.verdict import over_trainings
from experiments.studies.harness import Run, Study, mark_of, require
from experiments.studies.paradigms.config import FLOPS, PARADIGMS, REFERENCE, STEPS, StudyConfig
from experiments.studies.paradigms.plan import StudyPlan, Training, plan_study
from experiments.studies.paradigms.training import StudyTrainer
from experiments.studies.plot import errorbars, save
from experiments.studies.said import said_by_prompts
from experiments.studies.scores import Scoring, added_metrics, voices_of
from experiments.studies.tables import Comparison, Tables, check_prompts, unscored
from experiments.studies.workers import core_shares, run_all
from pretrain.config import to_json
from pretrain.files import read_json
from pretrain.generation.config import GenerateConfig
from pretrain.recipe import PretrainConfig
from rewards.catalog import metric
from rewards.metric import Metric

BUDGETS = (STEPS, FLOPS)
TRAINED_SHARE = 0.85  # of a training's work; the rest is generating and scoring
SYNC = ("sync_mini", "sync_c_mini", "sync_d_mini")  # measured with the judge's network, if there is one
METRICS = ("lip_loudness_correlation", "wer_pocketsphinx", "sim_resemblyzer", "voice_accuracy_resemblyzer")
VALIDATION = ("validation/video", "validation/audio")
ONE_SEED = "one seed"
COLOURS = {"nava": "#1b6ca8", "dual_tower": "#c8553d", "unified": "#4f7942"}
TrainingResults = Mapping[str, Mapping[str, Any]]  # label of a training -> its result


@dataclass(frozen=True)
class StudyRecipe:
    """The sections of a recipe that the study uses."""

    study: StudyConfig
    pretrain: PretrainConfig
    generate: GenerateConfig
    score: ScoreConfig = field(default_factory=ScoreConfig)


def study_paradigms(recipe: StudyRecipe, layout: Layout, judge: Path, root: Path = Path()) -> dict[str, Any]:
    """Train, generate, score and write OUT/study/paradigms.{json,md,png}; returns the JSON content.

    Finished trainings are reused and a killed one is resumed if settings and data are unchanged. Raises
    FileNotFoundError or ValueError in one line before any training starts, Interrupted on a signal.
    """
    config = recipe.study
    inputs = _inputs(config, layout, judge)
    _check_stages(config, recipe.pretrain)
    plan = plan_study(config, recipe.pretrain, layout.latents)
    folder = layout.out / "study"
    study = Study("paradigms", folder, layout, config, recipe, inputs, root)
    network, added = judge if inputs["judge"] else None, added_metrics(recipe.score)
    measured = (config.num_prompts, config.score_after, *added)
    mark = mark_of(inputs, to_json(recipe.generate), *measured)
    runs = [run_of(training, folder / "runs", inputs, mark) for training in plan.trainings]
    with study.alone(), study.tracked():
        bank = None if all(run.finished for run in runs) else voices_of(layout.corpus)
        metrics = {**metrics_with(network), **added}
        scoring = Scoring(metrics, layout, config.recognizer_processes, network, bank)
        trainer = StudyTrainer(study, config, recipe.generate, scoring)
        trainings = {run.label: training for run, training in zip(runs, plan.trainings, strict=True)}
        run_all(
            "study",
            runs,
            lambda run: partial(trainer.train, run, trainings[run.label]),
            core_shares(config.parallel_runs),
        )
        results = {run.label: run.read() for run in runs}
        asked = results[runs[0].label]["scores"][config.score_after[-1]]["data_ids"]
        said = said_by_prompts(layout.prompts / f"{config.prompts}.jsonl", asked)
        found = {
            "judge": inputs["judge"],
            "facts": plan.facts(),
            **tabulate(config, plan, results, said),
            "trainings": {
                run.label: {"folder": run.folder.name, "seconds": results[run.label]["seconds"]}
                for run in runs
            },
        }
        return study.publish(found, draw)


def metrics_with(judge: Path | None) -> dict[str, Metric]:
    """The metrics; without a judge's network no sync."""
    sync = {name: replace(metric(name), scorer="sync_mini") for name in SYNC}
    return {**(sync if judge else {}), **{name: metric(name) for name in METRICS}}


def run_of(training: Training, folder: Path, inputs: Mapping[str, str], mark: str) -> Run:
    """Run of a training.

    The folder's name depends on settings and data, so that no training resumes from foreign weights.
    """
    data = {name: inputs[name] for name in ("latents", "codec")}
    stages = {
        name: (TRAINED_SHARE * flops, training.config.stage(name).steps)
        for name, flops in training.flops.items()
    }
    scoring = (1 - TRAINED_SHARE) * sum(training.flops.values())
    name = f"{training.label}-{mark_of(to_json(training.config), data)}"
    return Run(training.label, folder / name, mark, stages, scoring)


def _inputs(config: StudyConfig, layout: Layout, judge: Path) -> dict[str, str]:
    """Digests of the study's inputs. Raises FileNotFoundError with the command to run first."""
    prompts = layout.prompts / f"{config.prompts}.jsonl"
    require(
        {
            layout.latents: "run `nava demo` (or corpus, curate, codec and encode) first",
            layout.codec / "config.json": "fit the codec first: `nava codec`",
            prompts: "render the corpus first: `nava corpus`",
            layout.corpus / "validation.jsonl": "render the corpus first: `nava corpus`",
        }
    )
    return {
        "latents": ",".join(md5_of(path) for path in sorted(layout.latents.glob("*/manifest.json"))),
        "codec": str(read_json(layout.codec / "config.json", "fit the codec again")["codec_id"]),
        "corpus": md5_of(layout.corpus / "validation.jsonl"),
        "prompts": md5_of(prompts),
        "judge": md5_of(judge / "config.json") if (judge / "config.json").is_file() else "",
    }


def _check_stages(config: StudyConfig, recipe: PretrainConfig) -> None:
    last = list(recipe.stages)[-1]
    for name in config.score_after:
        recipe.stage(name)
    if not config.score_after or config.score_after[-1] != last:
        raise ValueError(
            f"study.score_after: the last stage {last!r} must come last, got {config.score_after}"
        )


def tabulate(
    config: StudyConfig, plan: StudyPlan, results: TrainingResults, said: Clusters | None = None
) -> dict[str, Any]:
    """`{budgets: {budget: {paradigm: {steps, flops, metrics, differences, curve}}}, metrics, clips,
    unscored}` with the list of paradigms whose runs served twice.

    metrics: mean over seeds, interval and the seeds' own values; differences: the paradigm's minus NAVA's,
    where they were trained on the same seeds (`over_trainings`, n counts seeds); curve: after which stage
    (steps and FLOPs so far) the metrics and validation losses were what. said: what each prompt asks for;
    prompts of the same are drawn together. Raises ValueError where seeds were scored on different prompts.
    """
    terms = {
        (budget, name, stage): _terms(plan, results, budget, name, stage)
        for budget in BUDGETS
        for name in PARADIGMS
        for stage in config.score_after
    }
    tables = {
        key: {name: Table.of(of_seeds) for name, of_seeds in found.items()} for key, found in terms.items()
    }
    last = config.score_after[-1]
    reference = tables[STEPS, REFERENCE, last]
    better = {name: not metric(name).lower_is_better for name in reference}
    comparison = Comparison(Draws.crossed, config.resamples, better, said=said)
    budgets: dict[str, dict[str, Any]] = {budget: {} for budget in BUDGETS}
    for budget in BUDGETS:
        for name in PARADIGMS:
            ours, theirs = terms[budget, name, last], terms[budget, REFERENCE, last]
            by_stage = {stage: tables[budget, name, stage] for stage in config.score_after}
            budgets[budget][name] = {
                "steps": dict(plan.steps[budget][name]),
                "flops": dict(plan.flops[budget][name]),
                "flops_total": sum(plan.flops[budget][name].values()),
                "served_by": STEPS if budget == FLOPS and name in plan.served else budget,
                "metrics": comparison.means(tables[budget, name, last]),
                "differences": _differences(ours, theirs, comparison) if name != REFERENCE else {},
                "curve": _curve(comparison, plan, results, budget, name, by_stage),
            }
    seeds, clips = next(iter(reference.values())).above.shape
    return {
        "budgets": budgets,
        "metrics": {name: {"higher_is_better": up} for name, up in better.items()},
        "equal_steps_serve_equal_flops": list(plan.served),
        "clips": {"seeds": seeds, "prompts": clips, "distinct": len(set(said or range(clips)))},
        "unscored": unscored(result["scores"][last] for result in results.values()),
    }


def _terms(
    plan: StudyPlan, results: TrainingResults, budget: str, paradigm: str, stage: str
) -> dict[str, SeedTerms]:
    """By metric."""
    scores = [results[training.label]["scores"][stage] for training in plan.of(paradigm, budget)]
    check_prompts(scores, f"{paradigm} {budget}: seeds")
    return {name: [one["metrics"][name] for one in scores] for name in scores[0]["metrics"]}


def _differences(
    ours: Mapping[str, SeedTerms], theirs: Mapping[str, SeedTerms], comparison: Comparison
) -> dict[str, Any]:
    """Ours minus theirs by metric, each with its classification; of one training there is none. Clips that no
    seed could score on both sides are not drawn."""
    found = {}
    for name, up in comparison.higher_is_better.items():
        interval = over_trainings(ours[name], theirs[name], comparison.resamples, comparison.said)
        verdict = ONE_SEED if interval.n == 1 else interval.classify(up)
        found[name] = {**interval.as_json(), "verdict": verdict}
    return found


def _curve(
    comparison: Comparison,
    plan: StudyPlan,
    results: TrainingResults,
    budget: str,
    paradigm: str,
    scored: Mapping[str, Tables],
) -> list[dict[str, Any]]:
    points, steps, flops = [], 0, 0
    for stage, count in plan.steps[budget][paradigm].items():
        steps, flops = steps + count, flops + plan.flops[budget][paradigm][stage]
        validation = [
            results[training.label]["validation"].get(stage, {}) for training in plan.of(paradigm, budget)
        ]
        points.append(
            {
                "stage": stage,
                "steps": steps,
                "flops": flops,
                "metrics": comparison.means(scored[stage]) if stage in scored else {},
                "validation": _averaged(validation),
            }
        )
    return points


def _averaged(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = set.intersection(*(set(row) for row in rows)) if rows else set()
    return {name: round(sum(row[name] for row in rows) / len(rows), 6) for name in sorted(names)}


def draw(study: Mapping[str, Any], path: Path) -> None:
    """Plot every metric against steps and training FLOPs.

    Filled: equal steps, after each scored stage; open: the runs at equal FLOPs.
    """
    curves = {
        (budget, name): study["budgets"][budget][name]["curve"] for name in PARADIGMS for budget in BUDGETS
    }
    losses = [
        name for name in VALIDATION if any(name in point["validation"] for point in curves[STEPS, REFERENCE])
    ]
    names = [*study["metrics"], *losses]
    figure = Figure(figsize=(9, 2.3 * len(names)), layout="constrained")
    panels = figure.subplots(len(names), 2, squeeze=False, sharey="row")
    for row, name in zip(panels, names, strict=True):
        for axes, (key, label, unit) in zip(
            row, (("steps", "steps", 1.0), ("flops", "training TFLOP", 1e12)), strict=True
        ):
            for (budget, paradigm), curve in curves.items():
                if budget == FLOPS and study["budgets"][FLOPS][paradigm]["served_by"] == STEPS:
                    continue
                points = [(point[key] / unit, found) for point in curve if (found := _value(point, name))]
                style = {
                    "color": COLOURS[paradigm],
                    "fillstyle": "full" if budget == STEPS else "none",
                    "linestyle": "-" if budget == STEPS else ":",
                    "label": paradigm if budget == STEPS else f"{paradigm}, equal FLOPs",
                }
                errorbars(axes, points, style)
            axes.grid(alpha=0.3)
            axes.set_xlabel(label)
        up = study["metrics"].get(name)
        better = "" if up is None else " (up)" if up["higher_is_better"] else " (down)"
        row[0].set_ylabel(name.removesuffix("_correlation") + better, fontsize=8)
    panels[0][0].legend(fontsize=8)
    save(figure, path)


def _value(point: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    if name in VALIDATION and name in point["validation"]:
        return dict.fromkeys(("mean", "low", "high"), point["validation"][name])
    return point["metrics"].get(name)
