"""What helps where a GPU has no room for a training."""

from __future__ import annotations

from pretrain.model.args import ModelArgs
from pretrain.model.flavors import flavor
from pretrain.recipe import ParallelConfig, PretrainConfig


def parallel_ways(
    parallel: ParallelConfig, section: str, args: ModelArgs | None, world_size: int
) -> list[str]:
    """Settings of `SECTION.parallel` that hold less on each GPU, are not set yet, and fit heads and ranks."""
    ways, name = [], f"{section}.parallel"
    if parallel.activation_checkpointing != "full":
        ways.append(f"{name}.activation_checkpointing=full (now {parallel.activation_checkpointing})")
    if parallel.replicas > 1:
        ways.append(f"{name}.replicas=1 (now {parallel.replicas}), shards over all GPUs")
    if not parallel.shard_blocks:
        ways.append(f"{name}.shard_blocks=true")
    if not parallel.reshard_after_forward:
        ways.append(f"{name}.reshard_after_forward=true")
    if args and args.paradigm == "nava":
        more = range(parallel.context + 1, world_size + 1)
        fits = [n for n in more if args.num_heads % n == 0 and world_size % (n * parallel.replicas) == 0]
        for degree in fits[:1]:
            ways.append(f"{name}.context={degree} (now {parallel.context}), which splits a clip's tokens")
    return ways


def training_ways(config: PretrainConfig, section: str, world_size: int) -> list[str]:
    """Settings for a GPU without room, the cheapest first."""
    local = config.local_batch(world_size)
    ways = [f"{section}.local_batch_size={local // 2} (now {local})"] if local > 1 else []
    ways += parallel_ways(config.parallel, section, flavor(config.flavor), world_size)
    plan = f"`nava plan {config.flavor} --gpus {world_size}` counts what takes how much"
    return [
        *(f"set {way}" for way in ways),
        f"take more GPUs (now {world_size}): {plan}",
    ]
