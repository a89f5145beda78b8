"""What the loop of an alignment needs done: by the ranks themselves (`local_executor`), or by workers
elsewhere (`orchestration.executor`).

The loop holds phases, advantages and progress; an executor holds the policy and the clips.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from torch import Tensor

from finetune.progress import AlignProgress
from finetune.types import Advantage

SAMPLES = "samples"  # folder of the clips that are written
HELD_OUT_KEY = "aside"  # of the draws for held-out prompts: another word would be other noise


class Stopped(Exception):
    """A signal came; what had begun is left out."""


class RestoredFromCheckpoint(Exception):
    """Ranks were lost and stand at the newest checkpoint again; the rounds since are to be repeated."""


@dataclass(frozen=True)
class RoundScores:
    """The rewards of all clips of a round, in the order of the ranks that learn from them."""

    groups: Tensor  # [N] int64, never through floats
    values: Mapping[str, Tensor]  # each reward of the rubric [N] fp64, NaN where there is none
    means: Mapping[str, float]  # of everything that was measured
    reasons: Mapping[str, str] = field(default_factory=dict)  # reward -> why some clip has no value


class Executor(Protocol):
    """`place` is a phase's index in the sequence, `index` a round's over all phases. In a round the calls
    come in the order `collect`, `learn`, `update_old` where the objective wants it, `publish`. A raise before
    `learn` leaves the policy as it was. Any may raise RestoredFromCheckpoint."""

    def load(self) -> AlignProgress:
        """Restore the newest checkpoint; a fresh AlignProgress where there is none."""
        ...

    def save(self, progress: AlignProgress) -> None:
        """Write a checkpoint. Raises OSError in one line; those before stay."""
        ...

    def begin_phase(self, place: int) -> None:
        """`old` is `default`, moments are zero, the phase's learning rate."""
        ...

    def collect(self, place: int, index: int, first: int) -> tuple[RoundScores | None, dict[str, float]]:
        """Roll out and score round `index` of a phase that began with round `first`, and keep its clips for
        `learn`; no scores where the objective's batches are given. Also the seconds of `rollout` and `score`.

        Raises Stopped after a signal, ValueError where a reward failed.
        """
        ...

    def learn(self, place: int, index: int, advantage: Advantage | None) -> Mapping[str, float]:
        """All optimizer steps of the round; its metrics. advantage: of all clips, None where batches are
        given."""
        ...

    def update_old(self, decay: float) -> None: ...

    def publish(self, place: int, rounds: int) -> None:
        """Make the weights after `rounds` rounds known to what rolls out next."""
        ...

    def score_held_out(self, rounds: int) -> RoundScores | None:
        """One clip of each held-out prompt by the averaged weights, always from the same noise; None where
        there are no such prompts."""
        ...

    def keep_best(self) -> None:
        """The averaged weights are the best that were scored, where stopping early asks for them."""
        ...

    def take_written(self) -> list[Path]:
        """Sample clips written since the last call."""
        ...

    def export(self, progress: AlignProgress) -> str:
        """Write out/adapter and out/model of the best or else the averaged weights; the model's id, on the
        rank that wrote it."""
        ...

    def close(self) -> None: ...
