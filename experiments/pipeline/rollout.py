"""Stage `rollout`: several clips of each alignment prompt by the pretrained model."""

from __future__ import annotations

from experiments.job import StageJob
from experiments.runs.tracker import SpoolTracker
from finetune.make_rollouts import make_rollouts
from pretrain.data.corpus.texts import ALIGN_TRAIN


def run(job: StageJob, tracker: SpoolTracker) -> None:
    layout, recipe = job.layout, job.recipe
    prompts = layout.prompts / f"{ALIGN_TRAIN}.jsonl"
    facts = make_rollouts(
        recipe.rollout, recipe.align, layout.model("stage3"), layout.codec, prompts, layout.rollouts
    )
    tracker.set_tags({"nava.rollouts": f"{facts['clips']} clips of {facts['prompts']} prompts"})
