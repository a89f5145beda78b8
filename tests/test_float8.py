"""float8 linear layers: what would be converted, and the one line where the device cannot."""

from __future__ import annotations

import dataclasses
from unittest import mock

import pytest
import torch
from titan_ranks import run_ranks
from titan_world import config, stage_run, write_latents
from torch import nn
from torchtitan.components.quantization.utils import module_filter_fn

from pretrain.model.flavors import build_model, flavor
from pretrain.recipe import PretrainConfig, recipe_hash
from pretrain.titan import float8
from pretrain.titan.float8 import float8_converters, float8_quantize, outside_of_blocks


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


@pytest.mark.distributed
def test_a_training_on_a_cpu_is_refused_in_one_line(tmp_path):
    run = stage_run(tmp_path / "run", write_latents(tmp_path / "latents"), config(float8="rowwise"))
    assert run_ranks(run.save()) == [2]
    line = (run.out / "error.txt.0").read_text()
    assert line.startswith("float8=rowwise: ") and line.count("\n") == 1
