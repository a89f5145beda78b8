"""Model FLOPs of what a step computes, from the shapes of its micro-batches."""

from __future__ import annotations

from functools import lru_cache

from pretrain.model.args import ModelArgs
from pretrain.model.flops import ClipShape, frozen_training_flops, training_flops
from pretrain.objective import Corrupted


def batch_flops(args: ModelArgs, batch: Corrupted, frozen: bool = False) -> int:
    """Forward and backward of a micro-batch that is still on the host, padding included as it is computed.

    What activation checkpointing computes again is not counted (MFU, not HFU). frozen: the weights get no
    gradient, as under an adapter (`frozen_training_flops`).
    """
    video, audio, given = batch.video, batch.audio, batch.conditioning
    frames, rows, columns = video.latents.shape[2:] if video else (0, 0, 0)
    clips = len(given.text)
    joined = int(given.modalities_joined.sum()) if video and audio else clips
    sizes = (
        frames * (rows // args.patch_size) * (columns // args.patch_size),
        audio.latents.shape[2] if audio else 0,
        given.text.shape[1],
        given.speakers.shape[1],
        video.sigma.shape[1] if video else 1,
    )
    together = joined * _clip(args, *sizes, True, frozen) if joined else 0
    return together + (clips - joined) * _clip(args, *sizes, False, frozen) if joined < clips else together


@lru_cache(maxsize=4096)
def _clip(
    args: ModelArgs,
    video: int,
    audio: int,
    context: int,
    references: int,
    levels: int,
    joined: bool,
    frozen: bool,
) -> int:
    shape = ClipShape(
        video=video, audio=audio, context=context, references=references, video_levels=levels, joined=joined
    )
    return frozen_training_flops(args, shape) if frozen else training_flops(args, shape)
