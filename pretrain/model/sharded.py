"""Whole tensors into and out of parameters that may be sharded, one at a time."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from pretrain.model.shards import InMemory


@torch.no_grad()
def put(parameter: Tensor, whole: Tensor) -> None:
    """Write a whole tensor that every rank has into a parameter, sharded or not; each rank cuts its own part, no collective."""
    if isinstance(parameter, DTensor):
        local = whole.to(parameter.device, parameter.dtype)
        whole = distribute_tensor(local, parameter.device_mesh, parameter.placements, src_data_rank=None)
    parameter.copy_(whole)


class Gathered(InMemory):
    """A TensorSource of parameters that may be sharded: each tensor comes whole, on the CPU; all ranks must ask for the same one."""

    def tensor(self, key: str) -> Tensor:
        value = self.tensors[key].detach()
        return (value.full_tensor() if isinstance(value, DTensor) else value).cpu()
