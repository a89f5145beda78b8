"""Structured dropout of the conditions that guidance drops at sampling (nava.md, sections 3 and 4)."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from pretrain.randomness import generator_for
from pretrain.tasks import TASKS
from pretrain.types import AVBatch


@dataclass(frozen=True, kw_only=True)
class DropoutConfig:
    """Probabilities, drawn per sample. Raises ValueError outside [0, 1]."""

    text: float = 0.1  # drop the text and its timbre tokens
    modality_mask: float = 0.2  # keep the modalities apart in every block
    timbre_kept: float = 0.9  # keep the reference voices
    first_frame: float = 0.5  # give the first frame clean, in tasks that allow it

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if not 0 <= value <= 1:
                raise ValueError(f"dropout.{item.name} is a probability, got {value}; set 0 to 1")


NO_DROPOUT = DropoutConfig(text=0.0, modality_mask=0.0, timbre_kept=1.0, first_frame=1.0)


@dataclass(frozen=True)
class Dropped:
    """What remains of each sample's conditions; every field [B] bool."""

    text_kept: Tensor
    modalities_joined: Tensor
    timbre_kept: Tensor
    first_frame_given: Tensor


def draw_dropout(batch: AVBatch, config: DropoutConfig, seed: int) -> Dropped:
    """Draws keyed by (seed, sample, epoch): the same on any rank."""
    spec = TASKS[batch.task]
    rows = []
    for sample, epoch in zip(batch.sample_ids.tolist(), batch.epochs.tolist(), strict=True):
        text, mask, timbre, frame = torch.rand(
            4, generator=generator_for(seed, sample, epoch, "dropout")
        ).tolist()
        rows.append(
            (
                text >= config.text,
                mask >= config.modality_mask,
                spec.timbre and timbre < config.timbre_kept,
                spec.first_frame and frame < config.first_frame,
            )
        )
    columns = torch.tensor(rows, dtype=torch.bool, device=batch.sample_ids.device).unbind(1)
    return Dropped(*columns)
