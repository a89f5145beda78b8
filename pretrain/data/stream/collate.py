"""Samples -> a dict of tensors (what torchtitan moves to a device) -> AVBatch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from pretrain.randomness import stable_hash
from pretrain.tasks import TASKS
from pretrain.types import AUDIO_TOKENS_PER_S, SPEAKER_DIM, AVBatch, CleanStream, Conditioning, Task


class SampleLike(Protocol):
    """What a latent store yields for one sample; video or audio may be absent (None)."""

    @property
    def data_id(self) -> str: ...
    @property
    def video(self) -> Tensor | None: ...  # [48, F, h, w]
    @property
    def audio(self) -> Tensor | None: ...  # [128, L]
    @property
    def video_rate_hz(self) -> float: ...
    @property
    def text(self) -> Tensor: ...  # [S, D]
    @property
    def speaker_positions(self) -> Tensor: ...  # [R]
    @property
    def speakers(self) -> Tensor: ...  # [R, 192]


CollatedBatch = dict[str, Tensor]


def collate(samples: Sequence[SampleLike], epochs: Sequence[int], task: Task) -> CollatedBatch:
    """One micro-batch of one task: the streams it generates, padded to the longest, with lengths."""
    spec = TASKS[task]
    batch = {
        "task": torch.tensor(list(Task).index(task)),
        "sample_ids": torch.tensor([stable_hash(sample.data_id) for sample in samples]),
        "epochs": torch.tensor(epochs),
        "video_rate_hz": torch.tensor(samples[0].video_rate_hz, dtype=torch.float64),
    }
    for name, wanted in (("video", spec.video), ("audio", spec.audio)):
        if wanted:
            batch[name], batch[f"{name}_lengths"] = _pad_time(
                [_latents(sample, name, task) for sample in samples]
            )
    batch["text"], text_lengths = _pad_rows([sample.text for sample in samples])
    batch["text_mask"] = torch.arange(batch["text"].shape[1]) < text_lengths[:, None]
    # one reference slot at least, on every rank: a rank without spans would not touch the timbre weights, and
    # FSDP's sums would not match
    speakers = [
        sample.speakers if len(sample.speakers) else torch.zeros(1, SPEAKER_DIM) for sample in samples
    ]
    positions = [
        sample.speaker_positions if len(sample.speaker_positions) else torch.tensor([-1])
        for sample in samples
    ]
    batch["speakers"], _ = _pad_rows(speakers)
    batch["speaker_positions"], _ = _pad_rows(positions, fill=-1)
    return batch


def to_av_batch(batch: Mapping[str, Tensor]) -> AVBatch:
    """The dict back as the typed batch."""
    task, size = list(Task)[int(batch["task"])], len(batch["sample_ids"])
    everyone = torch.ones(size, dtype=torch.bool, device=batch["text"].device)
    video_rate_hz = float(batch["video_rate_hz"])
    return AVBatch(
        task=task,
        video=CleanStream(batch["video"], batch["video_lengths"], video_rate_hz)
        if "video" in batch
        else None,
        audio=CleanStream(batch["audio"], batch["audio_lengths"], AUDIO_TOKENS_PER_S)
        if "audio" in batch
        else None,
        conditioning=Conditioning(
            batch["text"],
            batch["text_mask"],
            batch["speakers"],
            batch["speaker_positions"],
            text_kept=everyone,
            modalities_joined=everyone,
        ),
        sample_ids=batch["sample_ids"],
        epochs=batch["epochs"],
        video_rate_hz=video_rate_hz,
    )


def num_tokens(batch: Mapping[str, Tensor]) -> int:
    """Latent tokens of a micro-batch, padding included: 2x2 video latents are one token."""
    video = batch["video"][0, 0].numel() // 4 if "video" in batch else 0
    audio = batch["audio"].shape[-1] if "audio" in batch else 0
    return len(batch["sample_ids"]) * (video + audio)


def _latents(sample: SampleLike, name: str, task: Task) -> Tensor:
    latents = getattr(sample, name)
    if latents is None:
        raise ValueError(
            f"{sample.data_id}: task {task} needs {name}, this sample has none; take its set out of the "
            "stage's sets"
        )
    return latents


def _pad_time(latents: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Stack along a new batch axis, time (axis 1 of each) padded with zeros."""
    lengths = torch.tensor([item.shape[1] for item in latents])
    longest = int(lengths.max())
    if bool((lengths == longest).all()):
        return torch.stack(list(latents)), lengths
    out = latents[0].new_zeros(len(latents), latents[0].shape[0], longest, *latents[0].shape[2:])
    for row, item in zip(out, latents, strict=True):
        row[:, : item.shape[1]] = item
    return out, lengths


def _pad_rows(items: Sequence[Tensor], fill: int = 0) -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([len(item) for item in items])
    out = items[0].new_full((len(items), int(lengths.max()), *items[0].shape[1:]), fill)
    for row, item in zip(out, items, strict=True):
        row[: len(item)] = item
    return out, lengths
