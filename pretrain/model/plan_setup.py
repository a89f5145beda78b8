"""What a plan is asked about: the work, how it is spread over GPUs, and what the weights are held in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pretrain.model.moments_format import MomentsFormat
from pretrain.model.plan_sizes import Base

Checkpointing = Literal["none", "selective", "full"]
PlannedWork = Literal["train", "lora", "align", "rollout", "generate"]


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Sharding of a step. Raises ValueError where `replicas` x `context` does not divide `gpus`."""

    gpus: int = 1
    replicas: int = 1  # groups that each hold all shards (HSDP)
    context: int = 1  # GPUs that share one clip's tokens
    checkpointing: Checkpointing = "full"
    local_batch: int = 1  # clips of one micro-batch, per group of `context` GPUs
    micro_batches: int = 2  # of a step; from two on, gradients wait while the next one is computed
    ema: bool = True
    # align: LoRA with a second adapter; rollout: its forward passes on the same shards; generate: those of a
    # whole model
    work: PlannedWork = "train"
    base: Base = "fp32"  # what the weights are held in; training: fp32
    rank: int = 32  # of the adapters
    cached_passes: int = 0  # of a sampling step: those whose features wait while the last one computes
    moments: MomentsFormat = "fp32"
    guided: bool = True  # generate, rollout: by the release's sampler; else Euler's, one pass a step
    one_unit: bool = False  # parallel.shard_blocks is off: all blocks are gathered and reduced together
    reshard: bool = True  # parallel.reshard_after_forward; else what is gathered stays for the backward pass
    compiled: bool = False  # parallel.compile_blocks; the memory is that of blocks as they are written
    parked: bool = False  # generate, align: the codec's networks are on the GPU only while they work
    parked_rewards: bool = False  # align: so are those of rewards that can be (reward_files.parked)
    on_cpu: bool = False  # ranks on a CPU keep all that they gather, and nothing is reserved

    def __post_init__(self) -> None:
        for name in ("gpus", "replicas", "context", "micro_batches", "rank"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.local_batch < 0:
            raise ValueError(f"local_batch must not be negative, got {self.local_batch}")
        if self.gpus % (self.replicas * self.context):
            raise ValueError(
                f"{self.gpus} gpus do not divide into {self.replicas} replicas x {self.context} context "
                "ranks; choose divisors"
            )
        if self.checkpointing not in ("none", "selective", "full"):
            raise ValueError(f"checkpointing must be none, selective or full, got {self.checkpointing!r}")
        if self.work == "train" and self.base != "fp32":
            raise ValueError(f"base {self.base}: training trains all weights, which stay fp32; plan lora")

    @property
    def shards(self) -> int:
        """GPUs that a parameter is cut over: context ranks hold different shards too."""
        return self.gpus // self.replicas

    @property
    def adapters(self) -> int:
        """Adapters that the model carries: `default`, and in alignment `old`."""
        return {"lora": 1, "align": 2, "rollout": 2}.get(self.work, 0)
