"""Generate K clips per prompt with a pretrained model into a store, for voting and gsb_dpo."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from finetune.objectives.base import RolloutPlan
from finetune.prompts import read_prompt_set, report_left_out, voices_of
from finetune.recipe import AlignConfig
from finetune.rollout import PromptBatch, encode_prompts, roll_out
from finetune.rollout_store import STORES, write_store
from finetune.types import Role, Rollout, joined
from pretrain.codecs.base import check_trained_on
from pretrain.codecs.load import load_codecs
from pretrain.config import ADDED
from pretrain.first_frames import read_first_frames
from pretrain.flow.guidance import GuidanceScales, guided_velocity
from pretrain.generation.config import (
    DeviceName,
    GenerateConfig,
    QuantisationName,
    check_placement,
    device_of,
)
from pretrain.generation.held import lowered
from pretrain.model.checkpoint import WeightsName, load_model
from pretrain.model.feature_cache import FeatureCache, velocity_of_pass
from pretrain.model.shell import AVTransformer
from pretrain.model.shortage import in_one_line
from pretrain.owned import check_owned
from pretrain.progress import track
from pretrain.sampling import SamplerConfig
from pretrain.types import Conditioning, Stream, Velocity


@dataclass(frozen=True, kw_only=True)
class RolloutsConfig:
    """How the voted clips are generated: as `nava generate`, K per prompt."""

    clips_per_prompt: int = 4
    sampler: SamplerConfig = field(default_factory=lambda: GenerateConfig().sampler)
    batch: int = 64  # clips
    weights: WeightsName = "ema"
    seed: int = 0
    bf16: bool = True
    # as of `generate`: maps of the blocks in 8 or 4 bits, the rest in bf16; "" = none
    quantisation: QuantisationName = field(default="", metadata={ADDED: True})
    device: DeviceName = field(default="auto", metadata={ADDED: True})  # of the transformer

    def __post_init__(self) -> None:
        if self.clips_per_prompt < 2 or self.batch < 1:
            raise ValueError(
                f"rollouts: clips_per_prompt must be at least 2 and batch at least 1, got {self}"
            )
        try:
            check_placement(self)
        except ValueError as error:
            raise ValueError(f"rollouts: {error}") from None


class BasePolicy:
    """A model without adapters: every role is the base."""

    def __init__(self, model: AVTransformer) -> None:
        self.model = model

    def velocity(
        self, role: Role, video: Stream | None, audio: Stream | None, conditioning: Conditioning
    ) -> Velocity:
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
    ) -> Velocity:
        velocity_of = velocity_of_pass(self.model, video, audio, cache)
        return guided_velocity(velocity_of, conditioning, scales, voiced=voiced)


def make_rollouts(
    config: RolloutsConfig,
    sizes: AlignConfig,
    base: Path,
    codec: Path,
    prompts: Path,
    out: Path,
    about: Mapping[str, Any] = {},
) -> dict[str, Any]:
    """Replace `out` by a store of K clips for each training prompt of `sizes`; returns counts and seconds.

    `about`: more facts for the store. Raises ValueError or FileNotFoundError in one line, e.g. for another
    codec, a misshapen first frame or a GPU that is not there.
    """
    started, device = time.perf_counter(), device_of(config)
    check_owned(out, STORES)
    found = read_prompt_set(prompts, sizes)
    report_left_out(found, prompts)
    rows = [row for some in found.train for row in some]
    images = read_first_frames(rows)
    model, described = load_model(base, config.weights)
    codecs = load_codecs(codec)
    check_trained_on(codecs, codec, described.facts, base)
    voices = voices_of(rows, codecs)
    batches = [
        encode_prompts(some, config.clips_per_prompt, codecs, voices, sizes, images) for some in found.train
    ]
    codec_id = codecs.codec_id
    del codecs  # its encoders leave the room to the model
    with in_one_line(lambda: _ways(config)):
        clips = _by_prompt(BasePolicy(lowered(model, config).to(device)), batches, config, device)
    facts = {
        "checkpoint_id": described.facts["checkpoint_id"],
        "codec_id": codec_id,
        "weights": config.weights,
        "seed": config.seed,
        **({"reused_steps": reused} if (reused := config.sampler.reused_steps) else {}),
        **({"quantisation": config.quantisation} if config.quantisation else {}),
        **({"device": device.type} if device.type != "cpu" else {}),
    }
    write_store(out, rows, clips, {**facts, "clips_per_prompt": config.clips_per_prompt, **about})
    return {
        "clips": sum(len(some.groups) for some in clips),
        "prompts": len(rows),
        "seconds": round(time.perf_counter() - started, 2),
        **facts,
    }


def _ways(config: RolloutsConfig) -> list[str]:
    """Settings for a GPU without room."""
    ways = [f"set rollout.batch={config.batch // 2} (now {config.batch})"] if config.batch > 1 else []
    ways += [] if config.quantisation else ["set rollout.quantisation=int8 (or fp8, nf4)"]
    return [*ways, "set rollout.device=cpu"]


def _by_prompt(
    policy: BasePolicy, batches: Sequence[PromptBatch], config: RolloutsConfig, device: torch.device
) -> list[Rollout]:
    """The clips of each kind, on the CPU; a few prompts at a time, for progress output."""
    size = max(1, config.batch // config.clips_per_prompt)
    plan = RolloutPlan(
        "reference",
        sum(len(batch.rows) for batch in batches),
        config.clips_per_prompt,
        config.sampler,
        config.batch,
    )
    places = [
        (kind, start) for kind, batch in enumerate(batches) for start in range(0, len(batch.rows), size)
    ]
    made: list[list[Rollout]] = [[] for _ in batches]
    for kind, start in track(places, len(places), "rollouts (batches)"):
        part = batches[kind].part(start, start + size)
        made[kind].append(roll_out(policy, plan, part, (config.seed, "votes"), device))
    return [joined(parts) for parts in made]
