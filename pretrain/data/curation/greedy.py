"""Facility location by submodlib's lazy greedy choice, over a kernel that fits in memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def choose(worth: np.ndarray, budget: int) -> list[int]:
    """Sorted indices of the selected columns of `worth` [clips represented, candidates]; all if they fit."""
    from submodlib import FacilityLocationFunction  # slow to import

    count = worth.shape[1]
    if budget >= count:
        return list(range(count))
    kernel = np.ascontiguousarray(worth, dtype=np.float32)
    function = FacilityLocationFunction(
        n=count, mode="dense", separate_rep=True, n_rep=len(kernel), sijs=kernel
    )
    greedy = function.maximize(budget=budget, optimizer="LazyGreedy", verbose=False, show_progress=False)
    return sorted(int(index) for index, _ in greedy)


def facility_location(worth: np.ndarray, chosen: Sequence[int]) -> float:
    """f(S): how much of everything the chosen clips stand for."""
    return float(worth[:, list(chosen)].max(axis=1).sum())
