"""LoRA adapters on disk: a standard PEFT folder plus adapter.json with our metadata.

Any PEFT program can load the folder onto the base model; here it is loaded, or merged into a full model
folder, only onto the very base, rank and layers it was trained on.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from finetune.lora import (
    LoraConfig,
    adapter_parameters,
    adapter_shapes,
    adapters_in,
    inject,
    peft_config,
    target_names,
)
from pretrain.config import override
from pretrain.files import read_json, replacing, save_tensors, sha256_of, write_json
from pretrain.model.checkpoint import (
    ModelFolder,
    WeightsName,
    check_keys,
    load_model,
    open_weights,
    put,
    read_model_folder,
    weights_stem,
    write_model,
)
from pretrain.model.flavors import build_model
from pretrain.model.shards import ShardReader
from pretrain.model.shell import AVTransformer

WEIGHTS, SIDECAR = "adapter_model.safetensors", "adapter.json"
_PEFT_PREFIX = "base_model.model."


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """Contents of adapter.json."""

    flavor: str
    base_id: str  # checkpoint_id of the model folder it was trained on
    base_weights: WeightsName = "ema"  # which of that folder's weights
    config: LoraConfig = field(default_factory=LoraConfig)
    facts: Mapping[str, Any] = field(default_factory=dict)  # everything else: parents, step, recipe hash
    adapter_id: str = ""  # start of the sha256 of the weights; set by save_adapter


def gathered(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Full copies on the CPU of an adapter's parameters (LoraPolicy.adapters).

    Collective: all ranks must call it.
    """
    whole = {
        name: value.full_tensor() if isinstance(value, DTensor) else value
        for name, value in parameters.items()
    }
    return {name: value.detach().cpu().clone() for name, value in whole.items()}


def save_adapter(folder: Path, tensors: Mapping[str, Tensor], adapter: Adapter) -> str:
    """Write full tensors (`gathered`) as a folder, on one rank; returns the adapter's id.

    adapter.json is removed first and written last, so that it marks a complete folder. Raises OSError on a
    failed write.
    """
    layers = sorted({name.rpartition(".lora_")[0] for name in tensors})
    described = peft_config(adapter.config, layers)
    described.inference_mode, described.base_model_name_or_path = True, adapter.base_id
    standard = {
        **described.to_dict(),
        "target_modules": layers,
    }  # PEFT keeps a set, whose order would differ between runs
    with replacing(folder / WEIGHTS) as path:
        save_tensors({f"{_PEFT_PREFIX}{name}": tensor.contiguous() for name, tensor in tensors.items()}, path)
        adapter_id = sha256_of(path)[:16]
        (folder / SIDECAR).unlink(missing_ok=True)
    own = dataclasses.asdict(dataclasses.replace(adapter, adapter_id=adapter_id))
    for name, content in (("adapter_config.json", standard), (SIDECAR, own)):
        write_json(folder / name, content, indent=1)
    return adapter_id


def read_adapter(folder: Path) -> tuple[Adapter, dict[str, Tensor]]:
    """Read what save_adapter wrote.

    Raises FileNotFoundError or ValueError in one line for a missing, damaged or incomplete folder.
    """
    path = folder / SIDECAR
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: not found; give an adapter folder that a finished alignment or fine-tuning wrote"
        )
    content = read_json(path, "export the adapter again")
    names = {item.name for item in dataclasses.fields(Adapter)}
    if content.keys() != names:
        raise ValueError(
            f"{path}: expected {', '.join(sorted(names))}, got {', '.join(sorted(content))}; export the "
            "adapter again"
        )
    adapter = Adapter(**{**content, "config": override(LoraConfig(), content["config"], str(path))})
    try:
        tensors = load_file(folder / WEIGHTS)
    except (SafetensorError, FileNotFoundError) as error:
        raise ValueError(
            f"{folder / WEIGHTS}: not a whole safetensors file ({error}); copy or export the adapter again"
        ) from None
    return adapter, {name.removeprefix(_PEFT_PREFIX): tensor for name, tensor in tensors.items()}


def load_adapter(folder: Path, model: nn.Module, flavor: str, base_id: str, config: LoraConfig) -> Adapter:
    """Load a saved adapter into all adapters of an injected model, before its first forward pass.

    The model may be sharded: every rank reads the file and cuts its own shard. Raises ValueError in one line
    on another flavor, base, rank, alpha or targets.
    """
    adapter, tensors = read_adapter(folder)
    _check_fit(folder, adapter, flavor, base_id)
    for name in ("rank", "alpha", "targets", "rslora"):
        found, wanted = getattr(adapter.config, name), getattr(config, name)
        if found != wanted:
            raise ValueError(
                f"{folder / SIDECAR}: adapter of {name} {found}, the recipe says {wanted}; set lora.{name} "
                f"to {found}"
            )
    for name in adapters_in(model):
        parameters = adapter_parameters(model, name)
        check_keys(_shapes(parameters), _shapes(tensors), str(folder))
        for key, parameter in parameters.items():
            put(parameter, tensors[key])
    return adapter


def adapted_model(base: Path, folder: Path) -> tuple[AVTransformer, Adapter]:
    """The base model (fp32, eval mode) with an unmerged adapter. Raises as load_adapter and load_model."""
    described = read_adapter(folder)[0]
    model, found = load_model(base, described.base_weights)
    inject(model, described.config)
    return model, load_adapter(
        folder, model, found.flavor, str(found.facts["checkpoint_id"]), described.config
    )


@torch.no_grad()
def merge_adapter(base: Path, folder: Path, out: Path, facts: Mapping[str, Any] | None = None) -> str:
    """Write base + scaling * B A as a full fp32 model folder; returns its checkpoint id.

    Both weight files are the same. Its config.json carries `facts`, the adapter's id, and the base's own
    facts under `base`. Raises ValueError in one line where the adapter was trained on another base.
    """
    adapter, tensors, described, model = _fitted(folder, base)
    base_id = str(described.facts["checkpoint_id"])
    layers = target_names(model, adapter.config.targets)
    weights = _Merged(
        open_weights(base, adapter.base_weights, _shapes(model.state_dict())),
        layers,
        tensors,
        adapter.config.scaling,
    )
    kept = {
        name: described.facts[name]
        for name in ("codec_id", "ema_updates", "trained_on")
        if name in described.facts
    }
    lineage = {
        "stage": "align",
        "parent": base_id,
        "adapter_id": adapter.adapter_id,
        "lora": dataclasses.asdict(adapter.config),
    }
    return write_model(
        out,
        described.flavor,
        described.args,
        {"model": weights, "ema": weights},
        {**kept, **lineage, **adapter.facts, **(facts or {}), "base": described.facts},
    )


class _Merged:
    """A TensorSource of base weights with the adapter merged in."""

    def __init__(
        self, base: ShardReader, layers: Collection[str], update: Mapping[str, Tensor], scaling: float
    ) -> None:
        self.base, self.layers, self.update, self.scaling = (
            base,
            {f"{layer}.weight" for layer in layers},
            update,
            scaling,
        )

    def keys(self) -> Collection[str]:
        return self.base.keys()

    def shape(self, key: str) -> torch.Size:
        return self.base.shape(key)

    def dtype(self, key: str) -> torch.dtype:
        return torch.float32

    def tensor(self, key: str) -> Tensor:
        weight = self.base.tensor(key).float()
        if key in self.layers:
            layer = key.removesuffix(".weight")
            weight += self.scaling * _product(self.update, layer)
        return weight


@dataclass(frozen=True)
class ScaledAdapter:
    """An adapter folder, and the factor of its update; with 0 it changes nothing."""

    folder: Path
    scale: float = 1.0


def parse_scaled(text: str) -> ScaledAdapter:
    """FOLDER or FOLDER=SCALE. Raises ValueError for a scale that is no finite number."""
    folder, equals, number = text.rpartition("=")
    if not equals or Path(text).is_dir():
        return ScaledAdapter(Path(text))
    try:
        scale = float(number)
    except ValueError:
        scale = math.nan
    if not (math.isfinite(scale) and folder):
        raise ValueError(f"--adapter {text}: expected FOLDER or FOLDER=SCALE, such as my/adapter=0.8")
    return ScaledAdapter(Path(folder), scale)


@torch.no_grad()
def apply_adapters(
    model: nn.Module,
    described: ModelFolder,
    base: Path,
    weights: WeightsName,
    adapters: Sequence[ScaledAdapter],
) -> dict[str, str]:
    """Add scale * scaling * B A of each adapter to a model's weights, fp32, in place.

    Returns `adapters`: their ids and scales. Raises ValueError or FileNotFoundError in one line as
    `check_adapter`, and for an adapter of other weights than the loaded ones.
    """
    marks = []
    for one in adapters:
        adapter, tensors, _, _ = _fitted(one.folder, base)
        same = weights_stem(described.facts, weights) == weights_stem(described.facts, adapter.base_weights)
        if not same:
            raise ValueError(
                f"{one.folder / SIDECAR}: adapter of the base's {adapter.base_weights} weights, these are "
                f"its {weights} weights; set generate.weights={adapter.base_weights}"
            )
        marks.append(f"{adapter.adapter_id}={_exact(one.scale)}")
        layers = sorted({name.rpartition(".lora_")[0] for name in tensors}) if one.scale else []
        for layer in layers:
            update = one.scale * adapter.config.scaling * _product(tensors, layer)
            _add(model.get_parameter(f"{layer}.weight"), update)
    return {"adapters": " ".join(marks)} if marks else {}


def _exact(scale: float) -> str:
    """As short as it reads back as itself, such as 1, 0.8 and 0.12345671."""
    return repr(float(scale)).removesuffix(".0")


def _add(parameter: Tensor, update: Tensor) -> None:
    """Add a whole update to a parameter, sharded or not; each rank adds its shard, no collective."""
    if isinstance(parameter, DTensor):
        local = update.to(parameter.device, parameter.dtype)
        update = distribute_tensor(local, parameter.device_mesh, parameter.placements, src_data_rank=None)
    parameter.add_(update)


@dataclass(frozen=True)
class MergedAdapters:
    """A change of a loaded model for `pretrain.generate`: adapters of `base` merged in memory."""

    base: Path
    weights: WeightsName
    adapters: tuple[ScaledAdapter, ...]

    def marks(self) -> dict[str, str]:
        """As of `apply_adapters`, which reads the same, without a model. Raises as `check_adapter`."""
        found = [
            f"{check_adapter(one.folder, self.base).adapter_id}={_exact(one.scale)}" for one in self.adapters
        ]
        return {"adapters": " ".join(found)} if found else {}

    def __call__(self, model: AVTransformer, described: ModelFolder) -> None:
        apply_adapters(model, described, self.base, self.weights, self.adapters)


def check_adapter(folder: Path, base: Path) -> Adapter:
    """Description of an adapter that can be loaded onto the base, whose weights are not read.

    Raises ValueError or FileNotFoundError in one line: another base or flavor, other layers, damaged files.
    """
    return _fitted(folder, base)[0]


def _fitted(folder: Path, base: Path) -> tuple[Adapter, dict[str, Tensor], ModelFolder, AVTransformer]:
    """An adapter with its tensors, and the description and shape (on the meta device) of the base it fits."""
    adapter, tensors = read_adapter(folder)
    described = read_model_folder(base)
    _check_fit(folder, adapter, described.flavor, str(described.facts["checkpoint_id"]))
    with torch.device("meta"):
        model = build_model(described.args)
    check_keys(adapter_shapes(model, adapter.config), _shapes(tensors), str(folder))
    return adapter, tensors, described, model


def _product(tensors: Mapping[str, Tensor], layer: str) -> Tensor:
    """B A of a layer, [outputs, inputs]."""
    return tensors[f"{layer}.lora_B.weight"] @ tensors[f"{layer}.lora_A.weight"]


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in tensors.items()}


def _check_fit(folder: Path, adapter: Adapter, flavor: str, base_id: str) -> None:
    where = folder / SIDECAR
    if adapter.flavor != flavor:
        raise ValueError(
            f"{where}: adapter of flavor {adapter.flavor}, the model is {flavor}; give an adapter of this "
            "flavor"
        )
    if adapter.base_id != base_id:
        raise ValueError(
            f"{where}: adapter of base model {adapter.base_id}, this one is {base_id}; give the base it was "
            "trained on"
        )
