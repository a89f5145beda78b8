"""Prompts -> K clips each by one policy role; draws are keyed by seed, round, prompt and k, not by rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from finetune.noising import noise_like, streams_at, velocities
from finetune.objectives.base import RolloutPlan
from finetune.recipe import AlignConfig
from finetune.sde import StochasticSteps, step
from finetune.types import Key, Policy, Role, Rollout, Trajectory, joined, take
from pretrain.clip_kind import by_kind
from pretrain.codecs.base import Codecs
from pretrain.first_frames import encode_first_frames
from pretrain.flow.guidance import GuidanceScales
from pretrain.flow.solvers import Latents, sampling_sigmas
from pretrain.generation.conditions import conditioning_of
from pretrain.model.feature_cache import FeatureCache
from pretrain.model.shortage import part
from pretrain.prompt import PromptRow
from pretrain.randomness import generator_for, stable_hash
from pretrain.sampling import LatentRates, SamplerConfig, integrate
from pretrain.types import (
    AUDIO_TOKENS_PER_S,
    VIDEO_FRAMES_PER_LATENT,
    Conditioning,
    Stream,
    Velocity,
    sent,
)


class RollingPolicy(Policy, Protocol):
    """A policy that can be sampled with guidance."""

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
        """voiced: whether the direction of the voices costs a pass; None = if some row has a voice.

        cache: of the sampling that this is a step of, given where its sampler has one.
        """
        ...


@dataclass(frozen=True)
class PromptBatch:
    """Encoded prompts of one kind, K adjacent rows each."""

    rows: tuple[PromptRow, ...]  # [P]
    conditioning: Conditioning  # P * K rows; every prompt was encoded once
    groups: Tensor  # [P * K] int64
    sample_ids: Tensor  # [P * K] int64
    video_shape: tuple[int, ...]
    audio_shape: tuple[int, ...]
    rates: LatentRates
    first_frames: Tensor | None = None  # [P * K, 48, 1, H, W] clean latents, None without
    voiced: bool | None = None  # as of RollingPolicy.guided: the same on all ranks of a sharded policy

    def part(self, start: int, end: int) -> PromptBatch:
        """Prompts `start` to `end` (exclusive)."""
        count = len(self.groups) // len(self.rows)
        return replace(self.clips(start * count, end * count), rows=self.rows[start:end])

    def clips(self, start: int, end: int) -> PromptBatch:
        """Clips `start` to `end` (exclusive), at any position; `rows` is unchanged."""
        rows = slice(start, end)
        given = Conditioning(*(getattr(self.conditioning, item.name)[rows] for item in fields(Conditioning)))
        first_frames = None if self.first_frames is None else self.first_frames[rows]
        return replace(
            self,
            conditioning=given,
            groups=self.groups[rows],
            sample_ids=self.sample_ids[rows],
            first_frames=first_frames,
        )


def encode_prompts(
    rows: Sequence[PromptRow],
    clips_per_prompt: int,
    codecs: Codecs,
    voices: Mapping[Path, Tensor],
    config: AlignConfig,
    images: Mapping[Path, Tensor] | None = None,
    voiced: bool | None = None,
) -> PromptBatch:
    """Encode each prompt once and repeat its row for its clips.

    voices, images: what the prompts refer to, as of `voices_of` and `read_first_frames`; voiced: see
    PromptBatch. Raises ValueError for prompts of several kinds.
    """
    kinds = list(by_kind(rows, config))
    if len(kinds) != 1:
        raise ValueError(f"prompts of one kind are rolled out together, got {'; '.join(map(str, kinds))}")
    first_frames = encode_first_frames(rows, images or {}, codecs)
    if first_frames is not None:
        first_frames = first_frames.repeat_interleave(clips_per_prompt, 0)
    encoded = conditioning_of(rows, codecs, voices)
    repeated = Conditioning(
        *(getattr(encoded, item.name).repeat_interleave(clips_per_prompt, 0) for item in fields(encoded))
    )
    numbers = [(row.data_id, k) for row in rows for k in range(clips_per_prompt)]
    return PromptBatch(
        rows=tuple(rows),
        conditioning=repeated,
        groups=torch.tensor([stable_hash(data_id) for data_id, _ in numbers], dtype=torch.int64),
        sample_ids=torch.tensor([stable_hash(data_id, k) for data_id, k in numbers], dtype=torch.int64),
        video_shape=kinds[0].video_shape,
        audio_shape=kinds[0].audio_shape(config.fps),
        rates=LatentRates(config.fps / VIDEO_FRAMES_PER_LATENT, AUDIO_TOKENS_PER_S),
        first_frames=first_frames,
        voiced=voiced,
    )


def roll_out(
    policy: RollingPolicy, plan: RolloutPlan, prompts: PromptBatch, key: Key, device: torch.device
) -> Rollout:
    """Generate the clips on the CPU, with a trajectory if the plan has stochastic steps.

    Given first frames are clean and kept, as in pretrain.sampling.sample. key: (seed, round), the prefix of
    every draw.
    """
    # noise of all clips before the split into batches: clips are the same for any batch size
    video, given = _noise(prompts, key, "video", prompts.video_shape), prompts.first_frames is not None
    if prompts.first_frames is not None:
        video[:, :, :1] = prompts.first_frames
    whole = Rollout(
        video=video,
        audio=_noise(prompts, key, "audio", prompts.audio_shape),
        conditioning=prompts.conditioning,
        groups=prompts.groups,
        sample_ids=prompts.sample_ids,
        rates=prompts.rates,
        first_frame=torch.full((len(prompts.groups),), given),
    )
    places = torch.arange(len(whole.groups)).split(plan.batch)
    with part(f"rollouts, {min(plan.batch, len(whole.groups))} clips at a time"):
        made = [_sampled(policy, plan, take(whole, rows), key, device, prompts.voiced) for rows in places]
    return joined(made)


def _noise(prompts: PromptBatch, key: Key, name: str, shape: tuple[int, ...]) -> Tensor:
    return torch.stack(
        [
            torch.randn(shape, generator=generator_for(*key, sample, name))
            for sample in prompts.sample_ids.tolist()
        ]
    )


def _sampled(
    policy: RollingPolicy,
    plan: RolloutPlan,
    noise: Rollout,
    key: Key,
    device: torch.device,
    voiced: bool | None,
) -> Rollout:
    clips, sampler = noise.to(device), plan.sampler
    if plan.stochastic is not None:
        end, steps = _integrate(policy, plan.role, clips, sampler, plan.stochastic, key)
        host = torch.device("cpu")
        return noise.changed(video=end["video"].cpu(), audio=end["audio"].cpu(), trajectory=steps.to(host))

    def velocity(video: Stream | None, audio: Stream | None, cache: FeatureCache | None = None) -> Velocity:
        given = {"voiced": voiced} if cache is None else {"voiced": voiced, "cache": cache}
        return policy.guided(plan.role, video, audio, clips.conditioning, sampler.guidance, **given)

    start = Latents(clips.video, clips.audio)
    made = integrate(velocity, start, clips.rates, sampler, noise.given is not None)
    assert made.video is not None and made.audio is not None
    return noise.changed(video=made.video.float().cpu(), audio=made.audio.float().cpu())


def _integrate(
    policy: RollingPolicy,
    role: Role,
    noise: Rollout,
    sampler: SamplerConfig,
    stochastic: StochasticSteps,
    key: Key,
) -> tuple[dict[str, Tensor], Trajectory]:
    """Euler steps, stochastic ones inside each group's window: the last states, and the trajectory."""
    table = torch.tensor(sampling_sigmas(sampler.steps, sampler.shift), dtype=torch.float64)  # on the host
    starts = window_starts(noise.groups, stochastic, key)
    states = {"video": noise.video, "audio": noise.audio}
    kept: dict[str, list[list[Tensor]]] = {}
    for index in range(sampler.steps):
        now, then = table[index].expand(len(starts)), table[index + 1].expand(len(starts))
        with torch.no_grad():
            noisy = streams_at(states["video"], states["audio"], now, noise.rates, noise.given)
            answer = velocities(policy, role, noisy, noise.conditioning)
        inside = (starts <= index) & (index < starts + stochastic.window)
        chosen = inside.nonzero()[:, 0]
        rows = sent(chosen, noise.video.device)
        for (name, state), velocity in zip(tuple(states.items()), answer, strict=True):
            after = state + velocity * float(table[index + 1] - table[index])
            if len(chosen):
                ids = noise.sample_ids[chosen].tolist()
                fresh = noise_like(state, [(*key, sample, f"{name} step {index}") for sample in ids])
                still = noise.given[rows] if name == "video" and noise.given is not None else None
                taken = step(
                    stochastic.kernel, state[rows], velocity[rows], now[chosen], then[chosen], fresh, still
                )
                after[rows] = taken.next_state
                for place, row in enumerate(chosen.tolist()):
                    of_row = kept.setdefault(name, [[] for _ in starts])[row]
                    of_row.append(state[row])
                    kept.setdefault(f"next_{name}", [[] for _ in starts])[row].append(taken.next_state[place])
                    kept.setdefault(f"log_prob_{name}", [[] for _ in starts])[row].append(
                        taken.log_prob[place]
                    )
            states[name] = after
    stacked = {name: torch.stack([torch.stack(of_row) for of_row in rows]) for name, rows in kept.items()}
    at = starts[:, None] + torch.arange(stochastic.window, device=starts.device)
    trajectory = Trajectory(kernel=stochastic.kernel, levels=table[at], next_levels=table[at + 1], **stacked)
    return states, trajectory


def window_starts(groups: Tensor, stochastic: StochasticSteps, key: Key) -> Tensor:
    """[B] int64: first stochastic step of each clip, equal within a group (alignment.md, section 3)."""
    places = stochastic.first_steps - stochastic.window + 1
    drawn = {group: stable_hash(*key, group, "window") % places for group in groups.tolist()}
    return torch.tensor([drawn[group] for group in groups.tolist()], dtype=torch.int64, device=groups.device)
