"""Whether the judges agree with the rewards on the held-out prompts during an alignment.

A reward that rises while a judge of the same thing falls is being exploited (alignment.md, section 3).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from pretrain.statistics import cluster_bootstrap

Judged = Mapping[str, Sequence[float | None]]  # judge -> a value per held-out prompt, higher is better


@dataclass(frozen=True)
class Change:
    """Mean change of a judge, or of how many clips it could score, over prompts; with its 95 % interval."""

    mean: float
    low: float
    high: float
    prompts: int

    @property
    def fell(self) -> bool:
        """The whole interval is below 0."""
        return self.high < 0


def listed(values: Mapping[str, Tensor]) -> dict[str, list[float | None]]:
    """Tensors [N] as JSON values, None for NaN. Raises ValueError for an infinite one."""
    for name, column in values.items():
        if bool(column.isinf().any()):
            raise ValueError(
                f"held-out prompts: {name} is infinite for some clip; a clip that cannot be scored is NaN"
            )
    return {
        name: [None if math.isnan(value) else value for value in column.tolist()]
        for name, column in values.items()
    }


def judge_changes(first: Judged, now: Judged) -> dict[str, Change]:
    """Change of each judge since the first scoring, over the prompts that it could score both times.

    The values of both are in one order of prompts. Judges without two such prompts are left out.
    """
    found = {}
    for name, pairs in _paired(first, now):
        moved = [b - a for a, b in pairs if a is not None and b is not None]
        if len(moved) > 1:
            found[name] = _change(moved)
    return found


def coverage_changes(first: Judged, now: Judged) -> dict[str, Change]:
    """Change of the share of prompts that each judge could score: what `judge_changes` cannot see."""
    found = {}
    for name, pairs in _paired(first, now):
        if len(pairs) > 1:
            found[name] = _change([float(b is not None) - float(a is not None) for a, b in pairs])
    return found


def alarms(total: float, changes: Mapping[str, Change], coverage: Mapping[str, Change]) -> list[str]:
    """Judges that fell, or could score fewer clips, although the rubric's total rose above that of the
    unaligned model."""
    fallen = [name for name in coverage if coverage[name].fell or (name in changes and changes[name].fell)]
    return fallen if total > 0 else []


def _paired(first: Judged, now: Judged) -> list[tuple[str, list[tuple[float | None, float | None]]]]:
    return [(name, list(zip(first[name], now[name], strict=True))) for name in sorted(first.keys() & now)]


def _change(moved: Sequence[float]) -> Change:
    values = np.array(moved, dtype=np.float64)
    low, high = cluster_bootstrap(values, np.arange(len(values)))
    return Change(float(values.mean()), low, high, len(values))
