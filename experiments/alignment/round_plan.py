"""Seconds, memory and cost of a round of an alignment by part: rollouts, decoding, each reward, updates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.alignment.beside import (
    DECODE,
    DECODERS,
    SCORED_TOGETHER,
    TEXT,
    NetworkCosts,
    decoders_of,
    has_published_codec,
    networks_of,
    rewards_of,
    round_moments,
)
from experiments.alignment.networks import ClipMedia, NetworkCost
from finetune.objectives.base import Objective
from finetune.plan_round import clip_of, round_work
from finetune.recipe import AlignConfig
from pretrain.config import nearest
from pretrain.model.args import ModelArgs
from pretrain.model.context_parallel import check_degree
from pretrain.model.plan import GIB, LIMITS_GB, step_seconds
from pretrain.model.plan_beside import PartsByMoment

HOUR_S = 3600
FP32_SHARE = 67 / 989  # of an H100's or H200's dense bf16 peak, by its data sheet
ENCODE_TEXT = "encode texts"


def plan_alignment(
    config: AlignConfig,
    args: ModelArgs,
    gpus: int,
    *,
    mfu: float = 0.4,
    peak_tflops: float = 989.0,
    price: float = 0.0,
    seconds_per_clip: Mapping[str, float] | None = None,
    parked: bool = False,
    parked_rewards: bool = False,
) -> dict[str, Any]:
    """A plan of every objective of the sequence on `gpus` ranks of torchrun, as JSON types.

    seconds_per_clip: measured ones of `decode` or a reward on one GPU, in place of those that follow from
    FLOPs. price: of one GPU for an hour. parked, parked_rewards: as of `beside.round_moments`. Raises
    ValueError for prompts that do not divide over the ranks, sizes that do not split into tokens, numbers out
    of range and names that are not there.
    """
    measured = dict(seconds_per_clip or {})
    names = [*config.rubric.weights(), *config.rubric.watched]
    _check(measured, [DECODE, *names], price)
    config.check_ranks(gpus)
    check_degree(args, config.parallel.context)
    media = ClipMedia(config.num_frames, config.height, config.width, config.fps)
    clip = clip_of(config, args)
    rates = _Rates(gpus, mfu, peak_tflops, measured)
    rates.model(0.0)
    networks = networks_of(args, media, list(config.rubric.weights()))
    rewards = rewards_of(networks)
    objectives = {objective.name: objective for objective in config.objectives()}
    beside = (networks, parked, parked_rewards)
    return {
        "gpus": gpus,
        "clip": {
            "frames": config.num_frames,
            "height": config.height,
            "width": config.width,
            "seconds": media.seconds,
            "tokens": clip.video + clip.audio,
        },
        "phases": {
            name: {
                **_phase(config, args, objective, networks, rates, price),
                **_memory(round_moments(config, args, objective, gpus, *beside)),
            }
            for name, objective in objectives.items()
        },
        "not_counted": [name for name in config.rubric.weights() if name not in {**rewards, **measured}],
        "networks_gib": {name: round(cost.weights / GIB, 3) for name, cost in networks.items()},
        "parked": parked,
        "parked_rewards": parked_rewards,
        "assumptions": [
            *assumptions(config, mfu, peak_tflops, measured),
            beside_line(args, parked, parked_rewards),
            *_reuse(config),
        ],
    }


class _Rates:
    """Seconds of work that all GPUs share."""

    def __init__(self, gpus: int, mfu: float, peak_tflops: float, measured: Mapping[str, float]) -> None:
        self.gpus, self.mfu, self.peak, self.measured = gpus, mfu, peak_tflops, measured

    def model(self, flops: float) -> float:
        return step_seconds(flops, self.gpus, self.mfu, self.peak)

    def network(self, name: str, costs: Sequence[NetworkCost], clips: float) -> float:
        if name in self.measured:
            return self.measured[name] * clips / self.gpus
        shares = (cost.flops / (1.0 if cost.half else FP32_SHARE) for cost in costs)
        return self.model(clips * sum(shares))


def _phase(
    config: AlignConfig,
    args: ModelArgs,
    objective: Objective[Any],
    networks: NetworkCosts,
    rates: _Rates,
    price: float,
) -> dict[str, Any]:
    work, rewards = round_work(config, args, objective), rewards_of(networks)
    clips = work.scored_clips
    decode = list(decoders_of(networks).values())
    parts = {
        "rollout": (work.rollout_flops, rates.model(work.rollout_flops)),
        "held_out": (work.held_out_flops, rates.model(work.held_out_flops)),
        DECODE: (clips * sum(cost.flops for cost in decode), rates.network(DECODE, decode, clips)),
        **{
            f"reward {name}": (clips * cost.flops, rates.network(name, [cost], clips))
            for name, cost in rewards.items()
        },
        **{
            f"reward {name}": (0.0, rates.network(name, [], clips))
            for name in rates.measured
            if name not in {*rewards, DECODE}
        },
        "update": (work.update_flops, rates.model(work.update_flops)),
    }
    seconds = sum(each for _, each in parts.values())
    hours = seconds * rates.gpus / HOUR_S
    rounds = objective.phase.rounds
    return {
        "rounds": rounds,
        "clips_per_round": objective.phase.clips_per_round,
        "held_out_clips_per_round": work.held_out_clips,
        "parts": {
            name: {
                "flops": flops,
                "seconds": each,
                "share": each / seconds,
                "cost": hours * price * each / seconds,
            }
            for name, (flops, each) in parts.items()
        },
        "round": {"seconds": seconds, "gpu_hours": hours, "cost": hours * price},
        "phase": {
            "hours": rounds * seconds / HOUR_S,
            "gpu_hours": rounds * hours,
            "cost": rounds * hours * price,
        },
    }


def _memory(moments: PartsByMoment) -> dict[str, Any]:
    """GiB per GPU at the peak of each part of a round, and on which sizes of GPU all of them fit."""
    sizes = {name: sum(parts.values()) for name, parts in moments.items()}
    peaks = {
        "rollout": sizes["rollout"],
        **({ENCODE_TEXT: sizes[TEXT]} if TEXT in sizes else {}),
        **({DECODE: max(sizes[name] for name in DECODERS)} if TEXT in sizes else {}),
        **{
            f"reward {name}": size
            for name, size in sizes.items()
            if name not in ("rollout", "update", TEXT, *DECODERS)
        },
        "update": sizes["update"],
    }
    peak = max(peaks.values())
    return {
        "memory_per_gpu_gib": {name: round(size / GIB, 3) for name, size in peaks.items()},
        "peak_gib": round(peak / GIB, 3),
        "fits": {f"{size}_gb": peak <= size * 1e9 for size in LIMITS_GB},
    }


def beside_line(args: ModelArgs, parked: bool, parked_rewards: bool | None) -> str:
    """What is assumed of the networks beside the model, for the reader. parked_rewards: None = no rewards."""
    codec = (
        f"the published codec's, {'parked' if parked else 'on the GPU from their first use on'}"
        if has_published_codec(args)
        else "none of a codec, since the embedded one computes on the CPU"
    )
    kept = "parked but for SyncNet's" if parked_rewards else "on the GPU throughout"
    rewards = f"; published rewards', {kept}, {SCORED_TOGETHER} clips at most scored together"
    return (
        f"networks beside the model: {codec}{'' if parked_rewards is None else rewards}; parked ones are on "
        "the GPU only while they work; not counted: the speaker's network, first frames"
    )


def assumptions(
    config: AlignConfig, mfu: float, peak_tflops: float, measured: Mapping[str, float]
) -> list[str]:
    """What the numbers rest on, for the reader."""
    checkpointing = config.parallel.activation_checkpointing
    given = f"{', '.join(measured)} as given" if measured else "none is given by --seconds-per-clip"
    return [
        "ranks of torchrun: every GPU rolls out, decodes, scores and learns in turn; Ray overlaps these",
        "all prompts have the recipe's length and size, a voice and 512 text states; held-out prompts are "
        f"scored every {config.stop.every} rounds by the deployed sampler, with their share in every round",
        f"FLOPs are matmuls and convolutions; {checkpointing} checkpointing, whose recomputation is counted",
        f"times follow from FLOPs at {mfu:.0%} of {peak_tflops:g} TFLOP/s per GPU, of fp32 networks of "
        f"{FP32_SHARE:.1%} of that: stated, not measured; measured seconds: {given}",
        "not in it: texts' encoding, face detection, spectra and resampling on the host, loops over tokens, "
        "judges, gathers, checkpoints",
    ]


def _reuse(config: AlignConfig) -> list[str]:
    """A line for each sampler with a feature cache."""
    plans = {f"{one.name}.sampler": one.rollout() for one in config.objectives()}
    samplers = {name: plan.sampler for name, plan in plans.items() if plan}
    return [
        f"{name}: {sampler.steps - sampler.reused_steps} of {sampler.steps} steps compute the blocks, the "
        f"others reuse features (cache.sigma_drop {sampler.cache.sigma_drop:g})"
        for name, sampler in {**samplers, "generate.sampler": config.deployed}.items()
        if sampler.cache.enabled
    ]


def _check(measured: Mapping[str, float], names: Sequence[str], price: float) -> None:
    for name, seconds in measured.items():
        if name not in names:
            raise ValueError(f"--seconds-per-clip {name}: no part of a round; {nearest(name, names)}")
        if not 0 <= seconds < math.inf:
            raise ValueError(f"--seconds-per-clip {name}: must not be negative, got {seconds:g}")
    if not 0 <= price < math.inf:
        raise ValueError(f"--price must not be negative, got {price:g}")
