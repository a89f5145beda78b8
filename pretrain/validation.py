"""Validation loss per modality and level bucket: the same noise, levels and samples at every validation."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from pretrain.dropout import NO_DROPOUT
from pretrain.flow.path import LevelConfig
from pretrain.model.shell import AVTransformer
from pretrain.objective import ObjectiveConfig, corrupt, velocity_loss
from pretrain.types import AVBatch

LEVEL_BUCKETS = (0.1, 0.3, 0.5, 0.7, 0.9)  # centres; a bucket is its centre +- 0.1
VALIDATION_SEED = 20_260_530


def validation_sums(model: AVTransformer, batches: Iterable[AVBatch], objective: ObjectiveConfig) -> dict[str, Tensor]:
    """Unweighted squared errors and element counts, keyed `video/0.1/sum`, `video/0.1/count`, ...; fp64, add them over ranks.

    Every sample is seen once, at the bucket its position gives; nothing is dropped. Run it with the weights to be judged.
    """
    config = replace(objective, levels=LevelConfig(weight="flat"), dropout=NO_DROPOUT)
    sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), dtype=torch.float64))
    with torch.no_grad():
        for position, batch in enumerate(batches):
            centre = LEVEL_BUCKETS[position % len(LEVEL_BUCKETS)]
            levels = torch.full((len(batch.sample_ids),), centre, device=batch.sample_ids.device)
            corrupted = corrupt(batch, config, VALIDATION_SEED, levels)
            result = velocity_loss(model(corrupted.video, corrupted.audio, corrupted.conditioning), corrupted)
            for name, total, count in (("video", result.video, result.video_count), ("audio", result.audio, result.audio_count)):
                sums[f"{name}/{centre}/sum"] += total.double().cpu()
                sums[f"{name}/{centre}/count"] += count.cpu()
    return dict(sums)


def validation_losses(sums: dict[str, Tensor]) -> dict[str, float]:
    """Sums (of all ranks) -> `validation/video/0.1`: mean squared error per element; buckets without elements are left out."""
    buckets = sorted(key.removesuffix("/sum") for key in sums if key.endswith("/sum"))
    return {f"validation/{key}": float(sums[f"{key}/sum"] / sums[f"{key}/count"]) for key in buckets if sums[f"{key}/count"] > 0}
