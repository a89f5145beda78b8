"""`nava study seeds`: the recipe's alignment with several seeds on one pretrained model, judged."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from experiments.alignment.inputs import align_run
from experiments.job import StageJob
from experiments.layout import Layout
from experiments.report.before_after import flagged_share
from experiments.report.evaluate import compare
from experiments.report.gates import ALIGNMENT, Gate, Reports, check_gates
from experiments.report.metric_keys import reported_metrics
from experiments.report.summary import measured
from experiments.runs.provenance import md5_of
from experiments.scoring.options import reward_options
from experiments.scoring.rows import ScoredRow, number, read_scores
from experiments.scoring.samples import generated_samples
from experiments.scoring.score import scores_of
from experiments.scoring.sets import ALIGN_JUDGES, ALIGN_SET, MAIN_SET, REWARDS, SCORES, rows_of
from experiments.studies.harness import Run, Study, mark_of, model_of, run_each
from experiments.studies.plot import errorbars, save
from experiments.studies.scores import added_rewards, by_scorer
from finetune.align_run import AlignRun
from finetune.launch import align_model
from pretrain.files import write_json
from pretrain.generate import generate
from pretrain.jsonl import scan
from pretrain.launch.continuing import verdict_of
from rewards.catalog import open_rewards
from rewards.guardrails import BOUNDS, GuardrailLimits
from rewards.options import fill

COLUMNS = 3
KEY: tuple[str, str] = (ALIGN_SET, "aligned")


@dataclass(frozen=True)
class SeedsConfig:
    """Size of the study."""

    seeds: int

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ValueError(f"--seeds: expected at least 1, got {self.seeds}")


def study_seeds(job: StageJob, seeds: int) -> dict[str, Any]:
    """Align with seeds 0 to `seeds` - 1, generate, score, and write OUT/study/seeds.json, .md and .png.

    The pipeline's own alignment is reused for its seed. Finished work is reused, and a killed alignment is
    resumed. Raises FileNotFoundError or ValueError in one line before anything is trained, Interrupted on a
    signal.
    """
    config = SeedsConfig(seeds)
    layout, scores = job.layout, job.layout.scores / SCORES
    groups = read_scores(scores)
    before, codec = groups.get((ALIGN_SET, "generated")), groups.get((MAIN_SET, "codec"))
    if not before or not codec:
        raise ValueError(f"{scores}: no clips of {ALIGN_SET} before alignment; run `nava demo` first")
    inputs = {str(scores): md5_of(scores)}
    study = Study("seeds", layout.out / "study" / "seeds", layout, config, config, inputs, job.root)
    runs = {f"seed-{seed}": (seed, _align_run(job, seed, study.folder)) for seed in range(seeds)}

    def measure(rows: Sequence[ScoredRow], votes: Path) -> dict[str, Any]:
        align = job.recipe.align
        weights, limits = align.rubric.weights(), align.guardrails
        known = reported_metrics(job.recipe.score)
        return compare(job.recipe.evaluate, before, rows, codec, votes, weights, limits, known)

    with study.alone(), study.tracked():
        jobs = [_run_of(job, label, align, study.folder) for label, (_, align) in runs.items()]
        hint = "the other seeds are kept; the same command goes on"
        run_each("seeds", jobs, lambda run: _run(study, job, run, *runs[run.label]), hint)
        results = {run.label.removeprefix("seed-"): run.read() for run in jobs}
        rows = mean_rows([result["rows"] for result in results.values()])
        together = measure(rows, study.folder / "votes.jsonl")
        each = {
            seed: {
                "align_seconds": result["seconds"],
                **measure(result["rows"], study.folder / f"seed-{seed}" / "votes.jsonl"),
            }
            for seed, result in results.items()
        }
        gates = gate_results(job.recipe.evaluate.gates, together)
        return study.publish({"seeds": seeds, "gates": gates, "together": together, "each": each}, draw)


def draw(study: Mapping[str, Any], path: Path) -> None:
    """Plot the change of every rewarded or judged metric by seed, and of all seeds together in black."""
    metrics = [
        name for name, found in study["together"]["metrics"].items() if found["role"] in ("judge", "reward")
    ]
    rows = -(-len(metrics) // COLUMNS)
    figure = Figure(figsize=(13, rows * (1.2 + 0.25 * study["seeds"])), layout="constrained")
    panels = figure.subplots(rows, COLUMNS, squeeze=False, sharey=True).flatten()
    runs = [*((f"seed {seed}", found) for seed, found in study["each"].items()), ("all", study["together"])]
    for axes, name in zip(panels, metrics, strict=False):
        for place, (label, found) in enumerate(runs):
            style = {"color": "#000000" if label == "all" else "#8a8a8a", "markersize": 4}
            if name in found["metrics"]:
                point = found["metrics"][name]["difference"]
                errorbars(axes, [(place, point)], style, horizontal=True)
        facts = study["together"]["metrics"][name]
        axes.axvline(0.0, color="#333333", linewidth=0.8)
        axes.set_title(f"{name} ({facts['role']}, {facts['better']} is better)", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3, axis="x")
    for axes in panels[len(metrics) :]:
        axes.set_visible(False)
    panels[0].set_yticks(range(len(runs)), [label for label, _ in runs])
    panels[0].set_ylim(len(runs) - 0.5, -0.5)
    save(figure, path)


def gate_results(gates: Sequence[Gate], found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Results of the gates on alignment checked against `found`, with texts for the page."""
    results = check_gates([gate for gate in gates if gate.set == ALIGNMENT], Reports({}, found))
    return [
        {**result.as_json(), "measured": measured(result), "limit": result.gate.limit} for result in results
    ]


def _align_run(job: StageJob, seed: int, folder: Path) -> AlignRun:
    recipe = dataclasses.replace(job.recipe, align=dataclasses.replace(job.recipe.align, seed=seed))
    run = align_run(dataclasses.replace(job, recipe=recipe))
    own = _done_by_the_pipeline(job.layout, run)
    return dataclasses.replace(run, out=own or folder / f"seed-{seed}" / "align")


def _done_by_the_pipeline(layout: Layout, run: AlignRun) -> Path | None:
    kept = verdict_of(dataclasses.replace(run, out=layout.align)).action == "keep"
    return layout.align if kept else None


def _run_of(job: StageJob, label: str, align: AlignRun, folder: Path) -> Run:
    mark = mark_of(align.identity(), str(job.recipe.generate), _names(job))
    rounds = align.config.num_rounds
    return Run(label, folder / label, mark, {"align": (rounds, rounds)})


def _run(study: Study, job: StageJob, run: Run, seed: int, align: AlignRun) -> None:
    with study.tracked_run(run, {"nava.seed": str(seed)}, {"align": align.identity()}):
        model = model_of(align_model(align, job.ranks, job.port), f"seed {seed} stopped after round")
        seconds = sum(
            row.get("seconds_per_step", 0.0)
            for _, row in scan(align.out / "metrics.jsonl")
            if isinstance(row, Mapping)
        )
        write_json(run.result, {"seconds": round(seconds, 1), "rows": _rows(job, model, run.folder)})


def _names(job: StageJob) -> list[str]:
    return [*REWARDS, *ALIGN_JUDGES, *added_rewards(job.recipe.score)]


def _rows(job: StageJob, model: Path, folder: Path) -> Sequence[ScoredRow]:
    """Rows of the held-out clips of this model."""
    layout, score, clips = job.layout, job.recipe.score, folder / ALIGN_SET
    prompts = layout.prompts / f"{ALIGN_SET}.jsonl"
    generate(job.recipe.generate, model, layout.codec, prompts, clips, aside=True)
    samples = generated_samples(clips, "speech", source="aligned")
    names = _names(job)
    options = reward_options(names, layout.corpus, layout.syncnet, score.vocabulary, score.num_processes)
    with open_rewards(names, options) as opened:
        scores = {
            name: {KEY: scores_of(name, reward, [sample.clip for sample in samples])}
            for name, reward in by_scorer(names, opened).items()
        }
    limits = fill(GuardrailLimits, job.recipe.align.guardrails, "align.guardrails")
    return rows_of(limits, {KEY: samples}, scores, {KEY})


def mean_rows(runs: Sequence[Sequence[ScoredRow]]) -> list[ScoredRow]:
    """A row per prompt; a value missing for some seed is the mean of the others. `flagged_shares`: share of
    the seeds whose clip is beyond a limit, by guardrail; "" = of any.

    Raises ValueError for different prompts.
    """
    by_id = [{row["data_id"]: row for row in rows} for rows in runs]
    if any(rows.keys() != by_id[0].keys() for rows in by_id):
        raise ValueError(
            "seeds: not all of them answer the same prompts; remove OUT/study/seeds and run it again"
        )
    return [_mean([rows[name] for rows in by_id]) for name in by_id[0]]


def _mean(rows: Sequence[ScoredRow]) -> ScoredRow:
    scorers = rows[0]["scores"].keys()
    parts = {name: _means([row["parts"].get(name, {}) for row in rows]) for name in scorers}
    return {
        **rows[0],
        "scores": _means([row["scores"] for row in rows]),
        "parts": parts,
        "guardrails": _means([row.get("guardrails", {}) for row in rows]),
        "flags": [flag for row in rows for flag in row.get("flags", ())],
        "flagged_shares": {name: _flagged_share(rows, name) for name in ("", *BOUNDS)},
    }


def _flagged_share(rows: Sequence[ScoredRow], name: str) -> float:
    return sum(flagged_share(row, name) for row in rows) / len(rows)


def _means(values: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    names = dict.fromkeys(name for some in values for name in some)
    found = {
        name: [known for some in values if not math.isnan(known := number(some.get(name)))] for name in names
    }
    return {name: sum(known) / len(known) if known else None for name, known in found.items()}
