"""Models with random weights and batches of random clips: they take the time of trained ones."""

from __future__ import annotations

import torch

from pretrain.data.stream.collate import collate, to_av_batch
from pretrain.data.stream.sample import Sample
from pretrain.model.args import ModelArgs
from pretrain.model.flavors import build_model
from pretrain.model.flops import ClipShape
from pretrain.model.shell import AVTransformer
from pretrain.sampling import lower_precision
from pretrain.types import (
    AUDIO_CHANNELS,
    PIXELS_PER_LATENT,
    SPEAKER_DIM,
    VIDEO_CHANNELS,
    AVBatch,
    Task,
    num_video_latents,
)


def random_model(args: ModelArgs, dtype: torch.dtype, device: torch.device) -> AVTransformer:
    """In `dtype` but for its time path. Its heads, which start at zero, are random: gradients of zero are no
    work to measure."""
    with torch.device("meta"):
        model = lower_precision(build_model(args), dtype)
    model.to_empty(device=device)
    model.init_weights()
    for head in (model.head, model.head_audio):
        torch.nn.init.normal_(head.linear.weight, std=0.02)
    return model


def compile_blocks(model: AVTransformer) -> None:
    """As training does where it compiles: block by block."""
    for group in model.block_groups():
        for block in group:
            block.compile()


def latent_sizes(frames: int, height: int, width: int) -> tuple[int, int, int]:
    """Frames, rows and columns of the latents of a clip in pixels."""
    return num_video_latents(frames), height // PIXELS_PER_LATENT, width // PIXELS_PER_LATENT


def random_clip(args: ModelArgs, shape: ClipShape, latents: tuple[int, int, int]) -> Sample:
    """One clip with a reference voice; `latents`: frames, rows, columns."""
    return Sample(
        "clip",
        torch.randn(VIDEO_CHANNELS, *latents),
        torch.randn(AUDIO_CHANNELS, shape.audio),
        6.0,
        torch.randn(shape.context, args.text_width),
        torch.tensor([1]),
        torch.randn(1, SPEAKER_DIM),
    )


def random_batch(clip: Sample, count: int, task: Task, device: torch.device) -> AVBatch:
    """`count` times the clip."""
    batch = collate([clip] * count, [0] * count, task)
    return to_av_batch({name: tensor.to(device) for name, tensor in batch.items()})
