"""Which steps of a sampling compute the model's blocks, and which reuse what the blocks answered before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class FeatureCacheConfig:
    """sigma_drop: a step reuses the features of an earlier one until sigma has dropped by this much.

    0 computes every step, 1 the first and the last alone. Raises ValueError outside [0, 1].
    """

    sigma_drop: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.sigma_drop <= 1:
            raise ValueError(
                f"sigma_drop must be from 0 (every step is computed) to 1, got {self.sigma_drop}"
            )

    @property
    def enabled(self) -> bool:
        return self.sigma_drop > 0


def computed_steps(sigmas: Sequence[float], config: FeatureCacheConfig) -> list[bool]:
    """For every step from sigmas[i] to sigmas[i + 1]: whether it computes, False = it reuses.

    The first and the last step compute, and each whose sigma lies `sigma_drop` or more below that of the last
    one that did: what a held feature is wrong by grows with that distance, as does the length of the step
    that it is used for. It is a function of the schedule alone: the same for every clip, batch, guidance
    direction and rank, so that a clip does not depend on its neighbours and ranks enter the same collectives.
    """
    last, held = len(sigmas) - 2, float("inf")
    computed: list[bool] = []
    for index, sigma in enumerate(sigmas[:-1]):
        computed.append(index in (0, last) or held - sigma >= config.sigma_drop)
        held = sigma if computed[-1] else held
    return computed
