"""What a round of an alignment asks of the model: forward passes, FLOPs and memory, from sizes alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from finetune.objectives.base import Objective, RolloutPlan
from finetune.recipe import AlignConfig
from pretrain.flow.guidance import NO_GUIDANCE, guided_velocity
from pretrain.model.args import ModelArgs
from pretrain.model.flops import (
    ClipShape,
    adapter_flops,
    block_flops,
    forward_flops,
    frozen_training_flops,
    reused_flops,
    self_attention_flops,
)
from pretrain.model.plan import clip_shape
from pretrain.model.plan_memory import memory_parts
from pretrain.model.plan_setup import PlannedWork, Setup
from pretrain.sampling import SamplerConfig
from pretrain.types import SPEAKER_DIM, Conditioning, Velocity


@dataclass(frozen=True, kw_only=True)
class RoundWork:
    """Clips and model FLOPs of one round of an objective, over all GPUs.

    Held-out prompts are scored every `stop.every` rounds; a round has its share of that.
    """

    clips: int  # rolled out, decoded and scored; 0 = the objective has given clips
    held_out_clips: float  # the same of held-out prompts
    rollout_flops: float
    held_out_flops: float
    update_flops: float

    @property
    def scored_clips(self) -> float:
        return self.clips + self.held_out_clips


def clip_of(config: AlignConfig, args: ModelArgs, context_tokens: int = 512) -> ClipShape:
    """A clip of a prompt that does not say its length and size. Raises ValueError where it does not split
    into tokens."""
    return clip_shape(args, config.num_frames, config.height, config.width, config.fps, context_tokens)


def round_work(config: AlignConfig, args: ModelArgs, objective: Objective[Any]) -> RoundWork:
    """Of one of `config.objectives()`, at the recipe's own length and size."""
    clip, rank = clip_of(config, args), config.lora.rank
    plan, held_out = objective.rollout(), config.held_out_plan()
    rolled = plan.prompts * plan.clips_per_prompt if plan else 0
    waiting = held_out.prompts / config.stop.every
    return RoundWork(
        clips=rolled,
        held_out_clips=waiting,
        rollout_flops=rolled * sampling_flops(args, clip, plan.sampler, rank) if plan else 0.0,
        held_out_flops=waiting * sampling_flops(args, clip, config.deployed, rank),
        update_flops=objective.phase.clips_per_round
        * objective.phase.epochs
        * update_flops(args, clip, objective, config.parallel.activation_checkpointing, rank),
    )


def passes_of_step(sampler: SamplerConfig, voiced: bool = True) -> list[bool]:
    """A forward pass of a sampling step each: whether its modalities attend to each other.

    voiced: some clip of the batch has a reference voice.
    """
    joined: list[bool] = []

    def velocity_of(given: Conditioning) -> Velocity:
        joined.append(bool(given.modalities_joined.all()))
        return Velocity(torch.zeros(1), torch.zeros(1))

    one = torch.ones(1, dtype=torch.bool)
    given = Conditioning(
        torch.zeros(1, 1, 1),
        torch.ones(1, 1, dtype=torch.bool),
        torch.zeros(1, 1, SPEAKER_DIM),
        torch.zeros(1, 1, dtype=torch.int64),
        one,
        one,
    )
    guided_velocity(velocity_of, given, sampler.guidance, voiced=voiced)
    return joined


def sampling_flops(args: ModelArgs, clip: ClipShape, sampler: SamplerConfig, rank: int) -> int:
    """Of one clip by a policy with an adapter: every step of the solver is one velocity, guided or not.

    A step that reuses features has no blocks, and so no adapters.
    """
    passes = passes_of_step(sampler)
    adapters = len(passes) * adapter_flops(args, clip, rank)
    step = sum(forward_flops(args, replace(clip, joined=joined)) for joined in passes) + adapters
    reused = sampler.reused_steps
    return (sampler.steps - reused) * step + reused * len(passes) * reused_flops(args, clip)


def cached_passes(sampler: SamplerConfig) -> int:
    """Passes of a step whose features wait while the blocks of its last pass compute."""
    return len(passes_of_step(sampler)) - 1 if sampler.reused_steps else 0


def update_flops(
    args: ModelArgs, clip: ClipShape, objective: Objective[Any], checkpointing: str, rank: int
) -> float:
    """Of one clip in one epoch: passes with gradient, what they recompute, and those without."""
    passes, adapter = objective.passes(), adapter_flops(args, clip, rank)
    blocks = block_flops(args, clip) + adapter
    again = {"none": 0, "selective": blocks - self_attention_flops(args, clip), "full": blocks}[checkpointing]
    trained = frozen_training_flops(args, clip) + 3 * adapter + again
    return passes.trained * trained + passes.frozen * (forward_flops(args, clip) + adapter)


def round_memory(
    config: AlignConfig, args: ModelArgs, objective: Objective[Any], gpus: int, on_cpu: bool = False
) -> dict[str, dict[str, float]]:
    """Bytes per GPU at the peak of `rollout` (also of held-out prompts) and `update`, by part.

    Raises ValueError where the recipe's replicas and context degree do not divide `gpus`.
    """
    clip, parallel, phase = clip_of(config, args), config.parallel, objective.phase
    held_out = config.held_out_plan()
    plan: RolloutPlan = objective.rollout() or held_out
    cached = max(cached_passes(sampler) for sampler in (plan.sampler, config.deployed))
    batches: dict[str, tuple[PlannedWork, int]] = {
        "rollout": ("rollout", max(plan.batch, held_out.batch)),
        "update": ("align", phase.micro_batch * (2 if objective.needs_pairs else 1)),
    }
    return {
        name: memory_parts(
            args,
            clip,
            Setup(
                gpus=gpus,
                replicas=parallel.replicas,
                context=parallel.context,
                checkpointing=parallel.activation_checkpointing,
                local_batch=batch,
                work=work,
                base=config.lora.base,
                rank=config.lora.rank,
                moments=config.moments,
                one_unit=not parallel.shard_blocks,
                reshard=parallel.reshard_after_forward,
                guided=any(
                    each.sampler.solver != "euler" or each.sampler.guidance != NO_GUIDANCE
                    for each in (plan, held_out)
                ),
                on_cpu=on_cpu,
                cached_passes=cached if work == "rollout" else 0,
            ),
        )
        for name, (work, batch) in batches.items()
    }
