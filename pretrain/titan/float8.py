"""torchtitan's float8 linear layers as a setting."""

from __future__ import annotations

import dataclasses
import importlib.util

import torch
from torchtitan.config import JobConfig
from torchtitan.config.job_config import Float8Linear, Quantize, QuantizedLinear
from torchtitan.distributed import ParallelDims
from torchtitan.protocols import model_converter

from pretrain.model.flavors import build_model, flavor
from pretrain.recipe import PretrainConfig

CONVERTER = "padded.quantize.linear.float8"
CAPABILITY = (8, 9)  # Ada and Hopper


def float8_converters(config: PretrainConfig) -> list[str]:
    """Names of torchtitan's converters that the model goes through.

    Raises ValueError in one line where this device, or what is installed, has no float8 products.
    """
    if config.float8 == "none":
        return []
    refusal = _refusal()
    if refusal:
        raise ValueError(f"float8={config.float8}: {refusal}; set float8=none")
    _register()
    return [CONVERTER]


def float8_quantize(config: PretrainConfig) -> Quantize:
    """torchtitan's settings: the recipe, and every part but the blocks left as it is."""
    if config.float8 == "none":
        return Quantize()
    linear = Float8Linear(recipe_name=config.float8, filter_fqns=outside_of_blocks(config.flavor))
    return Quantize(linear=QuantizedLinear(float8=linear))


def outside_of_blocks(name: str) -> list[str]:
    """Beginnings of the names of a flavor's modules that are in no block: embedders, the time path, heads."""
    with torch.device("meta"):
        model = build_model(flavor(name))
    blocks = {id(group) for group in model.block_groups()}
    return [f"{name}." for name, child in model.named_children() if id(child) not in blocks]


def _register() -> None:
    """torchtitan's converter, whose products may be over any number of tokens.

    The gradient of a weight is a sum over tokens, 151 or 32,711 of them. torch._scaled_mm sums over multiples
    of 16 only; torchao adds zeros where `pad_inner_dim` says so, which none of its recipes does.
    """
    from torchtitan.components.quantization.float8 import Float8LinearConverter

    class PaddedFloat8LinearConverter(Float8LinearConverter):
        def __init__(self, job_config: JobConfig, parallel_dims: ParallelDims) -> None:
            super().__init__(job_config, parallel_dims)
            self.config = dataclasses.replace(self.config, pad_inner_dim=True)

    if CONVERTER not in model_converter._registry_model_converter_cls:
        model_converter.register_model_converter(PaddedFloat8LinearConverter, CONVERTER)


def _refusal() -> str:
    if not torch.cuda.is_available():
        return "float8 products need a GPU of compute capability 8.9 or later, and this machine has none"
    found = torch.cuda.get_device_capability()
    if found < CAPABILITY:
        return f"float8 products need compute capability 8.9 or later, this GPU has {found[0]}.{found[1]}"
    if importlib.util.find_spec("torchao") is None:
        return "torchtitan's Float8Linear is torchao's, which is not installed (pip install torchao)"
    return ""
