"""Generate K clips per prompt with a pretrained model into a store, for voting and gsb_dpo."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from finetune.objectives.base import RolloutPlan
from finetune.prompts import read_prompt_set
from finetune.recipe import AlignConfig
from finetune.rollout import PromptBatch, encode_prompts, roll_out
from finetune.rollout_store import write_store
from finetune.types import Role, Rollout
from pretrain.codecs.base import check_trained_on
from pretrain.codecs.load import load_codecs
from pretrain.flow.guidance import GuidanceScales, guided_velocity
from pretrain.generate import GenerateConfig, reference_voices
from pretrain.model.checkpoint import WeightsName, load_model
from pretrain.model.shell import AVTransformer
from pretrain.progress import track
from pretrain.prompt import PromptRow
from pretrain.sampling import SamplerConfig, lower_precision
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

    def __post_init__(self) -> None:
        if self.clips_per_prompt < 2 or self.batch < 1:
            raise ValueError(
                f"rollouts: clips_per_prompt must be at least 2 and batch at least 1, got {self}"
            )


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
    ) -> Velocity:
        return guided_velocity(lambda given: self.model(video, audio, given), conditioning, scales)


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

    `about`: more facts for the store.
    Raises ValueError or FileNotFoundError in one line: another codec, prompts with a first frame or of
    several lengths.
    """
    started = time.perf_counter()
    rows = [row for some in read_prompt_set(prompts, sizes).train for row in some]
    model, described = load_model(base, config.weights)
    codecs = load_codecs(codec)
    check_trained_on(codecs, codec, described.facts, base)
    voices = reference_voices(rows, prompts, codecs)
    batch = encode_prompts(rows, config.clips_per_prompt, codecs, voices, sizes)
    if config.bf16:
        lower_precision(model, torch.bfloat16)
    clips = _by_prompt(BasePolicy(model), rows, batch, config)
    facts = {
        "checkpoint_id": described.facts["checkpoint_id"],
        "codec_id": codecs.codec_id,
        "weights": config.weights,
        "seed": config.seed,
    }
    write_store(out, rows, clips, {**facts, "clips_per_prompt": config.clips_per_prompt, **about})
    return {
        "clips": len(clips.groups),
        "prompts": len(rows),
        "seconds": round(time.perf_counter() - started, 2),
        **facts,
    }


def _by_prompt(
    policy: BasePolicy, rows: list[PromptRow], batch: PromptBatch, config: RolloutsConfig
) -> Rollout:
    """A few prompts at a time, for progress output."""
    size = max(1, config.batch // config.clips_per_prompt)
    plan = RolloutPlan("reference", len(rows), config.clips_per_prompt, config.sampler, config.batch)
    made = []
    for start in track(range(0, len(rows), size), -(-len(rows) // size), "rollouts (batches)"):
        part = batch.part(start, start + size)
        made.append(roll_out(policy, plan, part, (config.seed, "votes"), torch.device("cpu")))
    whole = made[0]
    joined = {
        name: torch.cat([getattr(part, name) for part in made])
        for name in ("video", "audio", "groups", "sample_ids")
    }
    return replace(whole, conditioning=batch.conditioning, **joined)
