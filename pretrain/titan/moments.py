"""AdamW with its two moments in 8 bits, by torchao's rounding and update, sharded as the weights are.

torchao's AdamW8bit cuts a rank's shard into blocks of 256 values where they divide it, so which moments are
rounded depends on the number of ranks, and other ranks can read a state only where their shards end with a
block. Here blocks lie within rows, which no two ranks share: a training is the same on any ranks. Codes and
scales are plain DTensors in the optimizer's state, which DCP saves, stages and cuts anew like any other.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from pretrain.config import one_line
from pretrain.model.moments_format import MomentsFormat, block_of
from pretrain.titan.ema import local_shard

EIGHT_BITS = "AdamW8bit"  # in the place of torchtitan's names of optimizers


def optimizer_name(moments: MomentsFormat, field: str = "optimizer.moments") -> str:
    """The name of the optimizer in torchtitan's JobConfig. Raises ValueError in one line, which names
    `field`, where 8 bits need a package that is not here."""
    if moments == "fp32":
        return "AdamW"
    if importlib.util.find_spec("torchao") is None:
        raise ValueError(
            f"{field}=8bit: the rounding is torchao's, which is not installed "
            f"(pip install 'torchao>=0.18,<0.19'); set {field}=fp32"
        )
    try:
        _torchao()
    except ImportError as error:
        raise ValueError(
            f"{field}=8bit: the installed torchao has no 8-bit AdamW ({error}); install "
            f"'torchao>=0.18,<0.19', or set {field}=fp32"
        ) from None
    return EIGHT_BITS


class ShardedAdamW8bit(torch.optim.Optimizer):
    """AdamW whose moments are 8-bit codes and a scale per block (Dettmers et al., arXiv:2110.02861).

    A parameter that `block_of` takes has `exp_avg_codes`, `exp_avg_sq_codes` (uint8, its shape) and
    `..._scale` (fp32, rows x blocks of a row); others have torch's `exp_avg`, `exp_avg_sq`. On a GPU the
    update is compiled for each shape, on a CPU it runs as it is. Raises ValueError where compiling fails.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        assert closure is None, "an update has its gradients already"
        for group in self.param_groups:
            # a tensor, so that a new rate is no new graph
            rate = torch.tensor(group["lr"], dtype=torch.float32)
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state.update(_fresh(parameter))
                state["step"] += 1
                if local_shard(parameter).numel():
                    self._update(parameter, state, rate, group)

    def _update(self, parameter: Tensor, state: dict[str, Any], rate: Tensor, group: dict[str, Any]) -> None:
        assert parameter.grad is not None
        value, gradient = local_shard(parameter.detach()), local_shard(parameter.grad)
        first, second = (_moment(state, name) for name in ("exp_avg", "exp_avg_sq"))
        settings = (*group["betas"], group["weight_decay"], group["eps"])
        # no maximum of the second moment; AdamW's decay; no stochastic rounding: weights are fp32
        arguments = (value, gradient, state["step"], first, second, None, rate, *settings, True, False)
        (_compiled_update if value.is_cuda else _torchao()[0])(*arguments)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """In place: torch's own would make the codes fp32, four times their bytes."""
        for own, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            for parameter, key in zip(own["params"], saved["params"], strict=True):
                for name, value in state_dict["state"][key].items():
                    held = self.state[parameter][name]
                    if held is not value:
                        held.copy_(value)
            own.update({name: value for name, value in saved.items() if name != "params"})


def state_tensors(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    """All moments, codes and scales that an AdamW holds, without its counts of steps."""
    for state in optimizer.state.values():
        yield from (value for name, value in state.items() if name != "step")


def _compiled_update(*arguments: Any) -> None:
    """torchao's update as one kernel. Raises ValueError in one line where it cannot be compiled."""
    from torch._dynamo.exc import TorchDynamoException
    from torch._dynamo.utils import disable_cache_limit

    try:
        with disable_cache_limit():  # as torchao does: a model's shapes are many, but no more than that
            torch.compile(_torchao()[0], fullgraph=True, dynamic=False)(*arguments)
    except TorchDynamoException as error:
        reason = one_line(error, 200)
        raise ValueError(
            f"moments in 8 bits: torch.compile could not make the update ({reason}); on a GPU it needs "
            "triton and a C compiler; install them, or set moments to fp32"
        ) from error


def _fresh(parameter: Tensor) -> dict[str, Tensor]:
    """A parameter's state before its first step, sharded as it is."""
    block, state = block_of(parameter.shape), {"step": torch.tensor(0.0)}
    for name in ("exp_avg", "exp_avg_sq"):
        if block:
            state[f"{name}_codes"] = torch.zeros_like(parameter, dtype=torch.uint8)
            state[f"{name}_scale"] = _zero_scales(parameter, block)
        else:
            state[name] = torch.zeros_like(parameter)
    return state


def _zero_scales(parameter: Tensor, block: int) -> Tensor:
    """(rows, blocks of a row), its rows on the ranks that have the parameter's."""
    rows, blocks = parameter.shape[0], math.prod(parameter.shape[1:]) // block
    local = local_shard(parameter)
    scales = torch.zeros(local.shape[0], blocks, dtype=torch.float32, device=local.device)
    if not isinstance(parameter, DTensor):
        return scales
    assert all(not place.is_shard() or place.is_shard(0) for place in parameter.placements)
    return DTensor.from_local(
        scales,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=torch.Size((rows, blocks)),
        stride=(blocks, 1),
    )


def _moment(state: dict[str, Any], name: str) -> Tensor:
    """This rank's part of a moment: torchao's tensor over codes and scales, or fp32."""
    if name in state:
        return local_shard(state[name])
    codes, scale = local_shard(state[f"{name}_codes"]), local_shard(state[f"{name}_scale"])
    signed = name == "exp_avg"
    return _torchao()[1](codes, scale.view(-1), _levels(signed, codes.device), signed, torch.float32)


@cache
def _levels(signed: bool, device: torch.device) -> Tensor:
    """What the 256 codes stand for, of a block's largest value."""
    from torchao.optim.subclass_8bit import (  # pyright: ignore[reportMissingImports]
        get_qmap_signed,
        get_qmap_unsigned,
    )

    return torch.tensor(get_qmap_signed() if signed else get_qmap_unsigned(), device=device)


@cache
def _torchao() -> tuple[Callable[..., None], type]:
    """AdamW's update of one parameter, and the tensor of codes and scales that it takes."""
    from torchao.optim.adam import single_param_adam  # pyright: ignore[reportMissingImports]
    from torchao.optim.subclass_8bit import OptimState8bit  # pyright: ignore[reportMissingImports]

    return single_param_adam, OptimState8bit
