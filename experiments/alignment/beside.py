"""The networks that share a GPU with the model while it generates or is aligned: the published codec's, and
the rewards'."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from experiments.alignment.networks import (
    ClipMedia,
    NetworkCost,
    audio_decode_cost,
    reward_cost,
    text_encoder_cost,
    video_decode_cost,
)
from finetune.objectives.base import Objective
from finetune.plan_round import round_memory
from finetune.recipe import AlignConfig
from pretrain.model.args import ModelArgs
from pretrain.model.flops import ClipShape
from pretrain.model.plan_beside import Beside, PartsByMoment, moments_beside
from pretrain.model.plan_memory import STATES, memory_parts
from pretrain.model.plan_setup import Setup
from pretrain.progress import track
from rewards.catalog import CATALOG
from rewards.recipes.base import ParkedOptions

NetworkCosts = Mapping[str, NetworkCost]
DECODERS, TEXT = ("video", "audio"), "text"
DECODE = "decode"
TEXT_WIDTH = 4096  # of umT5's states: a model that takes another width has another codec
TEXTS_TOGETHER = 32  # prompts that the text encoder takes at once, at most
SCORED_TOGETHER = 8  # clips of a rank in a pass of a reward's network, at most


def has_published_codec(args: ModelArgs) -> bool:
    """Whether a model's texts are umT5's, and so its codec the published one."""
    return args.text_width == TEXT_WIDTH


def networks_of(args: ModelArgs, media: ClipMedia, rewards: Sequence[str] = ()) -> dict[str, NetworkCost]:
    """Of the codec (`text`, `video`, `audio`) and of those of `rewards` that have a network here.

    The embedded codec, which computes on the CPU, has none.
    """
    codec = {
        "video": partial(video_decode_cost, media),
        "audio": partial(audio_decode_cost, media),
        TEXT: text_encoder_cost,
    }
    jobs = codec if has_published_codec(args) else {}
    jobs = {**jobs, **{name: partial(reward_cost, name, media) for name in rewards}}
    counted = track(jobs.items(), len(jobs), "networks counted, without weights") if jobs else ()
    return {name: cost for name, job in counted if (cost := job())}


def decoders_of(networks: NetworkCosts) -> dict[str, NetworkCost]:
    return {name: cost for name, cost in networks.items() if name in DECODERS}


def rewards_of(networks: NetworkCosts) -> dict[str, NetworkCost]:
    return {name: cost for name, cost in networks.items() if name not in (*DECODERS, TEXT)}


def generation_moments(
    args: ModelArgs, clip: ClipShape, setup: Setup, networks: NetworkCosts
) -> PartsByMoment:
    """Bytes per GPU by part, in a step of the sampler, while texts are encoded and while clips are decoded.

    Texts and sounds of a batch go through their networks together, pictures clip by clip.
    """
    step = memory_parts(args, clip, setup)
    waiting = {"parameters": step["parameters"]}
    return moments_beside({"step": step}, waiting, _codec(networks, setup.parked, max(1, setup.local_batch)))


def round_moments(
    config: AlignConfig,
    args: ModelArgs,
    objective: Objective[Any],
    gpus: int,
    networks: NetworkCosts,
    parked: bool = False,
    parked_rewards: bool = False,
) -> PartsByMoment:
    """Bytes per GPU by part while a round rolls out, encodes texts, decodes, scores and updates.

    Keys: `rollout`, `update`, `text`, `video`, `audio` and the rewards' names. parked: the codec's networks
    are on the GPU only while they work; parked_rewards: the rewards', but for those that cannot be parked.
    """
    steps = round_memory(config, args, objective, gpus)
    rolling, plan = steps["rollout"], objective.rollout()
    clips = plan.prompts * plan.clips_per_prompt if plan else 0
    waiting = {name: rolling[name] for name in (*STATES, "gathered_parameters") if name in rolling}
    together = min(SCORED_TOGETHER, max(1, math.ceil(clips / gpus)))
    texts = _texts(config, objective, gpus)
    beside = _codec(networks, parked, together, texts) | {
        name: Beside("rewards", cost.weights, together * cost.peak, parked_rewards and _can_be_parked(name))
        for name, cost in rewards_of(networks).items()
    }
    return moments_beside(steps, waiting, beside)


def _codec(networks: NetworkCosts, parked: bool, together: int, texts: int = 0) -> dict[str, Beside]:
    """together: clips that are decoded at once; texts: that are encoded at once, 0 = one of each clip."""
    at_once = {"video": 1, "audio": together, TEXT: min(TEXTS_TOGETHER, texts or together)}
    return {
        name: Beside(
            "text_encoder" if name == TEXT else "video_and_audio_codec",
            cost.weights,
            at_once[name] * cost.peak,
            parked,
        )
        for name, cost in networks.items()
        if name in at_once
    }


def _texts(config: AlignConfig, objective: Objective[Any], gpus: int) -> int:
    """Prompts of one rank, in a round or held out."""
    plan = objective.rollout()
    groups = max(1, gpus // config.parallel.context)
    return max(1, math.ceil(max(plan.prompts if plan else 0, config.stop.prompts) / groups))


def _can_be_parked(reward: str) -> bool:
    return issubclass(CATALOG[reward].options, ParkedOptions)
