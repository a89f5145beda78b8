"""Models on disk: a folder with config.json and safetensors; nothing pickled."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from pretrain.config import override
from pretrain.files import strict_json, write_json
from pretrain.model.args import ModelArgs
from pretrain.model.flavors import build_model
from pretrain.model.shard_writer import SHARD_BYTES, ShardWriter, plan_of, write_order, write_tensors
from pretrain.model.shards import InMemory, ShardReader, TensorSource
from pretrain.model.shell import AVTransformer
from pretrain.storage import is_file, is_remote, remove_file, writing
from pretrain.storage_errors import named_errors

CONFIG = "config.json"
WeightsName = Literal["model", "ema"]


@dataclass(frozen=True)
class ModelFolder:
    """Content of a model's config.json."""

    flavor: str
    args: ModelArgs
    facts: dict[str, Any]  # everything else: stage, step, codec id, parents, recipe hash


def write_model(
    folder: Path,
    flavor: str,
    args: ModelArgs,
    weights: Mapping[WeightsName, Mapping[str, Tensor] | TensorSource],
    facts: Mapping[str, Any],
    *,
    keep_dtype: bool = False,
    max_bytes: int = SHARD_BYTES,
) -> str:
    """Write safetensors (one file, or shards and index) per entry of `weights`, then config.json.

    Tensors pass one by one; they become fp32 unless `keep_dtype`. Facts with `ema_is_model` say that the
    average equals the model and is not stored again. Returns `checkpoint_id`: the digest of the EMA weights
    (of the plain ones where there are none), shortened. Files take their places after the last was written;
    an earlier model's config.json is taken away first, so that no mixture looks complete. Raises OSError.
    """
    sources = {
        name: value if isinstance(value, TensorSource) else InMemory(value) for name, value in weights.items()
    }
    if is_remote(folder):
        remove_file(folder / CONFIG)
    with ExitStack() as stack:
        writers: dict[str, ShardWriter] = {}
        for name, source in sources.items():
            plan = plan_of(source, None if keep_dtype else torch.float32)
            writers[name] = stack.enter_context(ShardWriter(folder, name, plan, max_bytes))
        for name, writer in writers.items():
            write_tensors(writer, sources[name], f"tensors of {name} written")
        checkpoint_id = writers["ema" if "ema" in writers else "model"].digest()[:16]
        if not is_remote(folder):
            remove_file(folder / CONFIG)
    content = {**facts, "flavor": flavor, "args": args.as_facts(), "checkpoint_id": checkpoint_id}
    write_json(folder / CONFIG, content, through=writing, indent=1)
    return checkpoint_id


def written_keys(source: TensorSource) -> list[str]:
    """Keys in the order in which write_model reads them; also on non-writing ranks if it is collective."""
    return write_order(plan_of(source, torch.float32))


def read_model_folder(folder: Path) -> ModelFolder:
    """Raises FileNotFoundError or ValueError in one line where the folder is not a model."""
    path = folder / CONFIG
    if not is_file(path):
        raise FileNotFoundError(
            f"{folder}: no config.json; give a model folder such as out/pretrain/stage3/model"
        )
    try:
        with named_errors(path):
            content = strict_json(path.read_text(encoding="utf-8"))
        flavor, args = content.pop("flavor"), content.pop("args")
        if not isinstance(flavor, str) or not isinstance(args, dict):
            raise TypeError(f"flavor {flavor!r}, args {args!r}"[:100])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path}: not a model's config ({error}); export the checkpoint again") from None
    return ModelFolder(flavor, override(ModelArgs(), args, str(path)), content)


def weights_stem(facts: Mapping[str, Any], weights: WeightsName) -> WeightsName:
    """The name of the files that hold these weights: an average that equals the model is stored once."""
    return "model" if facts.get("ema_is_model") else weights


def open_weights(folder: Path, weights: WeightsName, shapes: Mapping[str, torch.Size]) -> ShardReader:
    """A model folder's weights as a reader. Raises ValueError naming missing, extra and misshapen keys."""
    reader = ShardReader(folder, weights_stem(read_model_folder(folder).facts, weights))
    check_keys(shapes, reader.shapes(), str(folder))
    return reader


def load_into(parameters: Mapping[str, Tensor], reader: ShardReader) -> None:
    """Load every tensor into its parameter, sharded or not; a rank holds at most one whole tensor."""
    for key, parameter in parameters.items():
        put(parameter, reader.tensor(key))


def load_model(folder: Path, weights: WeightsName = "ema") -> tuple[AVTransformer, ModelFolder]:
    """The model in eval mode, fp32. Raises ValueError that names missing, extra and misshapen keys."""
    described = read_model_folder(folder)
    with torch.device("meta"):
        model = build_model(described.args)
    reader = open_weights(folder, weights, {key: tensor.shape for key, tensor in model.state_dict().items()})
    model.load_state_dict({key: reader.tensor(key).float() for key in reader.keys()}, assign=True)  # noqa: SIM118
    return model.eval(), described


def check_keys(expected: Mapping[str, torch.Size], found: Mapping[str, torch.Size], where: str) -> None:
    """Raises ValueError that names the first missing, extra and misshapen key."""
    missing, extra = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    unlike = sorted(key for key in expected.keys() & found.keys() if found[key] != expected[key])
    shapes = [f"{key} {tuple(found[key])} for {tuple(expected[key])}" for key in unlike]
    kinds = {"missing": missing, "extra": extra, "misshapen": shapes}
    problems = [f"{kind} {keys[0]} (of {len(keys)})" for kind, keys in kinds.items() if keys]
    if problems:
        raise ValueError(
            f"{where}: weights do not fit the model: {'; '.join(problems)}; is it a checkpoint of another "
            "flavor?"
        )


@torch.no_grad()
def put(parameter: Tensor, whole: Tensor) -> None:
    """Copy a whole tensor into a parameter, sharded or not; each rank takes its shard, no collective."""
    if isinstance(parameter, DTensor):
        local = whole.to(parameter.device, parameter.dtype)
        whole = distribute_tensor(local, parameter.device_mesh, parameter.placements, src_data_rank=None)
    parameter.copy_(whole)


class Gathered(InMemory):
    """TensorSource of sharded parameters: whole tensors on the CPU; a collective of all ranks."""

    def tensor(self, key: str) -> Tensor:
        value = self.tensors[key].detach()
        return (value.full_tensor() if isinstance(value, DTensor) else value).cpu()
