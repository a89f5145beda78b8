"""What a data set and a training cost: hours of encoding, storage, GPU hours and money, from stated rates."""

from __future__ import annotations

import math
from typing import Any

from pretrain.launch.states import kept_steps
from pretrain.model.args import ModelArgs
from pretrain.model.flops import ClipShape
from pretrain.model.plan_sizes import model_moments, sizes_of
from pretrain.plan_schedule import clips_per_batch
from pretrain.recipe import PretrainConfig
from pretrain.types import SPEAKER_DIM

HOUR_S, DAY_H = 3600, 24
TB = 1e12
_WEIGHT_BYTES, _EMA_BYTES = 4, 4  # of a parameter: fp32 weights; their average


def plan_costs(
    args: ModelArgs,
    clip: ClipShape,
    pixels: int,
    config: PretrainConfig,
    gpus: int,
    days: float,
    *,
    clips: int | None,
    price: float,
    encode_pixels_per_s: float,
    latent_bytes: int,
) -> dict[str, Any]:
    """Of `clips` clips of `pixels` (frames x height x width) each and a training of `days` on `gpus`.

    clips: None = of the training alone, and what rests on their number is None. price: of one GPU for an
    hour, in any currency. encode_pixels_per_s: of one GPU's video encoder; 0 = not known, and then so are the
    hours of encoding. latent_bytes: of one latent value. Raises ValueError as `check_rates`.
    """
    check_rates(clips, price, encode_pixels_per_s)
    batches = sum(stage.steps * clips_per_batch(stage) for stage in config.stages.values())
    drawn = batches * config.global_batch_size
    encoding = clips * pixels / encode_pixels_per_s / HOUR_S if clips and encode_pixels_per_s else None
    training = days * DAY_H * gpus
    per_clip = clip_bytes(args, clip, latent_bytes)
    parameters = sizes_of(args).total
    average = _EMA_BYTES if config.ema_decay > 0 else 0
    moments = model_moments(args, config.optimizer.moments)
    state = parameters * (_WEIGHT_BYTES + average) + moments
    states = kept_states(config) + 1  # and one that is being written
    hours = training + (encoding or 0.0)
    return {
        "clips": clips,
        "times_each_clip_is_seen": drawn / clips if clips else None,
        "encode_pixels_per_s": encode_pixels_per_s or None,
        "gpu_hours": {"encoding": encoding, "training": training, "total": hours},
        "encoding_hours_on_all_gpus": None if encoding is None else encoding / gpus,
        "storage_tb": {
            "latents": clips * per_clip / TB if clips else None,
            "training_states": state * states / TB,
        },
        "states_kept": states - 1,
        "bytes_per_clip": per_clip,
        "price_per_gpu_hour": price,
        "cost": hours * price,
        "cost_leaves_out": [] if encoding is not None else ["encoding"],
    }


def check_rates(clips: int | None, price: float, encode_pixels_per_s: float) -> None:
    """Raises ValueError for numbers out of range, and for a rate of encoding without clips to encode."""
    too_few = clips is not None and clips < 1
    if too_few or not 0 <= price < math.inf or not 0 <= encode_pixels_per_s < math.inf:
        raise ValueError(
            "--clips must be at least 1, --price and --encode-pixels-per-s not negative, got "
            f"{'none' if clips is None else clips}, {price:g}, {encode_pixels_per_s:g}"
        )
    if clips is None and encode_pixels_per_s:
        raise ValueError("--encode-pixels-per-s: of which clips? give their number (--clips)")


def kept_states(config: PretrainConfig) -> int:
    """Training states that lie there when the last stage ends: of each stage, whose folder nothing empties,
    the `keep_last` newest and the multiples of `keep_every`."""
    saves, kept = config.checkpoint, 0
    for stage in config.stages.values():
        steps = sorted({*range(saves.interval, stage.steps + 1, saves.interval), stage.steps})
        kept += len(kept_steps(steps, saves.keep_last, saves.keep_every))
    return kept


def clip_bytes(args: ModelArgs, clip: ClipShape, latent_bytes: int) -> int:
    """Encoded: latents of both modalities, the text's states (fp16) at full length, one voice; an upper
    bound."""
    video = clip.video * args.video_channels * args.patch_size**2
    audio = clip.audio * args.audio_channels
    return latent_bytes * (video + audio) + 2 * clip.context * args.text_width + 4 * SPEAKER_DIM
