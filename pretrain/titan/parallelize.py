"""Context parallelism, activation checkpointing, compilation and FSDP2 / HSDP of an AVTransformer."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torchtitan.config import TORCH_DTYPE_MAP, JobConfig
from torchtitan.distributed import ParallelDims
from torchtitan.tools.utils import device_type

from pretrain.model.context_parallel import ContextGroup
from pretrain.model.shell import AVTransformer
from pretrain.titan.activations import checkpointed


def parallelize(
    model: AVTransformer, parallel_dims: ParallelDims, job_config: JobConfig, shard_blocks: bool = True
) -> AVTransformer:
    """Wrap in place: FSDP units are each block if `shard_blocks`, the fp32 time path, and the root."""
    model.join_context_group(context_group(parallel_dims))
    blocks = model.block_groups()
    for group in blocks:
        for index, block in enumerate(group):
            group[index] = checkpointed(block, job_config.activation_checkpoint.mode)
    if job_config.compile.enable:
        compile_blocks(blocks, job_config.compile.backend)
    mesh = data_mesh(parallel_dims)
    dtype = TORCH_DTYPE_MAP[job_config.training.mixed_precision_param]
    low = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    exact = MixedPrecisionPolicy(
        param_dtype=torch.float32, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    reshard = job_config.parallelism.fsdp_reshard_after_forward != "never" and device_type != "cpu"
    fully_shard(model.time, mesh=mesh, mp_policy=exact, reshard_after_forward=reshard)
    for group in blocks if shard_blocks else ():
        for block in group:
            fully_shard(block, mesh=mesh, mp_policy=low, reshard_after_forward=reshard)
    # the root is needed first in the backward pass
    fully_shard(model, mesh=mesh, mp_policy=low, reshard_after_forward=False)
    sum_gradients(model)
    return model


def compile_blocks(blocks: tuple[nn.ModuleList, ...], backend: str | Callable) -> None:
    """One graph per kind of block. Lengths become dynamic with the second one seen."""
    # absent modalities, masks, dropped text and sigmas per frame or per clip each make a graph of their own
    torch._dynamo.config.recompile_limit = 64  # pyright: ignore[reportPrivateImportUsage]
    for group in blocks:
        for block in group:
            block.compile(backend=backend, fullgraph=True)


def sum_gradients(model: nn.Module) -> None:
    """Plain sums over ranks: the loss is already divided by global counts; gloo has no pre-multiplied sum."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_force_sum_reduction_for_comms(True)
            module.set_gradient_divide_factor(1.0)


def reshard(model: nn.Module) -> None:
    """Reshard: a forward without backward leaves gathered weights, which would be stale after an update."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def context_group(parallel_dims: ParallelDims) -> ContextGroup | None:
    """This rank's neighbours, which hold its micro-batches with it; None where every rank has its own."""
    if parallel_dims.cp == 1:
        return None
    mesh = parallel_dims.get_mesh("cp")
    return ContextGroup(mesh.get_local_rank(), mesh.size(), mesh.get_group().group_name)


def data_mesh(parallel_dims: ParallelDims) -> DeviceMesh:
    """1-D mesh of all ranks, or (replicate, shard) for HSDP. Context groups are sharded like other ranks."""
    if parallel_dims.dp_replicate > 1:
        sizes = (parallel_dims.dp_replicate, parallel_dims.dp_shard * parallel_dims.cp)
        return init_device_mesh(device_type, sizes, mesh_dim_names=("dp_replicate", "fsdp"))
    # torchtitan gives a world size of 1 a fake process group that moves no data; the wrapping is kept there,
    # so that one rank runs the same code and the same bf16 casts as many
    return init_device_mesh(device_type, (dist.get_world_size(),), mesh_dim_names=("fsdp",))
