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
    """Mean change of a judge over the prompts that it could score both times, with its 95 % interval."""

    mean: float
    low: float
    high: float
    prompts: int

    @property
    def fell(self) -> bool:
        """The whole interval is below 0."""
        return self.high < 0


def as_judged(judges: Mapping[str, Tensor]) -> dict[str, list[float | None]]:
    """Tensors [N] as JSON values, None for NaN."""
    return {
        name: [None if math.isnan(value) else value for value in values.tolist()]
        for name, values in judges.items()
    }


def judge_changes(first: Judged, now: Judged) -> dict[str, Change]:
    """Change of each judge since the first scoring, paired by prompt.

    Judges without two prompts that were scored both times are left out.
    """
    found = {}
    for name in first.keys() & now.keys():
        pairs = zip(first[name], now[name], strict=True)
        moved = np.array([b - a for a, b in pairs if a is not None and b is not None], dtype=np.float64)
        if len(moved) > 1:
            low, high = cluster_bootstrap(moved, np.arange(len(moved)))
            found[name] = Change(float(moved.mean()), low, high, len(moved))
    return dict(sorted(found.items()))


def alarms(total: float, changes: Mapping[str, Change]) -> list[str]:
    """Judges that fell although the rubric's total rose above that of the unaligned model."""
    return [name for name, change in changes.items() if total > 0 and change.fell]
