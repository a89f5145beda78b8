"""Ranks for trainings with their own loop: process group, and a model sharded as in pretraining."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torchtitan.config import ActivationCheckpoint, JobConfig, Parallelism, Training
from torchtitan.config.job_config import Compile
from torchtitan.distributed import ParallelDims
from torchtitan.tools.utils import device_module, device_type

from pretrain.model.shell import AVTransformer
from pretrain.recipe import ParallelConfig
from pretrain.titan.parallelize import parallelize

_PATIENCE = timedelta(minutes=60)  # a rank may wait for another's rewards that long


@dataclass(frozen=True)
class Ranks:
    """This process among the others. Gathered and summed tensors are on the CPU."""

    rank: int
    world_size: int
    device: torch.device

    def gathered(self, values: Tensor) -> Tensor:
        """[world * n, ...] in rank order of every rank's [n, ...], which must be equally long."""
        values = values.cpu().contiguous()
        parts = [torch.empty_like(values) for _ in range(self.world_size)]
        dist.all_gather(parts, values)
        return torch.cat(parts)

    def summed(self, values: Tensor) -> Tensor:
        values = values.detach().cpu().clone()
        dist.all_reduce(values)
        return values

    def gathered_texts(self, text: str) -> list[str]:
        """Every rank's text, in rank order."""
        texts = [""] * self.world_size
        dist.all_gather_object(texts, text)
        return texts

    def in_groups(self, size: int) -> Ranks:
        """Groups of `size` neighbours, which hold the same batch, as the ranks that have batches."""
        return (
            self if size == 1 else GroupRanks(self.rank // size, self.world_size // size, self.device, self)
        )


@dataclass(frozen=True)
class GroupRanks(Ranks):
    """Groups of neighbouring ranks, each as one rank; all members make the same calls with equal values."""

    members: Ranks

    @property
    def size(self) -> int:
        """Ranks of a group."""
        return self.members.world_size // self.world_size

    @property
    def place(self) -> int:
        """This rank's place within its group."""
        return self.members.rank % self.size

    def gathered(self, values: Tensor) -> Tensor:
        whole = self.members.gathered(values)
        return whole.unflatten(0, (self.world_size, self.size, -1))[:, 0].flatten(0, 1)

    def summed(self, values: Tensor) -> Tensor:
        return self.members.summed(torch.zeros_like(values) if self.place else values)

    def gathered_texts(self, text: str) -> list[str]:
        return self.members.gathered_texts(text)[:: self.size]


def join() -> Ranks:
    """Join the process group that torchrun's environment describes."""
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    device = torch.device("cpu")
    if device_type != "cpu":
        device = torch.device(device_type, int(os.environ["LOCAL_RANK"]))
        device_module.set_device(device)
    dist.init_process_group(
        "gloo" if device_type == "cpu" else f"{device_type}:nccl,cpu:gloo", timeout=_PATIENCE
    )
    return Ranks(rank, world_size, device)


def shard(model: AVTransformer, ranks: Ranks, bf16: bool, parallel: ParallelConfig) -> AVTransformer:
    """FSDP2 or HSDP over all ranks, in place. Raises ValueError where `parallel` does not divide them."""
    if ranks.world_size % (parallel.replicas * parallel.context):
        degrees = f"parallel.replicas {parallel.replicas} x parallel.context {parallel.context}"
        raise ValueError(f"{degrees} does not divide {ranks.world_size} ranks; choose divisors")
    dims = ParallelDims(
        dp_shard=-1,
        dp_replicate=parallel.replicas,
        cp=parallel.context,
        tp=1,
        pp=1,
        ep=1,
        etp=1,
        world_size=ranks.world_size,
    )
    job = JobConfig(
        training=Training(mixed_precision_param="bfloat16" if bf16 else "float32"),
        parallelism=Parallelism(
            fsdp_reshard_after_forward="default" if parallel.reshard_after_forward else "never"
        ),
        activation_checkpoint=ActivationCheckpoint(mode=parallel.activation_checkpointing),
        compile=Compile(enable=parallel.compile_blocks),
    )
    return parallelize(model, dims, job, parallel.shard_blocks)
