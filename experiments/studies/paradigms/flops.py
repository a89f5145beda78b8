"""Training FLOPs of a stage, counted on its actual batches, and FLOPs-matched step counts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from pretrain.data.stream.collate import CollatedBatch, num_tokens
from pretrain.data.stream.loader import Slice, StageLoader
from pretrain.data.stream.sample_set import open_sets
from pretrain.model.args import ModelArgs
from pretrain.model.flops import ClipShape, training_flops
from pretrain.recipe import PretrainConfig
from pretrain.tasks import TASKS
from pretrain.types import Task

StepShape = tuple[ClipShape, int]  # sizes of one clip, and number of clips in the step


def steps_of(config: PretrainConfig, stage: str, latents: Path, count: int) -> list[StepShape]:
    """Sizes of the stage's first `count` global batches; they depend on data and seed, not on the model."""
    settings = config.stage(stage)
    whole = Slice(0, 1, config.global_batch_size)
    loader = StageLoader(
        settings,
        open_sets(latents, settings, None, config.mix_lengths),
        config.seed,
        config.global_batch_size,
        whole,
    )
    return [_sizes(batch) for batch, _ in islice(loader, count)]


def step_flops(args: ModelArgs, step: StepShape) -> int:
    """Forward and backward of one step, all its clips."""
    shape, clips = step
    return clips * training_flops(args, shape)


def total_flops(args: ModelArgs, steps: Sequence[StepShape], count: int | None = None) -> int:
    """FLOPs of the first `count` steps (None = all), extrapolated by the mean beyond `steps`."""
    counted = sum(step_flops(args, step) for step in steps[:count])
    return counted if count is None or count <= len(steps) else round(counted * count / len(steps))


def matched_steps(args: ModelArgs, reference: ModelArgs, steps: Sequence[StepShape], count: int) -> int:
    """Number of steps of `args` nearest in FLOPs to `count` steps of `reference`, at least 1.

    Where `steps` are too few, the rest is extrapolated by their mean.
    """
    budget = total_flops(reference, steps[:count])
    spent = taken = 0
    for step in steps:
        cost = step_flops(args, step)
        if spent + cost / 2 > budget:
            return max(1, taken)
        spent, taken = spent + cost, taken + 1
    return taken + round((budget - spent) * taken / spent)


def _sizes(batch: CollatedBatch) -> StepShape:
    spec, clips = TASKS[list(Task)[int(batch["task"])]], len(batch["sample_ids"])
    audio = batch["audio"].shape[-1] if "audio" in batch else 0
    shape = ClipShape(
        video=num_tokens(batch) // clips - audio,
        audio=audio,
        context=batch["text"].shape[1],
        references=batch["speakers"].shape[1],
        video_levels=batch["video"].shape[2] if spec.video and spec.first_frame else 1,
    )
    return shape, clips
