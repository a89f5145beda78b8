"""One model, three policies: `default` is trained, `old` follows it and rolls out, `reference` is the base.

Updates of `old` and of the averaged weights are elementwise on each rank's own shards; nothing is gathered
(alignment.md, section 3).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from finetune.lora import DEFAULT, OLD, adapter_layers, adapter_parameters, set_roles
from finetune.types import Role
from pretrain.flow.guidance import GuidanceScales, guided_velocity
from pretrain.model.feature_cache import FeatureCache, velocity_of_pass
from pretrain.model.shell import AVTransformer
from pretrain.titan.ema import Ema, local_shard
from pretrain.titan.parallelize import reshard
from pretrain.types import Conditioning, Stream, Velocity


class LoraPolicy:
    """types.Policy over a model with adapters, sharded or not; a torch Stateful.

    `default` is active and trainable between calls. `parameters` is what the optimizer takes. After changing
    weights from outside (an optimizer step after a forward pass without a backward), call `weights_changed`;
    the updates here do it themselves. Raises ValueError if adapters are missing, are not fp32, or anything
    but `default` would be trained.
    """

    def __init__(self, model: AVTransformer, ema_decay: float = 0.9) -> None:
        self.model, self.layers, self.old_updates = model, adapter_layers(model), 0
        if not self.layers:
            raise ValueError("the model has no adapters; call finetune.lora.inject before sharding it")
        self.weights_changed()
        self.adapters = {adapter: adapter_parameters(model, adapter) for adapter in (DEFAULT, OLD)}
        self._check()
        self.ema = Ema(model, ema_decay, only_trained=True)

    @property
    def parameters(self) -> list[Tensor]:
        """The trained parameters, in the model's order."""
        return list(self.adapters[DEFAULT].values())

    def velocity(
        self, role: Role, video: Stream | None, audio: Stream | None, conditioning: Conditioning
    ) -> Velocity:
        """Differentiable if `role` is default and gradients are enabled."""
        if role == DEFAULT:
            return self.model(video, audio, conditioning)
        with torch.no_grad(), self._acting_as(role):
            return self.model(video, audio, conditioning)

    def guided(
        self,
        role: Role,
        video: Stream | None,
        audio: Stream | None,
        conditioning: Conditioning,
        scales: GuidanceScales,
        voiced: bool | None = None,
        cache: FeatureCache | None = None,
        negative: Conditioning | None = None,
    ) -> Velocity:
        """Guided velocity, without gradient; for rollouts. cache: of the sampling that this is a step of.

        voiced: as of guided_velocity; ranks of a sharded model must agree on it, or their numbers of passes
        differ.
        """
        joint = video is not None and audio is not None
        # no_grad, not inference mode, which would leave gathered weights that backward cannot save
        with torch.no_grad(), self._acting_as(role):
            velocity_of = velocity_of_pass(self.model, video, audio, cache)
            return guided_velocity(velocity_of, conditioning, scales, negative, joint, voiced)

    @torch.no_grad()
    def update_old(self, decay: float) -> None:
        """old <- decay * old + (1 - decay) * default. Raises ValueError on a decay outside [0, 1]."""
        if not 0 <= decay <= 1:
            raise ValueError(f"the old policy's decay must be between 0 and 1, got {decay}")
        old, default = (
            [local_shard(value) for value in self.adapters[name].values()] for name in (OLD, DEFAULT)
        )
        # on local shards: elementwise, so no collective is needed
        torch._foreach_lerp_(old, default, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]
        self.old_updates += 1
        self.weights_changed()

    def update_ema(self) -> None:
        """Take `default` into the average, after an optimizer step."""
        self.ema.update()

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """`default` holds the average inside the context; for evaluation and export, not for updates."""
        try:
            with self.ema.swapped_in():
                self.weights_changed()
                yield
        finally:
            self.weights_changed()

    def weights_changed(self) -> None:
        """Make the next forward pass gather weights again."""
        reshard(self.model)

    def state_dict(self) -> dict[str, Any]:
        """Both adapters and the average (DTensors if sharded), with update counts.

        For DCP or, on one rank, safetensors.
        """
        adapters = {
            adapter: {name: value.detach() for name, value in found.items()}
            for adapter, found in self.adapters.items()
        }
        return {"adapters": adapters, "old_updates": self.old_updates, "ema": self.ema.state_dict()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.old_updates = int(state["old_updates"])
        for adapter, parameters in self.adapters.items():
            for name, parameter in parameters.items():
                parameter.copy_(state["adapters"][adapter][name])
        self.ema.load_state_dict(state["ema"])
        self.weights_changed()

    @contextmanager
    def _acting_as(self, role: Role) -> Iterator[None]:
        if role not in (DEFAULT, OLD, "reference"):
            raise ValueError(f"role must be default, old or reference, got {role!r}")
        set_roles(self.layers, None if role == "reference" else role)
        try:
            yield
        finally:
            set_roles(self.layers)

    def _check(self) -> None:
        for name, default in self.adapters[DEFAULT].items():
            old = self.adapters[OLD][name]
            if default.dtype != torch.float32 or old.dtype != torch.float32:
                raise ValueError(
                    f"{name} is {default.dtype}; adapters stay fp32: lower the base's precision before "
                    "inject, not after"
                )
            if (
                isinstance(default, DTensor)
                and isinstance(old, DTensor)
                and default.placements != old.placements
            ):
                raise ValueError(
                    f"{name}: adapters default and old are sharded unlike: {default.placements} and "
                    f"{old.placements}"
                )
        trained = {id(parameter) for parameter in self.model.parameters() if parameter.requires_grad}
        if trained != {id(parameter) for parameter in self.parameters}:
            raise ValueError(
                "exactly the adapter `default` must be trainable; leave requires_grad as "
                "finetune.lora.inject sets it"
            )
