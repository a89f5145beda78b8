"""Exports a model folder to a published layout, tensor by tensor; the inverse of an import, bit for bit."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from pretrain.config import nearest
from pretrain.convert.account import sizes_of, their_shapes
from pretrain.convert.layouts import COMPUTED, AudioSuffix, Rule, WeightLayout, rules
from pretrain.files import write_json
from pretrain.model.args import ModelArgs
from pretrain.model.checkpoint import CONFIG, ModelFolder, WeightsName, open_weights, read_model_folder
from pretrain.model.flavors import FLAVORS
from pretrain.model.shard_writer import SHARD_BYTES, ShardWriter, plan_of, write_tensors
from pretrain.model.shards import ShardReader, files_of
from pretrain.storage import holds_work, is_file, remove_leftovers, writing

WrittenAs = Literal["same", "fp32", "bf16"]
_STEMS: dict[WeightLayout, str] = {
    "nava": "NAVA",
    "wan": "diffusion_pytorch_model",
    "wan_diffusers": "diffusion_pytorch_model",
}
_DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
# in an import's config.json
_STORED_AS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Options of an export. Raises ValueError on unknown names."""

    layout: WeightLayout
    weights: WeightsName = "ema"
    written_as: WrittenAs = "same"  # as it was imported; for a trained model as it is stored
    # of a shard; 0: one file for nava, as published, and the usual size of a shard for the others
    max_bytes: int = 0

    def __post_init__(self) -> None:
        if self.layout not in _STEMS:
            raise ValueError(f"unknown layout {self.layout!r}; {nearest(self.layout, _STEMS)}")
        if self.written_as not in ("same", *_DTYPES):
            raise ValueError(
                f"unknown dtype {self.written_as!r}; {nearest(self.written_as, ('same', *_DTYPES))}"
            )
        if self.weights not in ("ema", "model"):
            raise ValueError(f"unknown weights {self.weights!r}; {nearest(self.weights, ('ema', 'model'))}")


class Theirs:
    """A TensorSource in a published layout over a model folder of ours."""

    def __init__(
        self,
        reader: ShardReader,
        some: Collection[Rule],
        shapes: Mapping[str, torch.Size],
        dtypes: Mapping[str, torch.dtype],
    ):
        back = [rule for rule in some if not rule.copied]
        self.reader, self.shapes, self.dtypes = reader, shapes, dtypes
        self.place = {key: (rule, row) for rule in back for row, key in enumerate(rule.theirs)}

    def keys(self) -> Collection[str]:
        return self.place.keys()

    def shape(self, key: str) -> torch.Size:
        return self.shapes[key]

    def dtype(self, key: str) -> torch.dtype:
        return self.dtypes.get(key) or self.reader.dtype(self.place[key][0].ours)

    def tensor(self, key: str) -> Tensor:
        rule, row = self.place[key]
        whole = self.reader.tensor(rule.ours)
        size = self.shapes[key][0]
        return (whole if len(rule.theirs) == 1 else whole[row * size : (row + 1) * size]).to(self.dtype(key))


def run_export(config: ExportConfig, model: Path, to: Path) -> dict[str, Any]:
    """Write a model folder in a published layout to a folder or .safetensors file; returns a summary.

    Raises FileNotFoundError, ValueError or OSError in one line; nothing is left where it fails.
    """
    described = read_model_folder(model)
    check_expressible(described, config.layout, model)
    source = _source(described, model) if described.facts.get("source") else {}
    sizes = sizes_of(described.args)
    some = rules(config.layout, described.args, sizes.shapes, source.get("audio_suffix", "leaf"))
    theirs = Theirs(
        open_weights(model, config.weights, sizes.shapes),
        some,
        their_shapes(some, sizes),
        _dtypes(source, config),
    )
    single = to.name.endswith(".safetensors")
    folder, stem = (
        (to.parent, to.name.removesuffix(".safetensors")) if single else (to, _STEMS[config.layout])
    )
    _check_destination(to, single)
    remove_leftovers(folder)
    shard = config.max_bytes or (2**62 if single or config.layout == "nava" else SHARD_BYTES)
    with ShardWriter(folder, stem, plan_of(theirs), shard, {"format": "pt"}) as writer:
        write_tensors(writer, theirs, "tensors exported")
    if config.layout == "wan_diffusers" and not single:
        write_json(folder / "config.json", diffusers_config(described.args), through=writing)
    left = sorted(rule.ours for rule in some if not rule.theirs)
    facts = {
        "layout": config.layout,
        "checkpoint_id": described.facts.get("checkpoint_id", ""),
        "weights": config.weights,
    }
    return {**facts, "sha256": writer.files, "tensors": len(theirs.keys()), "left_out": left}


def check_expressible(described: ModelFolder, layout: WeightLayout, model: Path) -> None:
    """Raises ValueError where the layout's own code would compute something else than this model."""
    for field, value in COMPUTED[layout].items():
        if (found := getattr(described.args, field)) != value:
            twin = f"{described.flavor}_published"
            advice = f"train with pretrain.flavor={twin}, or " if twin in FLAVORS else ""
            raise ValueError(
                f"{model}: {field} is {found}, the code that reads the layout {layout} has {value} and would "
                f"compute something else; {advice}use `nava export diffusers`, which keeps it"
            )


def diffusers_config(args: ModelArgs) -> dict[str, Any]:
    """config.json of diffusers' WanTransformer3DModel for the video side of a model."""
    return {
        "_class_name": "WanTransformer3DModel",
        "patch_size": [1, args.patch_size, args.patch_size],
        "num_attention_heads": args.num_heads,
        "attention_head_dim": args.head_dim,
        "in_channels": args.video_channels,
        "out_channels": args.video_channels,
        "text_dim": args.text_width,
        "freq_dim": args.time_frequencies,
        "ffn_dim": args.ffn_width,
        "num_layers": args.num_alignment_blocks + args.num_fusion_blocks,
        "cross_attn_norm": True,
        "qk_norm": "rms_norm_across_heads",
        "eps": args.eps,
        "rope_max_seq_len": 1024,
        "image_dim": None,
        "added_kv_proj_dim": None,
        "pos_embed_seq_len": None,
    }


def _source(described: ModelFolder, model: Path) -> Mapping[str, Any]:
    """Layout and dtypes that an import recorded. Raises ValueError for anything else."""
    source = described.facts["source"]
    try:
        others = {str(key): _STORED_AS[name] for key, name in source["other_dtypes"].items()}
        layout, suffix, usual = source["layout"], source["audio_suffix"], _STORED_AS[source["dtype"]]
        if layout not in _STEMS or suffix not in get_args(AudioSuffix):
            raise ValueError(f"layout {layout!r}, audio_suffix {suffix!r}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{model / CONFIG}: its `source` is not an import's ({error!r}); import the checkpoint again"
        ) from None
    return {"layout": layout, "audio_suffix": suffix, "dtype": usual, "other_dtypes": others}


def _dtypes(source: Mapping[str, Any], config: ExportConfig) -> Mapping[str, torch.dtype]:
    """Their dtype by key; empty = as stored."""
    if config.written_as != "same":
        return _Always(_DTYPES[config.written_as])
    if source.get("layout") != config.layout:
        return {}
    return _Always(source["dtype"], source["other_dtypes"])


class _Always(dict[str, torch.dtype]):
    """One dtype for every key but the exceptions."""

    def __init__(self, dtype: torch.dtype, others: Mapping[str, torch.dtype] | None = None) -> None:
        super().__init__(others or {})
        self.usual = dtype

    def get(self, key: str, default: Any = None) -> Any:  # type: ignore[override]
        return super().get(key, self.usual)


def _check_destination(to: Path, single: bool) -> None:
    if single and (existing := files_of(to.parent, to.name.removesuffix(".safetensors"))):
        raise ValueError(f"{existing[0]}: exists; remove it or give another file")
    if not single and (is_file(to) or holds_work(to)):
        raise ValueError(f"{to}: not empty; give another folder, or a file that ends in .safetensors")
