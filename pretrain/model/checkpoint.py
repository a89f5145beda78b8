"""Models on disk: a folder with config.json and safetensors; nothing pickled."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pretrain.config import override
from pretrain.files import replacing, save_tensors
from pretrain.model.args import ModelArgs
from pretrain.model.paradigms import build_model
from pretrain.model.shell import AVTransformer

WeightsName = Literal["model", "ema"]


@dataclass(frozen=True)
class ModelFolder:
    """What config.json says of a model."""

    flavor: str
    args: ModelArgs
    facts: dict[str, Any]  # everything else: stage, step, codec id, parents, recipe hash


def write_model(
    folder: Path, flavor: str, args: ModelArgs, weights: Mapping[WeightsName, Mapping[str, Tensor]], facts: Mapping[str, Any]
) -> str:
    """Write one fp32 safetensors file per entry of `weights`, then config.json, which marks the folder complete.

    Returns `checkpoint_id`: the sha256 of the EMA weights (of the plain ones where there are none), shortened. Every file is
    written whole or not at all; an earlier model's config.json is taken away first, so that no mixture looks complete.
    """
    named: WeightsName = "ema" if "ema" in weights else "model"
    with ExitStack() as stack:  # all files take their places after the last one was written
        written: dict[WeightsName, Path] = {name: stack.enter_context(replacing(folder / f"{name}.safetensors")) for name in weights}
        for name, path in written.items():
            save_tensors({key: tensor.detach().float().contiguous().cpu() for key, tensor in weights[name].items()}, path)
        with written[named].open("rb") as file:
            checkpoint_id = hashlib.file_digest(file, "sha256").hexdigest()[:16]
        (folder / "config.json").unlink(missing_ok=True)
    content = {**facts, "flavor": flavor, "args": asdict(args), "checkpoint_id": checkpoint_id}
    with replacing(folder / "config.json") as path:
        path.write_text(json.dumps(content, indent=1) + "\n")
    return checkpoint_id


def read_model_folder(folder: Path) -> ModelFolder:
    """Raises FileNotFoundError or ValueError in one line where the folder is not a model."""
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: no config.json; give a model folder such as out/pretrain/stage3/model")
    try:
        content = json.loads(path.read_text())
        flavor, args = content.pop("flavor"), content.pop("args")
    except (json.JSONDecodeError, KeyError) as error:
        raise ValueError(f"{path}: not a model's config ({error}); export the checkpoint again") from None
    return ModelFolder(flavor, override(ModelArgs(), args, str(path)), content)


def read_weights(folder: Path, weights: WeightsName = "ema") -> dict[str, Tensor]:
    """Named tensors of a model folder. Raises FileNotFoundError or ValueError (truncated or not safetensors)."""
    path = folder / f"{weights}.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: missing; the folder holds {sorted(p.name for p in folder.glob('*.safetensors'))}")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: not a whole safetensors file ({error}); copy or export it again") from None


def load_model(folder: Path, weights: WeightsName = "ema") -> tuple[AVTransformer, ModelFolder]:
    """The model in eval mode, fp32. Raises ValueError that names missing, extra and misshapen keys."""
    described = read_model_folder(folder)
    tensors = read_weights(folder, weights)
    with torch.device("meta"):
        model = build_model(described.args)
    check_keys({key: tensor.shape for key, tensor in model.state_dict().items()}, tensors, str(folder))
    model.load_state_dict(tensors, assign=True)
    return model.eval(), described


def check_keys(expected: dict[str, torch.Size], found: dict[str, Tensor], where: str) -> None:
    """Raises ValueError that names the first missing, extra and misshapen key."""
    missing, extra = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    unlike = sorted(key for key in expected.keys() & found.keys() if found[key].shape != expected[key])
    shapes = [f"{key} {tuple(found[key].shape)} for {tuple(expected[key])}" for key in unlike]
    kinds = {"missing": missing, "extra": extra, "misshapen": shapes}
    problems = [f"{kind} {keys[0]} (of {len(keys)})" for kind, keys in kinds.items() if keys]
    if problems:
        raise ValueError(f"{where}: weights do not fit the model: {'; '.join(problems)}; is it a checkpoint of another flavor?")
