"""Writes a model folder and its codec as a folder that diffusers' `DiffusionPipeline` loads."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from pretrain.codecs.load import load_codecs
from pretrain.config import to_json
from pretrain.convert.account import sizes_of
from pretrain.files import read_json, write_json
from pretrain.generation.config import GenerateConfig
from pretrain.generation.maker import check_fit
from pretrain.model.checkpoint import WeightsName, open_weights, read_model_folder
from pretrain.model.shard_writer import SHARD_BYTES, ShardWriter, plan_of, write_tensors
from pretrain.model.shards import ShardReader
from pretrain.owned import MARKER, owned_folder

COMMAND = "export diffusers"  # whose folders these are
WEIGHTS = "diffusion_pytorch_model"
IMPORTED = "pretrain.generation.diffusers_pipeline"
_LOADER = '''"""Loaded by diffusers with trust_remote_code=True; needs NAVA Align installed."""

try:
    from {module} import {name}
except ImportError as error:
    raise ImportError(f"install NAVA Align, which runs this folder ({{error}})") from error

__all__ = ["{name}"]
'''
_CARD = """---
library_name: diffusers
---
Written by `nava export diffusers` from the model {checkpoint} ({flavor}, weights {weights}).

```python
import torch
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("THIS FOLDER", trust_remote_code=True, dtype=torch.bfloat16)
clip = pipe("A man says: <S>hello<E>.", references=["voice.wav"], seed=0)
```

NAVA Align has to be installed.
"""


@dataclass(frozen=True, kw_only=True)
class PipelineExport:
    """weights: of the model folder; dtype: of the stored tensors, "same" as they are; max_bytes: of a shard.

    Raises ValueError for impossible values.
    """

    weights: WeightsName = "ema"
    dtype: Literal["same", "fp32", "bf16"] = "same"
    max_bytes: int = SHARD_BYTES

    def __post_init__(self) -> None:
        if self.weights not in ("ema", "model"):
            raise ValueError(f"weights must be ema or model, got {self.weights!r}")
        if self.dtype not in ("same", "fp32", "bf16"):
            raise ValueError(f"dtype must be same, fp32 or bf16, got {self.dtype!r}")
        if self.max_bytes < 1:
            raise ValueError(f"max_bytes must be positive, got {self.max_bytes}")


class Prefixed:
    """A TensorSource under keys with a prefix, that of the component's `network`."""

    def __init__(self, reader: ShardReader, prefix: str) -> None:
        self.reader, self.prefix = reader, prefix

    def keys(self) -> Collection[str]:
        return [f"{self.prefix}{key}" for key in self.reader.keys()]  # noqa: SIM118

    def shape(self, key: str) -> torch.Size:
        return self.reader.shape(key.removeprefix(self.prefix))

    def dtype(self, key: str) -> torch.dtype:
        return self.reader.dtype(key.removeprefix(self.prefix))

    def tensor(self, key: str) -> Tensor:
        return self.reader.tensor(key.removeprefix(self.prefix))


def export_pipeline(
    config: PipelineExport, model: Path, codec: Path, settings: GenerateConfig, to: Path
) -> dict[str, Any]:
    """`{checkpoint_id, tensors, files: {name: bytes}, codec_weights: [paths outside]}` of what was written.

    settings: of a call that does not say. The folder is whole or not there; one that this command made is
    replaced, and goes to the trash. Raises FileNotFoundError, ValueError or OSError in one line.
    """
    if settings.quantisation:
        raise ValueError(
            f"generate.quantisation={settings.quantisation}: a pipeline computes in the dtype that it is "
            "loaded with; leave it out, or use `nava generate`"
        )
    described, codecs = read_model_folder(model), load_codecs(codec)
    check_fit(described, model, codecs, codec)
    source = Prefixed(open_weights(model, config.weights, sizes_of(described.args).shapes), "network.")
    dtype = {"same": None, "fp32": torch.float32, "bf16": torch.bfloat16}[config.dtype]
    checkpoint = str(described.facts.get("checkpoint_id", ""))
    with owned_folder(to, COMMAND) as folder:
        inner = folder / "transformer"
        inner.mkdir()
        with ShardWriter(
            inner, WEIGHTS, plan_of(source, dtype), config.max_bytes, {"format": "pt"}
        ) as writer:
            write_tensors(writer, source, "tensors exported")
        library = version("diffusers")
        content = {
            "_class_name": "NavaTransformerModel",
            "_diffusers_version": library,
            "args": described.args.as_facts(),
            "flavor": described.flavor,
            "checkpoint_id": checkpoint,
        }
        write_json(inner / "config.json", content)
        shutil.copytree(codec, folder / "codec", ignore=shutil.ignore_patterns(MARKER))
        index = {
            "_class_name": ["pipeline", "NavaPipeline"],
            "_diffusers_version": library,
            "transformer": ["nava_transformer", "NavaTransformerModel"],
            "codec": ["nava_codec", "NavaCodec"],
            "settings": to_json(settings),
        }
        write_json(folder / "model_index.json", index)
        _write_loaders(folder)
        card = _CARD.format(checkpoint=checkpoint, flavor=described.flavor, weights=config.weights)
        (folder / "README.md").write_text(card, encoding="utf-8")
        files = {name: (inner / name).stat().st_size for name in writer.files}
    return {
        "checkpoint_id": checkpoint,
        "tensors": len(source.keys()),
        "files": files,
        "codec_weights": _elsewhere(codec),
    }


def _write_loaders(folder: Path) -> None:
    for path, name in (
        ("pipeline.py", "NavaPipeline"),
        ("transformer/nava_transformer.py", "NavaTransformerModel"),
        ("codec/nava_codec.py", "NavaCodec"),
    ):
        (folder / path).write_text(_LOADER.format(module=IMPORTED, name=name), encoding="utf-8")


def _elsewhere(codec: Path) -> Sequence[str]:
    """Folders that a codec of published weights refers to; they are not copied."""
    config = read_json(codec / "config.json", "run `nava codec` again")
    parts = config.get("parts", {}) if config.get("kind") == "published" else {}
    return sorted({str(part["path"]) for part in parts.values()})
