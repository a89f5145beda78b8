"""Tiny published checkpoints on disk, and models imported from them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from nava_rederived import Sizes, random_checkpoint
from safetensors.torch import load_file, save_file
from torch import Tensor

from pretrain.convert.importing import ImportConfig, plan_import, run_import
from pretrain.model.args import ModelArgs
from pretrain.model.checkpoint import load_model
from pretrain.model.flavors import FLAVORS
from pretrain.model.shell import AVTransformer

TINY = ModelArgs(
    width=32,
    num_heads=2,
    ffn_width=48,
    num_alignment_blocks=2,
    num_fusion_blocks=3,
    text_width=20,
    time_frequencies=16,
    audio_embed_hidden=40,
    attend_text_padding=True,
    dropped_text_is_zeros=True,
)
NAME = "tiny_published"


@contextmanager
def flavor_of(args: ModelArgs, name: str = NAME) -> Iterator[str]:
    """A flavor of these sizes while inside."""
    with mock.patch.dict(FLAVORS, {name: args}):
        yield name


def sizes_for(args: ModelArgs) -> Sizes:
    """The oracle's sizes of a model of ours."""
    return Sizes(
        width=args.width,
        num_heads=args.num_heads,
        ffn_width=args.ffn_width,
        num_double=args.num_alignment_blocks,
        num_single=args.num_fusion_blocks,
        text_width=args.text_width,
        audio_hidden=args.audio_embed_hidden,
        time_frequencies=args.time_frequencies,
        audio_kernel=args.audio_embed_kernel,
        split_norm_ffn=args.split_ffn_and_norms,
        speaker_eps=1e-5,
    )


def nava_tensors(args: ModelArgs = TINY, seed: int = 1, suffix: Any = "leaf") -> dict[str, Tensor]:
    return {
        key: value.contiguous() for key, value in random_checkpoint(sizes_for(args), seed, suffix).items()
    }


def write_checkpoint(
    folder: Path, tensors: Mapping[str, Tensor], shards: int = 1, stem: str = "weights"
) -> Path:
    """By the safetensors library: one file, or shards with an index; returns what to import."""
    folder.mkdir(parents=True, exist_ok=True)
    if shards == 1:
        save_file(dict(tensors), folder / f"{stem}.safetensors")
        return folder / f"{stem}.safetensors"
    names = [f"{stem}-{number + 1:05d}-of-{shards:05d}.safetensors" for number in range(shards)]
    places = {key: names[index % shards] for index, key in enumerate(tensors)}
    for name in names:
        save_file({key: value for key, value in tensors.items() if places[key] == name}, folder / name)
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


def imported(
    path: Path, to: Path, args: ModelArgs = TINY, kind: str = "nava", **given: object
) -> AVTransformer:
    """The model after an import, fp32, with `args` as they are (also where a published model would have
    others)."""
    with flavor_of(replace(args, attend_text_padding=True, dropped_text_is_zeros=True)) as name:
        run_import(plan_import(ImportConfig(kind=kind, flavor=name, **given), path), to)  # type: ignore[arg-type]
    model = load_model(to)[0]
    model.args = args
    return model


def read_all(path: Path) -> dict[str, Tensor]:
    """Every tensor of a file or of a folder's shards, by the safetensors library."""
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    return {key: value for file in files for key, value in load_file(file).items()}


def wan_model(args: ModelArgs = TINY, seed: int = 2):
    """diffusers' Wan2.2 transformer of the same video side, random everywhere."""
    from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

    torch.manual_seed(seed)
    model = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=args.num_heads,
        attention_head_dim=args.head_dim,
        in_channels=48,
        out_channels=48,
        text_dim=args.text_width,
        freq_dim=args.time_frequencies,
        ffn_dim=args.ffn_width,
        num_layers=args.num_alignment_blocks + args.num_fusion_blocks,
        cross_attn_norm=True,
        rope_max_seq_len=64,
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(
                0.3
                * torch.randn_like(parameter)
                * (parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 1.0)
            )
    return model.eval()
