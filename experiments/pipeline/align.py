"""The pipeline's alignment: the pretrained model, the corpus' training prompts and the reward's network, as
one tracked run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from experiments.runs.lineage import CHECKPOINT_TAG, checkpoint_of
from experiments.runs.run import Interrupted
from experiments.runs.tracker import SpoolTracker
from pretrain.data.corpus.texts import ALIGN_TRAIN

if TYPE_CHECKING:
    from experiments.job import Job
    from experiments.layout import Layout
    from finetune.align_run import AlignRun

# those held out for stopping early come out of it too: align_held_out is for judging alone
PROMPTS = f"{ALIGN_TRAIN}.jsonl"
BASE = "stage3"
CURATE = "`nava curate prompts` first, or set align.curated_prompts=false"
VOTE = "`nava votes` first, or leave gsb_dpo out of align.sequence"


def pairs_and_clips(job: Job) -> tuple[Path | None, Path | None]:
    """What an objective learns from beside rollouts, where the recipe asks for it: pairs and the store of
    their clips, as the pipeline's stages made them."""
    from experiments.pipeline.votes import PAIRS

    if not job.recipe.align.needs_pairs:
        return None, None
    return there(job.layout.votes / PAIRS, VOTE), there(job.layout.rollouts, "`nava rollout` first")


def there(path: Path, advice: str) -> Path:
    """The path. Raises FileNotFoundError where it is not there."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder; run {advice}")
    return path


def align_run(
    job: Job, tracker: SpoolTracker | None = None, pairs: Path | None = None, clips: Path | None = None
) -> AlignRun:
    """What is aligned from what. `pairs` and `clips` (a rollout store) are for gsb_dpo."""
    from experiments.pipeline.curate_prompts import CHOSEN
    from experiments.scoring.latents import scorer_options
    from finetune.align_run import AlignRun

    layout, config = job.layout, job.recipe.align
    spool = (
        {"experiments.runs.tracker:SpoolTracker": {"folder": str(tracker.folder.resolve())}}
        if tracker
        else {}
    )
    return AlignRun(
        config=config,
        base=layout.model(BASE),
        codec=layout.codec,
        prompts=layout.prompts / PROMPTS,
        out=layout.align,
        trackers=spool,
        scorer=(
            "experiments.scoring.latents:AlignScorer",
            scorer_options(config, layout.corpus, layout.codec, layout.syncnet),
        ),
        pairs=pairs,
        clips=clips,
        chosen=there(layout.chosen / CHOSEN, CURATE) if config.curated_prompts else None,
    )


def align(
    job: Job, tracker: SpoolTracker, pairs: Path | None = None, clips: Path | None = None, ray: str = ""
) -> None:
    """Align into OUT/align, going on from what is there; raises Interrupted when it was stopped before its
    last round.

    ray: on the Ray at this address ("local": an embedded one) instead of ranks of torchrun.
    """
    run = align_run(job, tracker, pairs, clips)
    tracker.set_tags(parents_of(run, job.layout))
    if ray:
        from experiments.scoring.latents import options_for
        from orchestration.align import align_on_ray

        tracker.set_tags({"nava.ray": ray, "nava.staleness": str(job.recipe.ray.staleness)})
        result = align_on_ray(run, job.ranks, job.recipe.ray, options_for, ray)
    else:
        from finetune.launch import align_model

        result = align_model(run, job.ranks, job.port)
    if result.status != "finished" or result.model is None:
        raise Interrupted(
            f"align stopped after round {result.step} with a checkpoint; the same command goes on from there"
        )
    checkpoint = checkpoint_of(result.model)
    tracker.set_tags({CHECKPOINT_TAG: checkpoint})
    tracker.log_model(result.model, f"{job.recipe.name}-aligned", {CHECKPOINT_TAG: checkpoint})
    tracker.log_model(run.out / "adapter", f"{job.recipe.name}-adapter", {CHECKPOINT_TAG: checkpoint})


def parents_of(run: AlignRun, layout: Layout) -> dict[str, str]:
    """Tags: the checkpoint it started from, the prompts, the rewards and the pairs."""
    identity = run.identity()
    tags = {
        "nava.parent_checkpoint": checkpoint_of(run.base),
        "nava.prompts": f"{PROMPTS} sha256 {identity['prompts']}",
    }
    tags["nava.rubric"] = ", ".join(
        f"{name} {route.weight:g} ({route.modality})" for name, route in run.config.rubric.routes().items()
    )
    return tags | ({"nava.pairs": f"sha256 {identity['pairs']}"} if run.pairs else {})
