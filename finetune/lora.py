"""LoRA adapters on a NAVA transformer, by PEFT: target layers, initialisation, frozen parameters.

Every wrapped layer has fp32 adapters whatever the base's precision: `default` is trained; in alignment `old`
follows it. Layers that are not called as modules (the embedders' convolutions) cannot be adapted: PEFT would
wrap them without effect.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from pretrain.config import nearest
from pretrain.model.attention import Projections
from pretrain.model.blocks import FeedForward, Head
from pretrain.model.checkpoint import put
from pretrain.model.quantised import QUANTISATIONS, Quantisation, halve, quantise_base
from pretrain.model.shell import AVTransformer
from pretrain.randomness import generator_for

if TYPE_CHECKING:
    import peft
    from peft.tuners.lora import LoraLayer

DEFAULT, OLD = "default", "old"
BASES = ("fp32", "bf16", *QUANTISATIONS)
GROUPS = {
    "self_attention": "q, k, v, o of self-attention, of each stream",
    "cross_attention": "q, k, v, o of attention to the text and, in a dual tower, to the other tower; none "
    "in `unified`",
    "ffn": "both maps of each feed-forward",
    "heads": "the last map of each modality",
}


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Rank, alpha and targets.

    Raises ValueError for rank or alpha out of range, unknown groups, and DoRA, whose magnitudes neither the
    adapter folders nor their merge hold.
    """

    rank: int = 32
    alpha: float = 64.0  # the update is alpha / rank * B A
    targets: tuple[str, ...] = ("self_attention", "cross_attention", "ffn")  # groups of layers (GROUPS)
    seed: int = 0  # of A; B starts at zero
    rslora: bool = False  # the update is alpha / sqrt(rank) * B A (rank-stabilised LoRA)
    dora: bool = False  # refused: see below
    # what the frozen base is held in; all but fp32: bf16 but for the time path, maps of the blocks as named
    # (pretrain.model.quantised)
    base: Literal["fp32", "bf16", "int8", "fp8", "nf4"] = "fp32"

    def __post_init__(self) -> None:
        if self.rank < 1 or not 0 < self.alpha < math.inf:
            raise ValueError(
                f"lora needs a rank of at least 1 and an alpha above 0, got rank {self.rank} and alpha "
                f"{self.alpha}"
            )
        if self.dora:
            raise ValueError(
                "lora.dora: DoRA is not supported, an adapter here is A and B alone; take lora.rslora=true "
                "or a higher lora.rank"
            )
        if self.base not in BASES:
            raise ValueError(f"lora.base: unknown {self.base!r}; {nearest(self.base, BASES)}")
        if not self.targets:
            raise ValueError(f"lora.targets is empty; name groups of layers: {', '.join(GROUPS)}")
        for group in self.targets:
            if group not in GROUPS:
                raise ValueError(f"lora.targets: unknown group {group!r}; {nearest(group, GROUPS)}")

    @property
    def quantisation(self) -> Quantisation | None:
        """How the base's maps are quantised, if they are."""
        return None if self.base in ("fp32", "bf16") else self.base

    @property
    def scaling(self) -> float:
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)


def target_names(model: AVTransformer, groups: tuple[str, ...]) -> list[str]:
    """Full names of the layers of these groups, in model order. Raises ValueError if the model has none."""
    names = []
    for name, module in model.named_modules():
        if _group(name, module) in groups:
            names += [
                f"{name}.{child}" for child, layer in module.named_children() if isinstance(layer, nn.Linear)
            ]
    if not names:
        raise ValueError(
            f"lora.targets: paradigm {model.args.paradigm} has no layers of {', '.join(groups)}; valid: "
            f"{', '.join(GROUPS)}"
        )
    return names


def adapter_shapes(model: AVTransformer, config: LoraConfig) -> dict[str, torch.Size]:
    """Names and shapes of an adapter's parameters, from a model without adapters (meta device allowed)."""
    shapes: dict[str, torch.Size] = {}
    for name in target_names(model, config.targets):
        outputs, inputs = model.get_parameter(f"{name}.weight").shape
        shapes[f"{name}.lora_A.weight"] = torch.Size((config.rank, inputs))
        shapes[f"{name}.lora_B.weight"] = torch.Size((outputs, config.rank))
    return shapes


def _group(name: str, module: nn.Module) -> str:
    if isinstance(module, Projections):
        return "self_attention" if name.rpartition(".")[2].startswith("self_attn") else "cross_attention"
    return "ffn" if isinstance(module, FeedForward) else "heads" if isinstance(module, Head) else ""


def inject(
    model: AVTransformer, config: LoraConfig, adapters: tuple[str, ...] = (DEFAULT, OLD)
) -> AVTransformer:
    """Wrap the target layers in place and freeze everything but `default`; the output is unchanged.

    Call it on every rank before `fully_shard`, after the base has its precision (a later model.to would cast
    the adapters too). A model on the meta device needs `reset` once its weights exist. Raises ValueError if
    adapters exist or no layers match.
    """
    from peft import inject_adapter_in_model

    if any(".lora_A." in name for name, _ in model.named_parameters()):
        raise ValueError("the model has adapters already; inject into a freshly built or loaded one")
    names = target_names(model, config.targets)
    lower_base(model, config)
    with (
        torch.random.fork_rng(devices=[]),
        warnings.catch_warnings(),
    ):  # PEFT draws first values that `reset` overwrites
        # expected: the model carries two adapters
        warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute")
        for adapter in adapters:
            inject_adapter_in_model(peft_config(config, names), model, adapter)
    layers = adapter_layers(model)
    if sorted(layers) != sorted(names):
        raise ValueError(
            f"PEFT wrapped {len(layers)} layers where {len(names)} were named; use a peft release that "
            "setup installs"
        )
    set_roles(layers)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for adapter in adapters:
        for parameter in adapter_parameters(model, adapter).values():
            parameter.data = parameter.data.float()
            parameter.requires_grad_(adapter == DEFAULT)
    if not any(parameter.is_meta for parameter in model.parameters()):
        reset(model, config)
    return model


def lower_base(model: AVTransformer, config: LoraConfig) -> None:
    """The base in the precision that `lora.base` names, in place."""
    if config.quantisation:
        quantise_base(model, config.quantisation)
    elif config.base == "bf16":
        halve(model)


def peft_config(config: LoraConfig, names: list[str]) -> peft.LoraConfig:
    """The PEFT config, also stored as adapter_config.json."""
    import peft

    alpha: Any = config.alpha  # PEFT types it as int and takes any number
    return peft.LoraConfig(
        r=config.rank,
        lora_alpha=alpha,
        target_modules=list(names),
        lora_dropout=0.0,
        bias="none",
        use_rslora=config.rslora,
    )


def reset(model: nn.Module, config: LoraConfig) -> None:
    """Initialise all adapters without collectives: A ~ U(+-1/sqrt(inputs)), keyed by layer name, B zero."""
    for adapter in adapters_in(model):
        for name, parameter in adapter_parameters(model, adapter).items():
            first = torch.zeros(parameter.shape)
            if ".lora_A." in name:
                bound = parameter.shape[1] ** -0.5
                first.uniform_(-bound, bound, generator=generator_for(config.seed, "lora", name))
            put(parameter, first)


def adapter_layers(model: nn.Module) -> dict[str, LoraLayer]:
    """Wrapped layers by their name in the plain model, with activation-checkpointing wrappers removed."""
    from peft.tuners.lora import LoraLayer

    layers = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    return {name.replace("_checkpoint_wrapped_module.", ""): layer for name, layer in layers.items()}


def adapters_in(model: nn.Module) -> list[str]:
    """Names of a model's adapters."""
    return list(next(iter(adapter_layers(model).values())).lora_A.keys())


def base_parameters(model: nn.Module) -> dict[str, Tensor]:
    """The frozen base's parameters by their names in the plain model; shards if the model is sharded."""
    found = model.state_dict()
    return {name.replace(".base_layer.", "."): value for name, value in found.items() if ".lora_" not in name}


def adapter_parameters(model: nn.Module, adapter: str) -> dict[str, Tensor]:
    """One adapter's parameters as `<layer>.lora_A.weight` and `<layer>.lora_B.weight`.

    For a sharded model these are shards only while it is resharded.
    """
    found: dict[str, Tensor] = {}
    for name, layer in adapter_layers(model).items():
        found[f"{name}.lora_A.weight"] = layer.lora_A[adapter].get_parameter("weight")
        found[f"{name}.lora_B.weight"] = layer.lora_B[adapter].get_parameter("weight")
    return found


def set_roles(layers: Mapping[str, LoraLayer], adapter: str | None = DEFAULT) -> None:
    """Activate this adapter, or none.

    PEFT's own set_adapter also changes requires_grad, which the optimizer and FSDP have read once at
    construction; therefore its two switches are set directly.
    """
    for layer in layers.values():
        layer._disable_adapters = adapter is None
        layer._active_adapter = [adapter or DEFAULT]  # type: ignore[assignment]
