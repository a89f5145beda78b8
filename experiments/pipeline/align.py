"""Stage `align`: the pretrained model, aligned on the corpus' training prompts by rewards or votes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from experiments.alignment.checks import check_before
from experiments.alignment.inputs import AlignInputs, align_run, origin_tags
from experiments.job import StageJob
from experiments.runs.lineage import CHECKPOINT_TAG, checkpoint_of
from experiments.runs.model_names import ALIGNED, PARENT_TAG, adapter_tags, model_tags, registered_name
from experiments.runs.provenance import code_digests
from experiments.runs.run import Interrupted
from experiments.runs.tracker import SpoolTracker
from finetune.align_run import AlignRun
from finetune.launch import align_model
from pretrain.launch.launch import StageResult


def run(job: StageJob, tracker: SpoolTracker) -> None:
    for notice in check_before(align_run(job), job.ranks):
        print(notice)
    align_tracked(job, tracker, AlignInputs(), lambda run: align_model(run, job.ranks, job.port))


def align_tracked(
    job: StageJob, tracker: SpoolTracker, inputs: AlignInputs, train: Callable[[AlignRun], StageResult]
) -> None:
    """Align into job.layout.align by `train`, resuming from the last round.

    Raises Interrupted if stopped early.
    """
    run = alignment_of(job, inputs, tracker)
    tracker.set_tags(origin_tags(run, inputs))
    result = train(run)
    if result.status != "finished" or result.model is None:
        raise Interrupted(
            f"align stopped after round {result.step} with a checkpoint; the same command goes on from there"
        )
    checkpoint, parent = checkpoint_of(result.model), checkpoint_of(run.base)
    tracker.set_tags({CHECKPOINT_TAG: checkpoint})
    # a version of what it started from: another model's alignment does not become the recipe's
    registered = registered_name(job.recipe.name) if inputs.model is None else ""
    tags, adapter = model_tags(result.model) | {PARENT_TAG: parent}, run.out / "adapter"
    tracker.log_model(result.model, f"{job.recipe.name}-aligned", tags, registered, ALIGNED, parent)
    tracker.log_model(adapter, f"{job.recipe.name}-adapter", adapter_tags(adapter, checkpoint))


def alignment_of(job: StageJob, inputs: AlignInputs, tracker: SpoolTracker | None = None) -> AlignRun:
    """The alignment as its ranks get it, with the digests of its code. Raises as `align_run`."""
    run = align_run(job, tracker, inputs)
    code = code_digests("align", job.root)
    return dataclasses.replace(run, code=code, trash=job.layout.trash, anyway=job.anyway)
