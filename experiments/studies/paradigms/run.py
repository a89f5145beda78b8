"""`nava study paradigms`: the same data, width and schedule for three ways to organise video, audio and
context, measured."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.layout import Layout
from experiments.runs.provenance import git_state, md5_of
from experiments.runs.tracker import (
    RUN_KEY,
    RunStart,
    SpoolTracker,
    ensure_sender,
    failure_marked,
    kept_run_key,
)
from experiments.studies.paradigms.config import FLOPS, PARADIGMS, REFERENCE, STEPS, StudyConfig
from experiments.studies.paradigms.page import page
from experiments.studies.paradigms.plan import StudyPlan, mark_of, plan_study
from experiments.studies.paradigms.training import TrainingTask, write_json
from experiments.studies.paradigms.workers import Job, core_shares, run_all
from experiments.studies.plot import draw
from experiments.studies.scores import write_voice_bank
from experiments.studies.table import tabulate
from pretrain.config import to_json
from pretrain.files import read_json, replacing
from pretrain.generate import GenerateConfig
from pretrain.model.flavors import flavor
from pretrain.model.plan import plan as count_model
from pretrain.recipe import PretrainConfig

NAME = "paradigms"


@dataclass(frozen=True)
class StudyRecipe:
    """The sections of a recipe that the study uses."""

    study: StudyConfig
    pretrain: PretrainConfig
    generate: GenerateConfig


def study_paradigms(recipe: StudyRecipe, layout: Layout, judge: Path, root: Path = Path()) -> dict[str, Any]:
    """Train, generate, score and write OUT/study/paradigms.{json,md,png}; returns what the JSON holds.

    Finished trainings are kept and a killed one goes on, as long as settings and data are the same. Raises
    FileNotFoundError or ValueError in one line before any training starts, Interrupted when it is stopped.
    """
    inputs = _inputs(recipe.study, layout, judge)
    _check_stages(recipe.study, recipe.pretrain)
    plan = plan_study(recipe.study, recipe.pretrain, layout.latents)
    folder = layout.out / "study"
    folder.mkdir(parents=True, exist_ok=True)
    bank = folder / f"voices-{inputs['corpus'][:8]}.npz"
    if not bank.is_file():
        write_voice_bank(layout.corpus, bank)
    data = {name: inputs[name] for name in ("latents", "codec")}
    mark = mark_of(inputs, to_json(recipe.generate), recipe.study.num_prompts, recipe.study.score_after)
    jobs = [Job(item, folder / "runs" / item.folder(data), mark) for item in plan.trainings]
    tracker = _tracker(folder, layout, inputs, recipe, root)
    for job in jobs:
        job.folder.mkdir(parents=True, exist_ok=True)
        if not job.finished:
            _task(job, recipe, layout, inputs, bank, judge, tracker.key).save(job.folder)
    with failure_marked(tracker):
        run_all(jobs, core_shares(recipe.study.parallel_runs))
    study = _written(recipe, plan, jobs, inputs, folder, root)
    for path in sorted(folder.glob(f"{NAME}.*")):
        tracker.log_artifact(str(path))
    tracker.finish("FINISHED")
    (folder / RUN_KEY).unlink(missing_ok=True)
    return study


def _inputs(config: StudyConfig, layout: Layout, judge: Path) -> dict[str, str]:
    """What the study reads, by content. Raises FileNotFoundError with what to run first."""
    prompts = layout.prompts / f"{config.prompts}.jsonl"
    needed = {
        layout.latents: "run `nava demo` (or corpus, curate, codec and encode) first",
        layout.codec / "config.json": "fit the codec first: `nava codec`",
        prompts: "render the corpus first: `nava corpus`",
        layout.corpus / "validation.jsonl": "render the corpus first: `nava corpus`",
    }
    for path, advice in needed.items():
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file or folder; {advice}")
    return {
        "latents": ",".join(md5_of(path) for path in sorted(layout.latents.glob("*/manifest.json"))),
        "codec": str(read_json(layout.codec / "config.json", "fit the codec again")["codec_id"]),
        "corpus": md5_of(layout.corpus / "validation.jsonl"),
        "prompts": md5_of(prompts),
        "judge": md5_of(judge / "config.json") if (judge / "config.json").is_file() else "",
    }


def _check_stages(config: StudyConfig, recipe: PretrainConfig) -> None:
    names = list(recipe.stages)
    for name in config.score_after:
        recipe.stage(name)
    if not config.score_after or config.score_after[-1] != names[-1]:
        raise ValueError(
            f"study.score_after: the last stage {names[-1]!r} must come last, got {config.score_after}"
        )


def _task(
    job: Job,
    recipe: StudyRecipe,
    layout: Layout,
    inputs: Mapping[str, str],
    bank: Path,
    judge: Path,
    parent: str,
) -> TrainingTask:
    config, training = recipe.study, job.training
    tags = {
        "nava.study": NAME,
        "nava.paradigm": training.paradigm,
        "nava.budget": training.budget,
        "nava.seed": str(training.seed),
    }
    return TrainingTask(
        label=training.label,
        mark=job.mark,
        tags=tags,
        pretrain=training.config,
        generate=recipe.generate,
        latents=str(layout.latents),
        codec=str(layout.codec),
        codec_id=inputs["codec"],
        prompts=str(layout.prompts / f"{config.prompts}.jsonl"),
        num_prompts=config.num_prompts,
        bank=str(bank),
        judge=str(judge) if inputs["judge"] else "",
        score_after=config.score_after,
        recognizer_processes=config.recognizer_processes,
        tracking=str(layout.tracking),
        parent=parent,
    )


def _tracker(
    folder: Path, layout: Layout, inputs: Mapping[str, str], recipe: StudyRecipe, root: Path
) -> SpoolTracker:
    """The study's run; the same one until the study is finished."""
    tracker, git = SpoolTracker(layout.tracking / kept_run_key(folder, f"study_{NAME}")), git_state(root)
    tags = {"nava.study": NAME, "mlflow.source.git.commit": git.commit, "git.dirty": str(git.dirty).lower()}
    tracker.start(RunStart(name=f"study {NAME}", tags=tags, config=to_json(recipe), inputs=dict(inputs)))
    ensure_sender(layout.tracking, root)
    return tracker


def _written(
    recipe: StudyRecipe, plan: StudyPlan, jobs: list[Job], inputs: Mapping[str, str], folder: Path, root: Path
) -> dict[str, Any]:
    results = {job.training.label: read_json(job.result, f"remove {job.folder}") for job in jobs}
    git = git_state(root)
    study = {
        "study": NAME,
        "commit": git.commit + (" with changes" if git.dirty else ""),
        "config": to_json(recipe.study),
        "inputs": dict(inputs),
        "judge": inputs["judge"],
        "facts": model_facts(plan),
        **tabulate(recipe.study, plan, results),
        "trainings": {
            job.training.label: {"folder": job.folder.name, "seconds": results[job.training.label]["seconds"]}
            for job in jobs
        },
    }
    write_json(folder / f"{NAME}.json", json.loads(json.dumps(study, allow_nan=False)))
    draw(study, folder / f"{NAME}.png")
    with replacing(folder / f"{NAME}.md") as temporary:
        temporary.write_text(page(study, f"{NAME}.png"))
    return study


def model_facts(plan: StudyPlan) -> dict[str, dict[str, Any]]:
    """Size and cost of each paradigm; FLOPs per step are the mean over the equal-steps schedule."""
    steps = sum(plan.steps[STEPS][REFERENCE].values())
    totals = {name: sum(plan.flops[STEPS][name].values()) for name in PARADIGMS}
    facts = {}
    for paradigm, name in PARADIGMS.items():
        args = flavor(name)
        facts[paradigm] = {
            "flavor": name,
            "width": args.width,
            "blocks": args.num_alignment_blocks + args.num_fusion_blocks,
            "params": count_model(name)["params_total"],
            "flops_per_step": round(totals[paradigm] / steps),
            "flops_per_step_of_nava": round(totals[paradigm] / totals[REFERENCE], 4),
            "steps_at_equal_flops": sum(plan.steps[FLOPS][paradigm].values()),
        }
    return facts
