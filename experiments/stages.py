"""The work behind each stage of dvc.yaml: `python -m experiments.stages NAME`; `nava NAME` calls the same
functions.

Every stage imports only what it needs, so a change of the report does not wait for torch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.job import Job
from experiments.layout import PRETRAIN_STAGES, STAGES
from experiments.runs.lineage import CHECKPOINT_TAG, checkpoint_of
from experiments.runs.run import Interrupted, end_on_sigterm, read_record, tracked, unchanged
from experiments.runs.tracker import SpoolTracker
from pretrain.config import nearest
from pretrain.data.corpus.texts import ALIGN_HELD_OUT

LATENT_SETS = ("audio_only", "paired", "hq_audio", "validation")


def run_stage(stage: str, job: Job) -> None:
    """Run one stage as a tracked run. Raises ValueError for an unknown stage, naming the nearest one."""
    if stage not in STAGES:
        raise ValueError(f"unknown stage {stage!r}; {nearest(stage, STAGES)}")
    resume = is_training(
        stage
    )  # only an interrupted training can be gone on with; everything else starts over
    with tracked(
        stage, job.recipe.name, config_of(stage, job.recipe), job.layout, job.root, resume
    ) as tracker:
        if stage.startswith("pretrain_"):
            pretrain(stage.removeprefix("pretrain_"), job, tracker)
        else:
            WORK[stage](job, tracker)


def is_training(stage: str) -> bool:
    """The stages that keep checkpoints."""
    return stage.startswith("pretrain_") or stage == "align"


def config_of(stage: str, recipe: Any) -> dict[str, Any]:
    """The part of the recipe a stage depends on, as plain values; a pretraining stage does not depend on the
    others' numbers."""
    from experiments.recipes.load import as_plain

    section = "pretrain" if stage.startswith("pretrain_") else stage.removesuffix("_aligned")
    if section == "report":
        return {}
    config = as_plain(getattr(recipe, section))
    if section == "pretrain":
        name = stage.removeprefix("pretrain_")
        config["stages"] = {name: config["stages"][name]}
    return config


def corpus(job: Job, tracker: SpoolTracker) -> None:
    from pretrain.data.corpus.build import build_corpus

    build_corpus(job.recipe.corpus, job.layout.corpus)
    tracker.log_artifact(str(job.layout.corpus / "summary.json"))


def curate(job: Job, tracker: SpoolTracker) -> None:
    from pretrain.data.curate import curate as choose

    choose(job.recipe.curate, job.layout.corpus, job.layout.curated)
    tracker.log_artifact(str(job.layout.curated / "report.json"))


def codec(job: Job, tracker: SpoolTracker) -> None:
    from pretrain.codecs.fit import fit_codecs

    fit_codecs(job.recipe.codec, job.layout.corpus, job.layout.codec)
    tracker.log_artifact(str(job.layout.codec / "errors.json"))
    tracker.log_model(job.layout.codec, "codec", {})


def encode(job: Job, tracker: SpoolTracker) -> None:
    from pretrain.data.encoding.encode import encode_sets

    manifests = {name: job.layout.corpus / f"{name}.jsonl" for name in LATENT_SETS}
    manifests["curated"] = job.layout.curated / "curated.jsonl"
    encode_sets(job.recipe.encode, manifests, job.layout.codec, job.layout.latents)


def pretrain(stage: str, job: Job, tracker: SpoolTracker) -> None:
    """Train one stage from the model of the one before it; raises Interrupted when it was stopped before its
    last step."""
    from experiments.pipeline.training_data import codec_id_of, latents_of, make_samples
    from pretrain.launch.launch import pretrain_stage

    layout, config = job.layout, job.recipe.pretrain
    names = list(config.stages)
    before = names[: names.index(stage)]
    result = pretrain_stage(
        config,
        stage,
        latents_of(config, layout),
        layout.pretrain(stage),
        codec_id=codec_id_of(config, stage, layout),
        init_from=job.init_from or (layout.model(before[-1]) if before else None),
        nproc=job.ranks,
        port=job.port,
        nodes=job.nodes,
        trackers={"experiments.runs.tracker:SpoolTracker": {"folder": str(tracker.folder.resolve())}},
    )
    if result.status != "finished":
        raise Interrupted(
            f"{stage} stopped at step {result.step} with a checkpoint; the same command goes on from there"
        )
    model = layout.model(stage)
    checkpoint = checkpoint_of(model)
    tracker.set_tags({CHECKPOINT_TAG: checkpoint})
    tracker.log_model(model, f"{job.recipe.name}-{stage}", {CHECKPOINT_TAG: checkpoint})
    for path in make_samples(job.recipe.generate, layout, stage):
        tracker.log_artifact(str(path), "samples")


def generate(job: Job, tracker: SpoolTracker) -> None:
    from pretrain.generate import generate as speak

    layout = job.layout
    for prompts in (
        *sorted(layout.prompts.glob("pretrain_*.jsonl")),
        layout.prompts / f"{ALIGN_HELD_OUT}.jsonl",
    ):
        folder = layout.generated / prompts.stem
        speak(job.recipe.generate, layout.model("stage3"), layout.codec, prompts, folder, None)
        for clip in sorted(folder.glob("*.mp4"))[:4]:
            tracker.log_artifact(str(clip), f"clips/{prompts.stem}")


def syncnet(job: Job, tracker: SpoolTracker) -> None:
    from experiments.pipeline.syncnet import fit_sync

    layout = job.layout
    report = fit_sync(job.recipe.syncnet, layout.corpus, layout.codec, layout.syncnet)
    for role in ("reward", "judge"):
        found = report[role]["real"]["2s"]
        tracker.log_metrics(
            {
                f"{role}/{name}": found[name]["mean"]
                for name in ("true_over_moved", "offset_within_1", "reward_at_0")
            },
            0,
        )
        tracker.log_model(layout.syncnet / role, f"syncnet-{role}", {})
    tracker.log_artifact(str(layout.syncnet / "report.json"))


def rollout(job: Job, tracker: SpoolTracker) -> None:
    from experiments.pipeline.align import BASE, PROMPTS
    from finetune.make_rollouts import make_rollouts

    layout, recipe = job.layout, job.recipe
    facts = make_rollouts(
        recipe.rollout,
        recipe.align,
        layout.model(BASE),
        layout.codec,
        layout.prompts / PROMPTS,
        layout.rollouts,
    )
    tracker.set_tags({"nava.rollouts": f"{facts['clips']} clips of {facts['prompts']} prompts"})


def curate_prompts(job: Job, tracker: SpoolTracker) -> None:
    from experiments.pipeline.curate_prompts import CHOSEN
    from experiments.pipeline.curate_prompts import curate_prompts as choose

    layout, recipe = job.layout, job.recipe
    choose(
        recipe.curate_prompts,
        recipe.align,
        layout.rollouts,
        layout.codec,
        layout.corpus,
        layout.syncnet,
        layout.chosen,
    )
    tracker.log_artifact(str(layout.chosen / CHOSEN))


def votes(job: Job, tracker: SpoolTracker) -> None:
    from experiments.pipeline.votes import PAIRS, SUMMARY, VOTES, vote_on_rollouts
    from finetune.gsb.simulated_raters import check_apart

    layout = job.layout
    check_apart(job.recipe.votes.panel, job.recipe.align.rubric.weights())
    vote_on_rollouts(
        job.recipe.votes, layout.rollouts, layout.codec, layout.corpus, layout.syncnet, layout.votes
    )
    tracker.set_tags({"nava.simulated": "true"})
    for name in (VOTES, PAIRS, SUMMARY):
        tracker.log_artifact(str(layout.votes / name))


def align(job: Job, tracker: SpoolTracker) -> None:
    from experiments.pipeline.align import align as refine
    from experiments.pipeline.align import pairs_and_clips

    refine(job, tracker, *pairs_and_clips(job))


def generate_aligned(job: Job, tracker: SpoolTracker) -> None:
    from pretrain.generate import generate as speak

    layout, folder = job.layout, job.layout.aligned / ALIGN_HELD_OUT
    speak(
        job.recipe.generate,
        layout.align / "model",
        layout.codec,
        layout.prompts / f"{ALIGN_HELD_OUT}.jsonl",
        folder,
        None,
    )
    for clip in sorted(folder.glob("*.mp4"))[:4]:
        tracker.log_artifact(str(clip), f"clips/{ALIGN_HELD_OUT}")


def score(job: Job, tracker: SpoolTracker) -> None:
    from experiments.scoring.sets import score_sets

    layout, config, limits = job.layout, job.recipe.score, job.recipe.align.guardrails
    aligned = layout.aligned if layout.aligned.is_dir() else None
    scored = score_sets(
        config, layout.corpus, layout.codec, layout.syncnet, layout.generated, layout.scores, aligned, limits
    )
    tracker.log_artifact(str(scored))


def evaluate(job: Job, tracker: SpoolTracker) -> None:
    from experiments.report.evaluate import evaluate as measure
    from experiments.report.evaluate import metrics_to_log
    from experiments.report.gates import read_reports
    from experiments.report.metric_keys import reported_metrics
    from experiments.scoring.sets import SCORES

    layout, recipe = job.layout, job.recipe
    given = {
        "rewarded": recipe.align.rubric.weights(),
        "limits": recipe.align.guardrails,
        "known": reported_metrics(recipe.score),
    }
    measure(
        recipe.evaluate,
        layout.scores / SCORES,
        layout.metrics,
        layout.alignment,
        layout.gsb / "votes.jsonl",
        **given,
    )
    written = read_reports(layout.metrics, layout.alignment)
    tracker.log_metrics(metrics_to_log(written.metrics, written.alignment), step=0)
    for path in (layout.metrics, layout.alignment, layout.gsb / "votes.jsonl"):
        if path.is_file():
            tracker.log_artifact(str(path))


def report(job: Job, tracker: SpoolTracker) -> None:
    from experiments.report.metric_keys import reported_metrics
    from experiments.report.report import report as write

    layout = job.layout
    records = [record for stage in STAGES if (record := read_record(layout, stage))]
    facts = {f"{record.stage}": f"{record.duration_s:.0f} s" for record in records}
    if records:
        facts["commit"] = records[-1].git_commit + (" with changes" if records[-1].git_dirty else "")
    stages = {name: layout.pretrain(name) for name in PRETRAIN_STAGES if layout.pretrain(name).is_dir()}
    after = {
        "alignment": layout.alignment,
        "aligned": layout.aligned,
        "align_log": layout.align / "metrics.jsonl",
    }
    page = write(
        layout.metrics,
        layout.scores,
        stages,
        layout.generated,
        layout.corpus,
        layout.codec,
        layout.reports,
        facts,
        gates=job.recipe.evaluate.gates,
        known=reported_metrics(job.recipe.score),
        **after,
    )
    for path in (page, *sorted(page.parent.glob("*.png"))):
        tracker.log_artifact(str(path))


WORK: dict[str, Callable[[Job, SpoolTracker], None]] = {
    "corpus": corpus,
    "curate": curate,
    "codec": codec,
    "encode": encode,
    "generate": generate,
    "syncnet": syncnet,
    "rollout": rollout,
    "curate_prompts": curate_prompts,
    "votes": votes,
    "align": align,
    "generate_aligned": generate_aligned,
    "score": score,
    "evaluate": evaluate,
    "report": report,
}


def run_where_needed(stage: str, job: Job) -> None:
    """Run a stage, but keep a training that nothing has changed for.

    DVC watches the whole pretrain section for each of its stages, and so calls one also when only another's
    numbers changed.
    """
    if is_training(stage) and unchanged(stage, config_of(stage, job.recipe), job.layout, job.root):
        print(
            f"{stage}: same inputs and settings as its last run, kept (delete "
            f"{job.layout.runs / stage}.json to train again)"
        )
    else:
        run_stage(stage, job)


def main(arguments: list[str]) -> int:
    """Called by DVC in the repository root; the recipe is the one params.yaml names."""
    from experiments.errors import one_line_errors

    with one_line_errors():
        if len(arguments) != 1:
            raise ValueError(f"expected one stage name, got {arguments}; {nearest('corpus', STAGES)}")
        if arguments[0] not in STAGES:
            raise ValueError(f"unknown stage {arguments[0]!r}; {nearest(arguments[0], STAGES)}")
        from experiments.recipes.load import load_recipe, read_params

        end_on_sigterm()
        params = Path("params.yaml")
        values = read_params(params)
        recipe = load_recipe(values.get("recipe", "mini"), params)
        run_where_needed(arguments[0], Job(recipe=recipe))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
