"""Terms that hold the trained policy near another one, for rwr and awm.

weight * share * mean((v - v_other)^2) for each modality
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from finetune.noising import mean_square, metric, velocities
from finetune.types import Policy, Role
from pretrain.types import Conditioning, Stream


@dataclass(frozen=True)
class Anchor:
    """Velocities (video, audio) of a policy, without gradient, and the weight of the distance from them."""

    weight: float
    velocities: tuple[Tensor, Tensor]


def anchor(
    policy: Policy, role: Role, weight: float, streams: tuple[Stream, Stream], conditioning: Conditioning
) -> Anchor:
    """One forward pass without gradient."""
    with torch.no_grad():
        return Anchor(weight, velocities(policy, role, streams, conditioning))


def held(
    per_clip: Tensor, now: Tensor, anchors: Mapping[Role, Anchor], modality: int, share: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """per_clip [B] with the terms of one modality added, and the distances [B] by role.

    now [B, ...]: the trained policy's velocity; modality: 0 video, 1 audio.
    """
    distances: dict[str, Tensor] = {}
    for role, near in anchors.items():
        distances[role] = mean_square(now - near.velocities[modality])
        per_clip = per_clip + near.weight * share * distances[role]
    return per_clip, distances


def distance_metrics(distances: Mapping[str, Tensor], name: str, valid: Tensor) -> dict[str, Tensor]:
    """`from_ROLE_NAME` of valid clips."""
    return {f"from_{role}_{name}": metric(away, valid) for role, away in distances.items()}
