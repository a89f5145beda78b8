"""A fully resolved fine-tuning, written by the launcher and read by every rank."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from finetune.sft.config import STAGE, FinetuneConfig
from pretrain.config import from_json, to_json
from pretrain.launch.identity import Identity, flat, split
from pretrain.launch.stage_run import StageRun
from pretrain.model.checkpoint import WeightsName
from pretrain.randomness import stable_hash
from pretrain.sampling import SamplerConfig

SECTION = "finetune"


@dataclass(frozen=True, kw_only=True)
class FinetuneRun(StageRun):
    """A pretraining stage that starts from `init_from`; `config` and `stage` follow from `finetune`.

    weights: which of that model's an adapter is trained on; all weights start from both, as in pretraining.
    """

    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    weights: WeightsName = "ema"
    sampler: SamplerConfig = field(default_factory=SamplerConfig)  # of the clips to look at
    codec: str = ""  # folder of the codec, to decode them
    speech: bool = True  # some clips of the set have speech

    @property
    def label(self) -> str:
        return SECTION

    def resolved(self) -> dict[str, Any]:
        return {
            **super().resolved(),
            "finetune": to_json(self.finetune),
            "weights": self.weights,
            "sampler": to_json(self.sampler),
            "codec": self.codec,
            "speech": self.speech,
        }

    @classmethod
    def fields_of(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        return {
            **super().fields_of(values),
            "finetune": from_json(FinetuneConfig, values["finetune"], "finetune"),
            "weights": values["weights"],
            "sampler": from_json(SamplerConfig, values["sampler"], "sampler"),
            "codec": values["codec"],
            "speech": values["speech"],
        }

    def identity(self) -> dict[str, Any]:
        counting = split(flat(to_json(self.finetune)), SECTION)[0]
        own = {"stage": STAGE, "recipe_hash": f"{stable_hash(counting):016x}"}
        return {**super().identity(), **own}

    def depends(self) -> Identity:
        resolved = {"finetune": to_json(self.finetune), "sets": dict(self.config.stage(self.stage).sets)}
        return self._identity(self.identity(), resolved, self.code)

    def _identity(
        self, facts: Mapping[str, Any], resolved: Mapping[str, Any], code: Mapping[str, str]
    ) -> Identity:
        own = {"flavor": facts["flavor"], **flat(facts["args"], "model.")}
        own |= flat(resolved.get("sets", {}), "sets.")
        settings, neutral = split({**flat(resolved.get("finetune", {})), **own}, SECTION)
        if settings.get("full"):  # nothing of the adapter counts
            settings = {name: value for name, value in settings.items() if not name.startswith("lora.")}
        inputs = {"codec": str(facts["codec_id"]), **flat(facts["latents"], "latents.")}
        parents = {"model": str(facts["parent"])}
        return Identity(settings=settings, inputs=inputs, parents=parents, code=code, neutral=neutral)

    def extends(self, finished: bool) -> tuple[str, ...]:
        return ("steps", "decay_fraction", "decay", "min_lr_factor")
