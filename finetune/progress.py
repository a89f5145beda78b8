"""Progress of an alignment between two rounds."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from typing import Self


@dataclass
class AlignProgress:
    """The non-tensor state of a checkpoint."""

    rounds: int = 0  # finished, over all phases
    phase: int = -1  # index of the phase that has begun
    phase_rounds: int = 0  # finished in it
    flat_rounds: int = 0  # in a row without contrast
    skipped: int = 0
    skipped_in_a_row: int = 0
    best_total: float | None = None
    best_round: int = 0
    without_better: int = 0
    # the first scoring of the held-out prompts: their ids (groups of a rollout), and a reward's or judge's
    # values in that order, None where there was none
    prompts: list[int] = field(default_factory=list)
    rewarded: dict[str, list[float | None]] = field(default_factory=dict)
    judged: dict[str, list[float | None]] = field(default_factory=dict)
    # of runs that an earlier version began: reward -> mean and deviation then, in place of its values
    baseline: dict[str, list[float]] = field(default_factory=dict)

    @property
    def scored(self) -> bool:
        """The held-out prompts have been scored."""
        return bool(self.prompts or self.baseline)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Parse the progress of a checkpoint; unknown fields are ignored."""
        known = {item.name for item in fields(cls)}
        return cls(**{name: value for name, value in json.loads(text).items() if name in known})
