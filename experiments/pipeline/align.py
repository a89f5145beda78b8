"""Stage `align`: the pretrained model, aligned on the corpus' training prompts by rewards or votes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from experiments.job import StageJob
from experiments.layout import CHOSEN, PAIRS
from experiments.runs.lineage import CHECKPOINT_TAG, checkpoint_of
from experiments.runs.run import Interrupted
from experiments.runs.tracker import SpoolTracker
from experiments.scoring.latents import scorer_options
from finetune.align_run import AlignRun
from finetune.launch import align_model
from pretrain.data.corpus.texts import ALIGN_TRAIN
from pretrain.launch.launch import StageResult

# early stopping draws held-out prompts from these as well: align_held_out is for evaluation only
PROMPTS = f"{ALIGN_TRAIN}.jsonl"
BASE = "stage3"
CURATE = "`nava curate prompts` first, or set align.curated_prompts=false"
VOTE = "`nava votes` first, or leave gsb_dpo out of align.sequence"


def run(job: StageJob, tracker: SpoolTracker) -> None:
    align_tracked(job, tracker, *pairs_and_clips(job), lambda run: align_model(run, job.ranks, job.port))


def pairs_and_clips(job: StageJob) -> tuple[Path | None, Path | None]:
    """Preference pairs and the rollout store of their clips, from earlier stages.

    None if no objective of the recipe uses pairs.
    """
    if not job.recipe.align.needs_pairs:
        return None, None
    return require(job.layout.votes / PAIRS, VOTE), require(job.layout.rollouts, "`nava rollout` first")


def require(path: Path, hint: str) -> Path:
    """The path. Raises FileNotFoundError where it does not exist."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder; run {hint}")
    return path


def align_run(
    job: StageJob, tracker: SpoolTracker | None = None, pairs: Path | None = None, clips: Path | None = None
) -> AlignRun:
    """The alignment of the pretrained model. `pairs` and `clips` (a rollout store) are for gsb_dpo."""
    layout, config = job.layout, job.recipe.alignment
    options = scorer_options(config, layout.corpus, layout.codec, layout.syncnet)
    return AlignRun(
        config=config,
        base=layout.model(BASE),
        codec=layout.codec,
        prompts=layout.prompts / PROMPTS,
        out=layout.align,
        trackers=tracker.factory() if tracker else {},
        scorer=("experiments.scoring.latents:AlignScorer", options),
        pairs=pairs,
        clips=clips,
        chosen=require(layout.chosen / CHOSEN, CURATE) if config.curated_prompts else None,
    )


def align_tracked(
    job: StageJob,
    tracker: SpoolTracker,
    pairs: Path | None,
    clips: Path | None,
    train: Callable[[AlignRun], StageResult],
) -> None:
    """Align into OUT/align by `train`, resuming from the last round. Raises Interrupted if stopped early."""
    run = align_run(job, tracker, pairs, clips)
    tracker.set_tags(origin_tags(run))
    result = train(run)
    if result.status != "finished" or result.model is None:
        raise Interrupted(
            f"align stopped after round {result.step} with a checkpoint; the same command goes on from there"
        )
    tags = {CHECKPOINT_TAG: checkpoint_of(result.model)}
    tracker.set_tags(tags)
    tracker.log_model(result.model, f"{job.recipe.name}-aligned", tags)
    tracker.log_model(run.out / "adapter", f"{job.recipe.name}-adapter", tags)


def origin_tags(run: AlignRun) -> dict[str, str]:
    """Tags: initial checkpoint, prompts, rewards and pairs."""
    identity = run.identity()
    tags = {
        "nava.parent_checkpoint": checkpoint_of(run.base),
        "nava.prompts": f"{PROMPTS} sha256 {identity['prompts']}",
        "nava.rubric": ", ".join(
            f"{name} {route.weight:g} ({route.modality})"
            for name, route in run.config.rubric.routes().items()
        ),
    }
    return tags | ({"nava.pairs": f"sha256 {identity['pairs']}"} if run.pairs else {})
