"""The fine-tuning part of a recipe: a frozen tree, written as JSON for the ranks and read back strictly."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from finetune.lora import LoraConfig
from pretrain.dropout import DropoutConfig
from pretrain.flow.path import LevelConfig
from pretrain.model.flavors import flavor
from pretrain.model.modality import WeightModality
from pretrain.objective import ObjectiveConfig
from pretrain.recipe import (
    CheckpointConfig,
    MonitorConfig,
    OptimizerConfig,
    ParallelConfig,
    PretrainConfig,
    StepPolicy,
    local_batch,
)
from pretrain.schedule import StageConfig
from pretrain.tasks import TASKS
from pretrain.types import Task

STAGE = "finetune"
CLIPS, BASE = "clips", "base"  # names of the given set and, where it is a single one, of the base's


@dataclass(frozen=True, kw_only=True)
class RateScales:
    """Factors of the learning rate for the weights of each modality (`pretrain.model.modality`)."""

    video: float = 1.0
    audio: float = 1.0
    shared: float = 1.0

    def __post_init__(self) -> None:
        bad = {name: scale for name, scale in vars(self).items() if not 0 <= scale < math.inf}
        if bad or not any(vars(self).values()):
            raise ValueError(
                f"finetune.lr_scale: expected factors of at least 0, one of them more, got {vars(self)}"
            )

    def by_modality(self) -> dict[WeightModality, float]:
        return {"video": self.video, "audio": self.audio, "shared": self.shared}


@dataclass(frozen=True, kw_only=True)
class SoundConfig:
    """What is expected of clips whose text has speech. Raises ValueError outside of the ranges."""

    required: bool = True  # False: fine-tuning of the picture alone; nothing of this is checked
    max_bad: float = 0.05  # share of the clips with speech whose sound may be missing, muted or cut off
    muted_db: float = -60.0  # root mean square of the speech, against full scale, below which it is muted
    tolerance_s: float = 0.25  # by which a sound may be shorter than its picture
    checked: int = 2000  # clips, spread over the set, whose sound is read before training
    patience: int = 10  # steps on the clips without any sound in the loss, after which training stops

    def __post_init__(self) -> None:
        if (
            not 0 <= self.max_bad < 1
            or not 0 <= self.tolerance_s < math.inf
            or self.checked < 1
            or self.patience < 1
        ):
            raise ValueError(
                "finetune.sound: max_bad must be in [0, 1), tolerance_s not negative, checked and patience "
                f"at least 1, got {self}"
            )


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """All of supervised fine-tuning; what pretraining has is called as there.

    Raises ValueError where parts do not fit each other.
    """

    full: bool = False  # True: all weights are trained, and no adapter is made
    lora: LoraConfig = field(default_factory=lambda: LoraConfig(rank=32, alpha=64.0))
    steps: int = 240
    lr: float = 1e-3
    lr_scale: RateScales = field(default_factory=RateScales)
    warmup_steps: int = 20
    decay_fraction: float = 0.5  # of the steps, at the end
    decay: Literal["linear", "sqrt", "cosine"] = "cosine"
    min_lr_factor: float = 0.05
    # tasks that may be given a reference voice: without one the clips' voice would become that of all
    tasks: Mapping[str, float] = field(default_factory=lambda: {"T2AV": 1.0, "TIA2AV": 1.0})
    audio_only_batch_factor: int = 1
    # share of the steps on the base's data, against forgetting; 0 = none
    base_share: float = 0.5
    # what those steps learn: the data, or what the model that is started from answers on them (learning
    # without forgetting); auto = the model's answers with an adapter, the data with all weights
    base_target: Literal["auto", "data", "model"] = "auto"
    base_weight: float = 5.0  # of the loss of those steps
    # folder or URL of an encoded set, or of several; "" = those of the recipe's last pretraining stage
    base: str = ""
    validation: str = ""  # an encoded set; "" = `validation` beside the base's, if it is there
    global_batch_size: int = 8
    local_batch_size: int = 0  # as of pretraining
    mix_lengths: bool = False
    seed: int = 0
    mixed_precision: Literal["fp32", "bf16"] = "bf16"
    ema_decay: float = 0.98  # 0 = no average
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    objective: ObjectiveConfig = field(
        default_factory=lambda: ObjectiveConfig(
            # a face that is new to the codec has several times the loss of a voice
            video_weight=0.1,
            audio_weight=1.0,
            levels=LevelConfig(draw="logit_normal", weight="flat", shift=1.0, logit_mean=1.5, logit_std=1.4),
        )
    )
    # of the clips' conditions; objective.dropout is that of the base's data. Text and voice are always given:
    # guidance leads away from the answer without them, which is to stay the base's
    clips_dropout: DropoutConfig = field(
        default_factory=lambda: DropoutConfig(text=0.0, modality_mask=0.0, timbre_kept=1.0)
    )
    sound: SoundConfig = field(default_factory=SoundConfig)
    checkpoint: CheckpointConfig = field(default_factory=lambda: CheckpointConfig(interval=100))
    policy: StepPolicy = field(default_factory=StepPolicy)
    parallel: ParallelConfig = field(default_factory=lambda: ParallelConfig(shard_blocks=False))
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
    deterministic: bool = False
    log_every: int = 10
    validate_every: int = 100  # steps; 0 = only at the end
    validation_samples: int = 64
    clips_every: int = 100  # steps between clips of the same prompts to look at and hear; 0 = none
    clips: int = 4  # of them, where `prompts` names no file
    prompts: str = ""  # JSONL of these prompts, in the form of `nava generate`; "" = texts of the set itself
    shuffle_shards: int = 16
    prefetch: int = 2
    cache_gb: float = 200.0

    def __post_init__(self) -> None:
        if not 0 <= self.base_share < 1:
            raise ValueError(f"finetune.base_share: a share of the steps in [0, 1), got {self.base_share}")
        if self.base_target not in ("auto", "data", "model"):
            raise ValueError(f"finetune.base_target: auto, data or model, got {self.base_target!r}")
        if not 0 < self.base_weight < math.inf:
            raise ValueError(f"finetune.base_weight: a factor above 0, got {self.base_weight}")
        if self.full and self.base_target == "model":
            raise ValueError(
                "finetune.base_target=model: with finetune.full there is no copy of the model to ask; "
                "set data, or train an adapter"
            )
        if self.clips < 0 or self.clips_every < 0:
            raise ValueError(
                f"finetune.clips and clips_every must not be negative, got {self.clips}, {self.clips_every}"
            )
        # its checks; whether heads split over a context group is seen when the model is known
        self._pretraining("mini", {}, replace(self.parallel, context=min(self.parallel.context, 1)))

    @property
    def keeps_answers(self) -> bool:
        """Steps on the base's data learn what the model that is started from answers there."""
        return not self.full and self.base_target != "data"

    @property
    def trains_audio(self) -> bool:
        """Some task generates sound, and its loss and learning rate are above 0."""
        tasks = [Task(name) for name, weight in self.tasks.items() if weight > 0]
        rate = self.lr_scale.audio or self.lr_scale.shared
        return any(TASKS[task].audio for task in tasks) and self.objective.audio_weight > 0 and rate > 0

    def check_ranks(self, world_size: int) -> None:
        """Raises ValueError where the batch does not split over the ranks."""
        local_batch(self.global_batch_size, self.local_batch_size, self.parallel, world_size)

    def as_pretraining(self, flavor_name: str, base_sets: Mapping[str, float]) -> PretrainConfig:
        """The stage that the trainer runs. base_sets: weights of the base's sets among themselves.

        Raises ValueError where the flavor's heads do not split over `parallel.context` ranks.
        """
        return self._pretraining(flavor_name, base_sets, self.parallel)

    def _pretraining(
        self, flavor_name: str, base_sets: Mapping[str, float], parallel: ParallelConfig
    ) -> PretrainConfig:
        flavor(flavor_name)
        share = self.base_share if base_sets else 0.0
        whole = sum(base_sets.values())
        sets = {CLIPS: 1 - share, **{name: share * weight / whole for name, weight in base_sets.items()}}
        stage = StageConfig(
            name=STAGE,
            sets=sets,
            audio_sets=sets,
            **{name: getattr(self, name) for name in _STAGE},
        )
        return PretrainConfig(
            flavor=flavor_name,
            stages={STAGE: stage},
            parallel=parallel,
            **{name: getattr(self, name) for name in _COMMON},
        )


_STAGE = (
    "steps",
    "tasks",
    "audio_only_batch_factor",
    "lr",
    "warmup_steps",
    "decay_fraction",
    "decay",
    "min_lr_factor",
)
_COMMON = (
    "global_batch_size",
    "local_batch_size",
    "mix_lengths",
    "seed",
    "mixed_precision",
    "ema_decay",
    "optimizer",
    "objective",
    "checkpoint",
    "policy",
    "monitor",
    "deterministic",
    "log_every",
    "validate_every",
    "validation_samples",
    "shuffle_shards",
    "prefetch",
    "cache_gb",
)
