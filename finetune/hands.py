"""What the loop of an alignment needs done: by the ranks themselves (`local_hands`), or by workers elsewhere
(`orchestration`).

The loop holds phases, judgement and progress; hands hold the policy and the clips, and see no more of a run
than a round at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from finetune.checkpoint import Progress
from finetune.recipe import Phase
from finetune.types import Advantage


class Stopped(Exception):
    """A signal came; what had begun is left out."""


class WentBack(Exception):
    """Ranks were lost and stand at the newest checkpoint again; what was played since is to be played
    anew."""


@dataclass(frozen=True)
class Said:
    """What the rewards say about all clips of a round, in the order of the ranks that have them."""

    groups: Tensor  # [N] int64, never through floats
    values: Mapping[str, Tensor]  # each reward of the rubric [N] fp64, NaN where there is none
    means: Mapping[str, float]  # of everything that was measured
    reasons: Mapping[str, str] = field(default_factory=dict)  # reward -> why some clip has no value


class Hands(Protocol):
    """Calls come in the order below, `roll_out` to `publish` once a round. A raise before `learn` leaves the
    policy as it was.

    `roll_out` and `score` raise Stopped after a signal, ValueError where a reward failed; any may raise
    WentBack.
    """

    def load(self) -> Progress:
        """Take up the newest checkpoint; a fresh Progress where there is none."""
        ...

    def save(self, progress: Progress) -> None:
        """Write a checkpoint. Raises OSError in one line; those before stay."""
        ...

    def begin_phase(self, phase: Phase) -> None:
        """`old` is `default`, moments are forgotten, the phase's learning rate."""
        ...

    def roll_out(self, name: str, phase: Phase, index: int, first: int) -> Any:
        """The clips of round `index` of a phase that began with round `first`, wherever they lie; only
        `score` and `learn` read them. For gsb_dpo its pairs."""
        ...

    def score(self, clips: Any) -> Said: ...

    def learn(
        self, name: str, phase: Phase, clips: Any, advantage: Advantage | None, index: int
    ) -> Mapping[str, float]:
        """All optimizer steps of the round. advantage: of all clips, None for pairs."""
        ...

    def update_old(self, decay: float) -> None: ...

    def publish(self, phase: Phase, rounds: int) -> None:
        """What rolls out next is known after `rounds` rounds."""
        ...

    def score_aside(self, rounds: int) -> Said | None:
        """The prompts set aside, one clip each by the averaged weights, always from the same noise; None
        where there are none."""
        ...

    def keep_best(self) -> None:
        """The averaged weights are the best that were scored, where stopping early asks for them."""
        ...

    def take_written(self) -> list[Path]:
        """Sample clips written since the last call."""
        ...

    def export(self, progress: Progress) -> str:
        """Write out/adapter and out/model of the best or else the averaged weights; the model's id, on the
        one that wrote it."""
        ...

    def close(self) -> None: ...
