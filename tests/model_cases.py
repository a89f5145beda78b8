"""Small models and batches for tests."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

from pretrain.model.flavors import build_model, flavor
from pretrain.model.shell import AVTransformer
from pretrain.types import AVBatch, CleanStream, Conditioning, Stream, Task

T = TypeVar("T")


def present(value: T | None) -> T:
    """The value of a modality the test put there."""
    assert value is not None
    return value


def debug_model(seed: int = 0, name: str = "debug") -> AVTransformer:
    """A debug model whose zero-initialised heads are filled, so that outputs say something."""
    torch.manual_seed(seed)
    model = build_model(flavor(name))
    model.init_weights()
    for head in (model.head, model.head_audio):
        torch.nn.init.normal_(head.linear.weight, std=0.2)
    return model


def conditioning(batch: int = 2, tokens: int = 9, references: int = 2, seed: int = 0) -> Conditioning:
    generator = torch.Generator().manual_seed(seed)
    everywhere = torch.ones(batch, dtype=torch.bool)
    return Conditioning(
        text=torch.randn(batch, tokens, 256, generator=generator),
        text_mask=torch.ones(batch, tokens, dtype=torch.bool),
        speakers=torch.randn(batch, references, 192, generator=generator),
        speaker_positions=torch.arange(1, 1 + 3 * references, 3).expand(batch, -1).clone(),
        text_kept=everywhere,
        modalities_joined=everywhere,
    )


def video_stream(batch: int = 2, frames: int = 3, seed: int = 1, sigma: float = 0.6) -> Stream:
    latents = torch.randn(batch, 48, frames, 4, 4, generator=torch.Generator().manual_seed(seed))
    return Stream(latents, torch.full((batch,), frames), torch.full((batch, 1), sigma), 6.0, 6.0)


def audio_stream(batch: int = 2, tokens: int = 10, seed: int = 2, sigma: float = 0.6) -> Stream:
    latents = torch.randn(batch, 128, tokens, generator=torch.Generator().manual_seed(seed))
    return Stream(latents, torch.full((batch,), tokens), torch.full((batch, 1), sigma), 25.0, 6.0)


def clean_batch(
    task: Task = Task.T2AV, batch: int = 4, frames: int = 3, tokens: int = 10, seed: int = 3
) -> AVBatch:
    generator = torch.Generator().manual_seed(seed)

    def clean(shape: tuple[int, ...], rate_hz: float) -> CleanStream:
        latents: Tensor = torch.randn(batch, *shape, generator=generator)
        return CleanStream(latents, torch.full((batch,), shape[1]), rate_hz)

    return AVBatch(
        task,
        clean((48, frames, 4, 4), 6.0),
        clean((128, tokens), 25.0),
        conditioning(batch),
        torch.arange(batch),
        torch.zeros(batch, dtype=torch.int64),
        6.0,
    )
