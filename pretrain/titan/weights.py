"""Weights in and out of the sharded model: seeded initialisation, loading an earlier stage, export as safetensors."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.tensor import DTensor

from pretrain.files import read_json
from pretrain.model.checkpoint import check_keys, read_weights, write_model
from pretrain.model.flavors import flavor
from pretrain.model.paradigms import build_model
from pretrain.stage_run import StageRun
from pretrain.titan.ema import Ema

_FULL = StateDictOptions(full_state_dict=True, cpu_offload=True)


def initialise(model: nn.Module, flavor_name: str, seed: int) -> None:
    """The same first weights on any number of CPU ranks: drawn whole, then sharded.

    (DTensor's random operations draw per shard on CPU; on accelerators they do not depend on the sharding and are left as they are.)
    """
    if any(parameter.device.type != "cpu" for parameter in model.parameters()):
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        whole = build_model(flavor(flavor_name))
        with torch.no_grad():
            whole.init_weights()
    load_full(model, whole.state_dict())


def load_full(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Full tensors into the sharded model; every name must be there."""
    set_model_state_dict(model, dict(state), options=StateDictOptions(full_state_dict=True, strict=True))


def load_parent(model: nn.Module, run: StageRun) -> Ema:
    """Weights of `run.init_from` into the model, and its EMA; without a parent the EMA starts at the model's weights.

    Raises FileNotFoundError or ValueError in one line where its files are missing, damaged or of another size.
    """
    decay = run.config.ema_decay
    if run.init_from is None:
        return Ema(model, decay)
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    averaged, weights = read_weights(run.init_from, "ema"), read_weights(run.init_from, "model")
    for tensors in (averaged, weights):
        check_keys(shapes, tensors, str(run.init_from))
    load_full(model, averaged)
    ema = Ema(model, decay)
    load_full(model, weights)
    ema.updates = int(read_json(run.init_from / "config.json", "export the earlier stage again")["ema_updates"])
    return ema


def export(model: nn.Module, ema: Ema, run: StageRun, step: int, rank: int) -> str:
    """Write out/model/ (config.json, model.safetensors, ema.safetensors; full fp32 tensors) on rank 0; returns the model's id.

    All ranks must call it. A failed write leaves an earlier export as it was.
    """
    weights = cast(dict[str, Tensor], get_model_state_dict(model, options=_FULL))
    averaged = {name: value.full_tensor() if isinstance(value, DTensor) else value for name, value in ema.weights.items()}
    if rank:
        return ""
    config = run.config
    facts = {**run.identity(), "step": step, "ema_updates": ema.updates}
    return write_model(run.out / "model", config.flavor, flavor(config.flavor), {"model": weights, "ema": averaged}, facts)
