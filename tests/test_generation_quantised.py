"""Clips of a model that is held in 8 or 4 bits."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from generation_world import QUICK, mixed_rows, write_model_and_codec, write_prompts
from safetensors.torch import load_file

from pretrain.generate import generate
from pretrain.generation.config import GenerateConfig
from pretrain.generation.held import base_of, weight_bytes
from pretrain.generation.maker import ClipMaker
from pretrain.generation.ranks import on_ranks
from pretrain.generation.room import advice
from pretrain.media.read import read_metadata
from pretrain.model.flavors import flavor
from pretrain.model.plan_sizes import base_sizes
from pretrain.model.quantised import QuantisedLinear, held_bytes
from pretrain.model.shell import AVTransformer

PLAIN = dataclasses.replace(QUICK, bf16=True)
# of the latents' norm, after all steps, against the same model in bf16; measured at half of these
ERRORS = {"int8": 0.03, "fp8": 0.1, "nf4": 0.3}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_model_and_codec(tmp_path_factory.mktemp("world"))
    write_prompts(folder / "p.jsonl", mixed_rows(3))
    make(folder, folder / "plain", PLAIN)
    return folder


def make(world: Path, out: Path, config: GenerateConfig, **more) -> dict:
    return generate(config, world / "model", world / "codec", world / "p.jsonl", out, **more)


def latents_of(folder: Path) -> dict[str, torch.Tensor]:
    files = sorted(folder.glob("*.safetensors"))
    assert files
    return {f"{file.stem}/{name}": value for file in files for name, value in load_file(file).items()}


@pytest.mark.parametrize("kind", ["int8", "fp8", "nf4"])
def test_clips_are_near_those_of_the_plain_model_and_say_what_made_them(world, tmp_path, kind):
    config = dataclasses.replace(PLAIN, quantisation=kind)
    make(world, tmp_path / "out", config)
    plain, found = latents_of(world / "plain"), latents_of(tmp_path / "out")
    assert plain.keys() == found.keys()
    away = [float((found[name] - plain[name]).norm() / plain[name].norm()) for name in plain]
    assert 0 < max(away) < ERRORS[kind], away
    assert read_metadata(next((tmp_path / "out").glob("*.mp4")))["quantisation"] == kind


def test_the_maps_are_held_as_bytes_and_the_size_is_the_plans(world):
    config = dataclasses.replace(PLAIN, quantisation="int8")
    model = ClipMaker.load(world / "model", world / "codec", config).model
    assert isinstance(model, AVTransformer)
    assert any(isinstance(layer, QuantisedLinear) for layer in model.modules())
    assert held_bytes(model) == weight_bytes(model.args, config)
    assert weight_bytes(model.args, PLAIN) == base_sizes(model.args, "bf16").total


def test_int8_takes_at_most_055_of_bf16_at_full_size():
    args, config = flavor("nava_6b"), GenerateConfig(quantisation="int8")
    assert weight_bytes(args, config) <= 0.55 * weight_bytes(args, GenerateConfig())
    assert base_of(GenerateConfig(bf16=False)) == "fp32"
    assert "generate.quantisation=int8" in advice(args, GenerateConfig(), 0, None, 2**31, 2**33)
    assert "generate.quantisation" not in advice(args, config, 0, None, 2**31, 2**33)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="quantisation must be int8, fp8, nf4 or empty, got 'int4'"):
        GenerateConfig(quantisation="int4")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="quantisation=int8 computes in bf16, and bf16 is false"):
        GenerateConfig(quantisation="int8", bf16=False)


def test_clips_of_the_plain_model_are_moved_aside_and_not_mixed_in(world, tmp_path, capsys):
    shutil.copytree(world / "plain", tmp_path / "out")
    make(world, tmp_path / "out", dataclasses.replace(PLAIN, quantisation="int8"), aside=True)
    assert "quantisation" in capsys.readouterr().out
    kept = latents_of(next((tmp_path / ".trash").iterdir()))
    plain = latents_of(world / "plain")
    assert all(torch.equal(kept[name], plain[name]) for name in plain)


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize(("shard", "context"), [(True, 1), (False, 2)])
def test_ranks_hold_one_quantised_model_together(world, tmp_path, shard, context):
    config = dataclasses.replace(PLAIN, quantisation="int8")
    make(world, tmp_path / "alone", config)
    make(world, tmp_path / "ranks", config, spread=on_ranks(2, shard=shard, context=context))
    alone, ranks = latents_of(tmp_path / "alone"), latents_of(tmp_path / "ranks")
    for name, latents in alone.items():
        assert float((ranks[name] - latents).norm() / latents.norm()) < 0.01, name
    assert json.loads((tmp_path / "ranks" / "index.jsonl").read_text().splitlines()[0])
