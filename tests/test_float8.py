"""float8 linear layers: what would be converted, and the one line where the device cannot."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any, get_args
from unittest import mock

import pytest
import torch
from pretend_gpu import device_guard
from titan_ranks import run_ranks
from titan_world import config, stage_run, write_latents
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from pretrain.model.flavors import build_model, flavor
from pretrain.recipe import Float8Recipe, PretrainConfig, recipe_hash
from pretrain.titan import float8
from pretrain.titan.float8 import float8_converters, float8_quantize, outside_of_blocks
from pretrain.titan.job_config import job_config
from pretrain.titan.train_spec import ParallelDims

from torchtitan.components.quantization.utils import module_filter_fn  # isort: skip (after pretrain.titan)


@pytest.mark.parametrize("name", ["mini", "debug", "debug_dual_tower", "debug_unified", "nava_6b_published"])
def test_the_linear_layers_of_the_blocks_are_converted_and_no_others(name):
    with torch.device("meta"):
        model = build_model(flavor(name))
    within = {id(part) for group in model.block_groups() for part in group.modules()}
    kept = outside_of_blocks(name)
    found = [(path, part) for path, part in model.named_modules() if module_filter_fn(part, path, kept)]
    assert found and all(id(part) in within for _, part in found)
    wanted = [part for part in model.modules() if isinstance(part, nn.Linear) and id(part) in within]
    assert len(found) == sum(all(size % 16 == 0 for size in part.weight.shape) for part in wanted)


def test_none_is_nothing_and_leaves_the_hash_of_a_recipe():
    assert float8_converters(PretrainConfig()) == []
    assert float8_quantize(PretrainConfig()).linear.float8.recipe_name is None
    changed = dataclasses.replace(PretrainConfig(), float8="rowwise")
    assert recipe_hash(changed, "stage1") != recipe_hash(PretrainConfig(), "stage1")
    assert float8_quantize(changed).linear.float8.recipe_name == "rowwise"
    with pytest.raises(ValueError, match="float8: unknown value"):
        PretrainConfig(float8="rowwsie")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "capability, installed, said",
    [
        ((8, 0), True, "this GPU has 8.0"),
        ((9, 0), False, "torchao's, which is not installed"),
        ((9, 0), True, ""),
    ],
)
def test_a_gpu_that_cannot_and_a_missing_package_are_one_line(capability, installed, said):
    recipe = PretrainConfig(float8="tensorwise")
    with (
        mock.patch("torch.cuda.is_available", return_value=True),
        mock.patch("torch.cuda.get_device_capability", return_value=capability),
        mock.patch.object(float8.importlib.util, "find_spec", return_value=object() if installed else None),
    ):
        if said:
            with pytest.raises(
                ValueError, match=rf"^float8=tensorwise: [^\n]*{said}[^\n]*; set float8=none$"
            ):
                float8_converters(recipe)
        else:
            assert float8_converters(recipe) == [float8.CONVERTER]


def converter_of(recipe: Float8Recipe, tmp_path) -> Any:
    """What torchtitan builds for a recipe on a GPU that has the products."""
    name = "torchtitan.components.quantization.float8.has_cuda_capability"
    with (
        mock.patch("torch.cuda.is_available", return_value=True),
        mock.patch("torch.cuda.get_device_capability", return_value=(9, 0)),
        mock.patch(name, return_value=True),
    ):
        job = job_config(PretrainConfig(flavor="nava_6b", float8=recipe), "stage1", tmp_path, 1)
        (name,) = job.model.converters
        sizes = ParallelDims(1, -1, 1, 1, 1, 1, 1, world_size=1)
        return float8.model_converter._registry_model_converter_cls[name](job, sizes)


def products(config: Any, tokens: int, width: int, outputs: int) -> list[torch.Size]:
    """Shapes of a converted layer's output and the gradients of its input and weight, by torch's checks of
    what a GPU multiplies; without the autograd engine, which runs on no pretended device."""
    from torchao.float8.float8_linear import (  # pyright: ignore[reportMissingImports]
        Float8Linear,
        matmul_with_hp_or_float8_args,
    )

    mode = FakeTensorMode()

    def on_gpu(*shape: int) -> torch.Tensor:
        return FakeTensor(
            mode, torch.empty(shape, dtype=torch.bfloat16, device="meta"), torch.device("cuda", 0)
        )

    given, weight, gradient = on_gpu(1, tokens, width), on_gpu(outputs, width), on_gpu(1, tokens, outputs)
    with torch.device("meta"):
        layer = Float8Linear.from_float(nn.Linear(width, outputs), config=config)
    context = SimpleNamespace()
    context.save_for_backward = lambda *tensors: setattr(context, "saved_tensors", tensors)
    with device_guard(), mode, torch.no_grad():
        node = matmul_with_hp_or_float8_args
        output = node.forward(context, given, weight.t(), layer.linear_mm_config, config)
        found = node.backward(context, gradient)
    return [output.shape, *(each.shape for each in found if each is not None)]


@pytest.mark.parametrize("recipe", sorted({*get_args(Float8Recipe)} - {"none"}))
def test_all_three_products_of_a_layer_take_any_number_of_tokens(recipe, tmp_path):
    """A sound of 151 tokens, and 720p with its sound of 32,711, none of them a multiple of 16."""
    pytest.importorskip("torchao", reason="pip install 'torchao>=0.18,<0.19'")
    args, converter = flavor("nava_6b"), converter_of(recipe, tmp_path)
    for tokens in (151, 32_711):
        for width, outputs in ((args.width, args.ffn_width), (args.ffn_width, args.width)):
            assert products(converter.config, tokens, width, outputs) == [
                (1, tokens, outputs),
                (1, tokens, width),
                (width, outputs),
            ]
    if recipe != "rowwise_with_gw_hp":  # its gradients of weights are no float8 products
        bare = dataclasses.replace(converter.config, pad_inner_dim=False)
        with pytest.raises(RuntimeError, match="divisible by 16"):
            products(bare, 151, args.width, args.ffn_width)


@pytest.mark.distributed
def test_a_training_on_a_cpu_is_refused_in_one_line(tmp_path):
    run = stage_run(tmp_path / "run", write_latents(tmp_path / "latents"), config(float8="rowwise"))
    assert run_ranks(run.save()) == [2]
    line = (run.out / "error.txt.0").read_text()
    assert line.startswith("float8=rowwise: ") and line.count("\n") == 1
