"""How long a recipe's stages take, from the FLOPs of each task's clips and a stated share of the peak."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pretrain.model.flavors import flavor
from pretrain.model.flops import ClipShape, training_flops
from pretrain.model.plan import step_seconds
from pretrain.recipe import PretrainConfig
from pretrain.schedule import StageConfig
from pretrain.tasks import TASKS
from pretrain.types import Task

DAY_S = 86_400


def plan_schedule(
    config: PretrainConfig, clip: ClipShape, gpus: int, mfu: float, peak_tflops: float
) -> dict[str, Any]:
    """Seconds and tokens/s of a step with all modalities, then steps, FLOPs and days per stage and in total.

    All clips are taken to be of the size of `clip`; a task without video has its audio tokens alone.
    """
    args = flavor(config.flavor)
    joint = training_flops(args, clip) * config.global_batch_size
    seconds = step_seconds(joint, gpus, mfu, peak_tflops)
    stages: dict[str, dict[str, float]] = {}
    for name, stage in config.stages.items():
        flops = stage.steps * config.global_batch_size * mean_clip_flops(config, stage, clip)
        stages[name] = {
            "steps": stage.steps,
            "flops": flops,
            "days": step_seconds(flops, gpus, mfu, peak_tflops) / DAY_S,
        }
    total = {key: sum(stage[key] for stage in stages.values()) for key in ("steps", "flops", "days")}
    return {
        "global_batch_size": config.global_batch_size,
        "mfu": mfu,
        "peak_tflops": peak_tflops,
        "joint_step_seconds": seconds,
        "tokens_per_s": (clip.video + clip.audio) * config.global_batch_size / seconds,
        "tokens_per_s_per_gpu": (clip.video + clip.audio) * config.global_batch_size / seconds / gpus,
        "stages": stages,
        "total": total,
    }


def clips_per_batch(stage: StageConfig) -> float:
    """Clips that a step takes on average, in global batches, over the stage's mix of tasks."""
    weights = sum(stage.tasks.values())
    return sum(weight / weights * _factor(stage, name) for name, weight in stage.tasks.items())


def _factor(stage: StageConfig, task: str) -> int:
    return 1 if TASKS[Task(task)].video else stage.audio_only_batch_factor


def mean_clip_flops(config: PretrainConfig, stage: StageConfig, clip: ClipShape) -> float:
    """Training FLOPs a step spends per clip of the global batch, over the stage's mix of tasks."""
    args, weights = flavor(config.flavor), sum(stage.tasks.values())
    mean = 0.0
    for name, weight in stage.tasks.items():
        spec = TASKS[Task(name)]
        shape = replace(clip, video=clip.video if spec.video else 0, audio=clip.audio if spec.audio else 0)
        mean += weight / weights * training_flops(args, shape) * _factor(stage, name)
    return mean
