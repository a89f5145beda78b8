"""The interface between the alignment loop and its executors (`local_executor`, `orchestration.executor`).

The loop owns phases, advantages and progress; an executor owns the policy and the clips.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from torch import Tensor

from finetune.progress import AlignProgress
from finetune.types import Advantage

SAMPLES = "samples"  # folder of sample clips
HELD_OUT_KEY = "aside"  # seed key of held-out prompts; another word would give other noise


class Stopped(Exception):
    """A stop signal was received; unfinished work is discarded."""


class RestoredFromCheckpoint(Exception):
    """Ranks were lost and restored from the newest checkpoint; the rounds since must be repeated."""


@dataclass(frozen=True)
class RoundScores:
    """Rewards of all clips of a round, in the order of the learning ranks."""

    groups: Tensor  # [N] int64, never through floats
    values: Mapping[str, Tensor]  # each reward of the rubric [N] fp64, NaN where there is none
    means: Mapping[str, float]  # of everything that was measured
    reasons: Mapping[str, str] = field(default_factory=dict)  # reward -> why some clip has no value
    # rubric.watched of held-out prompts [N] fp64, higher is better
    judges: Mapping[str, Tensor] = field(default_factory=dict)


class Executor(Protocol):
    """Executes the steps of a round.

    `place` is a phase's index in the sequence, `index` a round's over all phases. Per round the calls are
    `collect`, `learn`, `update_old` if the objective uses it, `publish`. An exception before `learn` leaves
    the policy unchanged. Any call may raise RestoredFromCheckpoint.
    """

    def load(self) -> AlignProgress:
        """Restore the newest checkpoint; a fresh AlignProgress where there is none."""
        ...

    def save(self, progress: AlignProgress) -> None:
        """Write a checkpoint. Raises OSError in one line; earlier ones are kept."""
        ...

    def begin_phase(self, place: int) -> None:
        """Set `old` to `default`, reset moments, set the phase's learning rate."""
        ...

    def collect(self, place: int, index: int, first: int) -> tuple[RoundScores | None, dict[str, float]]:
        """Roll out and score round `index` of a phase that began at round `first`; keeps clips for `learn`.

        No scores if the objective uses given batches. Also returns the seconds of `rollout` and `score`.
        Raises Stopped after a signal, ValueError where a reward failed.
        """
        ...

    def learn(self, place: int, index: int, advantage: Advantage | None) -> Mapping[str, float]:
        """All optimizer steps of the round; returns its metrics.

        advantage: of all clips, None for given batches.
        """
        ...

    def update_old(self, decay: float) -> None: ...

    def publish(self, place: int, rounds: int) -> None:
        """Publish the weights after `rounds` rounds to the rollout workers."""
        ...

    def score_held_out(self, rounds: int) -> RoundScores | None:
        """Scores of one clip per held-out prompt by the averaged weights, always from the same noise.

        `groups` says which prompts: their order depends on the number of ranks. The judges measure too.

        None without held-out prompts.
        """
        ...

    def keep_best(self) -> None:
        """Record the averaged weights as the best scored ones, if early stopping is enabled."""
        ...

    def take_written(self) -> list[Path]:
        """Sample clips written since the last call."""
        ...

    def export(self, progress: AlignProgress) -> str:
        """Write out/adapter and out/model of the best (else averaged) weights; the model's id on rank 0."""
        ...

    def close(self) -> None: ...
