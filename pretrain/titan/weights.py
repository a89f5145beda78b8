"""Weights of the sharded model, tensor by tensor: seeded initialisation, loading, safetensors export."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict

from pretrain.data.stream.sample_set import check_sets, folder_of
from pretrain.data.stream.trained_on import trained_on
from pretrain.launch.stage_run import StageRun
from pretrain.model.checkpoint import (
    Gathered,
    WeightsName,
    load_into,
    open_weights,
    put,
    read_model_folder,
    write_model,
    written_keys,
)
from pretrain.model.flavors import build_model, flavor
from pretrain.model.initial import first_values
from pretrain.model.shards import TensorSource
from pretrain.titan.ema import Ema, local_shard


def initialise(model: nn.Module, flavor_name: str, seed: int) -> None:
    """The same first weights on any number of CPU ranks: each drawn whole, then cut.

    (DTensor's random operations draw per shard on CPU; on accelerators they do not depend on the sharding and
    are left as they are.)
    """
    if any(parameter.device.type != "cpu" for parameter in model.parameters()):
        return
    parameters = sharded_parameters(model)
    with torch.device("meta"):
        sizes = build_model(flavor(flavor_name))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for first in first_values(sizes, sizes.args.width):
            whole = torch.empty(parameters[first.name].shape)
            first.draw(whole)
            put(parameters[first.name], whole)


def sharded_parameters(model: nn.Module) -> dict[str, Tensor]:
    """The model's own parameters, DTensors where sharded, by their names in the plain model."""
    return cast(dict[str, Tensor], get_model_state_dict(model))


def load_parent(model: nn.Module, run: StageRun) -> Ema:
    """Load `run.init_from` into the model and its EMA; without a parent the EMA starts at the model.

    Raises FileNotFoundError or ValueError in one line where its files are missing, damaged or of another
    size.
    """
    decay = run.config.ema_decay
    if run.init_from is None:
        return Ema(model, decay)
    parameters = sharded_parameters(model)
    shapes = {name: value.shape for name, value in parameters.items()}
    averaged, weights = (
        open_weights(run.init_from, "ema", shapes),
        open_weights(run.init_from, "model", shapes),
    )
    load_into(parameters, averaged)
    ema = Ema(model, decay)
    if averaged.files != weights.files:
        load_into(parameters, weights)
    ema.updates = int(read_model_folder(run.init_from).facts["ema_updates"])
    return ema


def check_finite(model: nn.Module, ema: Ema) -> None:
    """Raises ValueError on every rank where some weight, trained or averaged, is NaN or infinite.

    All ranks must call it.
    """
    weights = {**sharded_parameters(model), **{f"ema.{name}": value for name, value in ema.weights.items()}}
    flags = torch.stack([~local_shard(value).isfinite().all() for value in weights.values()]).int()
    if dist.is_initialized():
        dist.all_reduce(flags, dist.ReduceOp.MAX)
    if broken := [name for name, flag in zip(weights, flags.tolist(), strict=True) if flag]:
        raise ValueError(
            f"{len(broken)} of {len(weights)} weights are NaN or infinite ({broken[0]} is the first); the "
            "model is not exported: train again with a lower lr, from an earlier checkpoint or from the start"
        )


def seen_by(run: StageRun) -> dict[str, Any]:
    """What clips a stage and those before it have had: `pretrain.data.stream.trained_on`."""
    before = read_model_folder(run.init_from).facts.get("trained_on", {}) if run.init_from else {}
    names = check_sets(run.latents, run.config.stage(run.stage), run.places)
    return trained_on([folder_of(run.latents, name, run.places) for name in names], before)


def export(model: nn.Module, ema: Ema, run: StageRun, step: int, rank: int) -> str:
    """Write out/model/ (config.json, fp32 model and, if any, ema safetensors) on rank 0; returns its id.

    All ranks must call it: tensor by tensor is gathered and written. A failed write leaves an earlier export
    as it was.
    """
    sources: dict[WeightsName, TensorSource] = {"model": Gathered(sharded_parameters(model))}
    if not ema.off:
        sources["ema"] = Gathered(ema.weights)
    if rank:
        for source in sources.values():
            for key in written_keys(source):
                source.tensor(key)
        return ""
    config = run.config
    facts = {**run.identity(), "step": step, "ema_updates": ema.updates} | (
        {"ema_is_model": True} if ema.off else {}
    )
    facts["trained_on"] = seen_by(run)
    return write_model(run.out / "model", config.flavor, flavor(config.flavor), sources, facts)
