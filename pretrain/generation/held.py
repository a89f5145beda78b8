"""What a model's weights are held in while it generates."""

from __future__ import annotations

import torch

from pretrain.generation.config import Placement
from pretrain.model.args import ModelArgs
from pretrain.model.plan_sizes import Base, base_sizes
from pretrain.model.quantised import quantise_base
from pretrain.model.shell import AVTransformer
from pretrain.sampling import lower_precision


def base_of(config: Placement) -> Base:
    """fp32, bf16, or the blocks' maps as `quantisation` names and the rest in bf16."""
    return config.quantisation or ("bf16" if config.bf16 else "fp32")


def weight_bytes(args: ModelArgs, config: Placement) -> int:
    """Bytes of the weights as they are held; the time path is fp32 in every case."""
    return base_sizes(args, base_of(config)).total


def quantised(model: AVTransformer, config: Placement) -> AVTransformer:
    """The fp32 model, its maps quantised in place where the config says so; before it is sharded."""
    return quantise_base(model, config.quantisation) if config.quantisation else model


def lowered(model: AVTransformer, config: Placement) -> AVTransformer:
    """The fp32 model in the precision it is held in, in place."""
    if config.quantisation:
        return quantised(model, config)
    return lower_precision(model, torch.bfloat16) if config.bf16 else model
