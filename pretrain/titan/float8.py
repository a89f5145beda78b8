"""torchtitan's float8 linear layers as a setting."""

from __future__ import annotations

import importlib.util

import torch
from torchtitan.config.job_config import Float8Linear, Quantize, QuantizedLinear

from pretrain.model.flavors import build_model, flavor
from pretrain.recipe import PretrainConfig

CONVERTER = "quantize.linear.float8"
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
    from torchtitan.components.quantization import float8  # noqa: F401  (registers the converter)

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


def _refusal() -> str:
    if not torch.cuda.is_available():
        return "float8 products need a GPU of compute capability 8.9 or later, and this machine has none"
    found = torch.cuda.get_device_capability()
    if found < CAPABILITY:
        return f"float8 products need compute capability 8.9 or later, this GPU has {found[0]}.{found[1]}"
    if importlib.util.find_spec("torchao") is None:
        return "torchtitan's Float8Linear is torchao's, which is not installed (pip install torchao)"
    return ""
