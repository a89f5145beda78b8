"""Sampling with a feature cache on gloo ranks: sharded weights, and the tokens of one batch shared."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from context_ranks import filled_model
from model_cases import conditioning, present

from pretrain.flow.guidance import GuidanceScales
from pretrain.flow.reuse import FeatureCacheConfig
from pretrain.flow.solvers import Latents
from pretrain.model.context_parallel import ContextGroup
from pretrain.recipe import ParallelConfig
from pretrain.sampling import LatentRates, SamplerConfig, sample
from pretrain.types import Velocity

RATES = LatentRates(6.0, 25.0)
SCALES = GuidanceScales(timbre_video=1.0)
CACHED = SamplerConfig(
    solver="euler", steps=6, shift=3.0, guidance=SCALES, cache=FeatureCacheConfig(sigma_drop=0.3)
)


def noise(batch: int = 2, seed: int = 0) -> Latents:
    generator = torch.Generator().manual_seed(seed)
    return Latents(
        torch.randn(batch, 48, 3, 4, 4, generator=generator),
        torch.randn(batch, 128, 11, generator=generator),
    )


@dataclass
class Counted:
    """A model whose forwards are counted, and among them those that compute its blocks."""

    model: torch.nn.Module
    passes: int = 0
    blocks: int = 0

    def __post_init__(self) -> None:
        for group in self.model.block_groups():  # type: ignore[operator]
            for block in group:
                block.register_forward_hook(self._block)

    def __call__(self, *given: object) -> Velocity:
        self.passes += 1
        return self.model(*given)

    def _block(self, *given: object) -> None:
        self.blocks += 1


def sampled(model: object, config: SamplerConfig = CACHED, seed: int = 0) -> Latents:
    return sample(model, noise(seed=seed), conditioning(seed=seed), RATES, config)  # type: ignore[arg-type]


def rank(index: int, folder: Path) -> int:
    """Each rank samples a batch of its own with sharded weights, then all of them one batch together."""
    import pretrain.titan  # noqa: F401  shows torchtitan the CPU
    from pretrain.titan.ranks import Ranks, shard

    dist.init_process_group("gloo")
    size = dist.get_world_size()
    ranks = Ranks(index, size, torch.device("cpu"))
    sharded = Counted(shard(filled_model(), ranks, False, ParallelConfig(activation_checkpointing="none")))
    own = sampled(sharded, seed=index)
    together = filled_model()
    together.join_context_group(ContextGroup(index, size, present(dist.group.WORLD).group_name))
    parted = Counted(together)
    whole = sampled(parted)
    found = {"own": (own.video, own.audio), "whole": (whole.video, whole.audio)}
    counts = {"sharded": (sharded.passes, sharded.blocks), "parted": (parted.passes, parted.blocks)}
    torch.save({**found, "counts": counts}, folder / f"rank{index}.pt")
    dist.barrier()
    return 0
