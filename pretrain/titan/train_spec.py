"""torchtitan's TrainSpec of NAVA: model, sharding, optimizer and data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import nn
from torchtitan.components.lr_scheduler import build_lr_schedulers
from torchtitan.components.optimizer import OptimizersContainer, build_optimizers
from torchtitan.config import Optimizer
from torchtitan.distributed import ParallelDims
from torchtitan.protocols.model import BaseModelArgs
from torchtitan.protocols.train_spec import TrainSpec

from pretrain.data.stream.loader import Slice, StageLoader
from pretrain.data.stream.sample_set import SampleSet
from pretrain.launch.stage_run import StageRun
from pretrain.model.args import ModelArgs
from pretrain.model.flavors import FLAVORS, build_model
from pretrain.model.modality import WeightModality, modalities_of
from pretrain.titan.moments import EIGHT_BITS, ShardedAdamW8bit
from pretrain.titan.parallelize import parallelize


@dataclass
class TitanArgs(BaseModelArgs):
    """torchtitan's view of ModelArgs."""

    args: ModelArgs = field(default_factory=ModelArgs)

    def update_from_config(self, job_config, **kwargs) -> None: ...

    def get_nparams_and_flops(self, model: nn.Module, seq_len: int) -> tuple[int, float]:
        num_params = sum(p.numel() for p in model.parameters())
        return num_params, 6.0 * num_params


def build_complete_optimizers(
    model_parts: list[nn.Module], config: Optimizer, parallel_dims: ParallelDims
) -> OptimizersContainer:
    """AdamW whose moments exist for every parameter from the start.

    A checkpoint taken while some parameter never had a gradient (an audio-only first step) would otherwise
    lack its moments, and DCP refuses to load it into a run that has them. One step with zero gradients at
    rate 0 creates them and moves nothing.
    """
    optimizers = _build(model_parts, config, parallel_dims)
    for optimizer in optimizers:
        create_moments(optimizer)
    return optimizers


def build_scaled_optimizers(
    scales: Mapping[WeightModality, float],
    model_parts: list[nn.Module],
    config: Optimizer,
    parallel_dims: ParallelDims,
) -> OptimizersContainer:
    """The same with a learning rate of its own for the weights of each modality: lr x scale."""
    optimizers = _build(model_parts, config, parallel_dims)
    for model, optimizer in zip(model_parts, optimizers, strict=True):
        if any(scale != 1 for scale in scales.values()):
            split_groups(optimizer, model, scales)
        create_moments(optimizer)
    return optimizers


def _build(
    model_parts: list[nn.Module], config: Optimizer, parallel_dims: ParallelDims
) -> OptimizersContainer:
    """torchtitan's optimizers, or in the same container the one whose moments are in 8 bits."""
    if config.name != EIGHT_BITS:
        return build_optimizers(model_parts, config, parallel_dims)
    settings = {
        "lr": config.lr,
        "betas": (config.beta1, config.beta2),
        "eps": config.eps,
        "weight_decay": config.weight_decay,
    }
    return OptimizersContainer(model_parts, ShardedAdamW8bit, settings)


def split_groups(
    optimizer: torch.optim.Optimizer, model: nn.Module, scales: Mapping[WeightModality, float]
) -> None:
    """A parameter group for each modality that has parameters, in place."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    modalities = modalities_of(names.values())
    (whole,) = optimizer.param_groups
    groups = []
    for modality, scale in scales.items():
        taken = [one for one in whole["params"] if modalities[names[id(one)]] == modality]
        groups += [{**whole, "params": taken, "lr": whole["lr"] * scale}] if taken else []
    optimizer.param_groups = groups


def create_moments(optimizer: torch.optim.Optimizer) -> None:
    """All moments at zero, as if no step had been taken."""
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    for state in optimizer.state.values():
        state["step"].zero_()


def train_spec(
    run: StageRun,
    sets: dict[str, SampleSet],
    build: Callable[[ModelArgs], nn.Module] = build_model,
    build_optimizers_of: Callable[..., OptimizersContainer] = build_complete_optimizers,
) -> TrainSpec:
    """The spec of one stage over loaded data sets."""

    def build_loader(
        dp_world_size: int, dp_rank: int, tokenizer, job_config, infinite: bool = True
    ) -> StageLoader:
        config = run.config
        part = Slice(dp_rank, dp_world_size, job_config.training.local_batch_size)
        # no prefetch thread for data in memory
        prefetch = 0 if all(source.in_memory for source in sets.values()) else config.prefetch
        return StageLoader(
            config.stage(run.stage), sets, config.seed, config.global_batch_size, part, prefetch
        )

    return TrainSpec(
        model_cls=lambda titan_args: build(titan_args.args),  # type: ignore[arg-type]
        model_args={name: TitanArgs(args=args) for name, args in FLAVORS.items()},
        parallelize_fn=partial(parallelize, shard_blocks=run.config.parallel.shard_blocks),
        pipelining_fn=None,
        build_optimizers_fn=build_optimizers_of,
        build_lr_schedulers_fn=build_lr_schedulers,
        build_dataloader_fn=build_loader,  # type: ignore[arg-type]
        build_tokenizer_fn=None,
        build_loss_fn=lambda job_config, **kwargs: None,  # type: ignore[arg-type,return-value]
    )
