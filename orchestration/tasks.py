"""What goes between the driver and the workers: which clips to make, the clips, what was said of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from finetune.prompts import share
from finetune.recipe import AlignConfig, Phase
from finetune.scores import Scores
from finetune.types import Key, Role, Rollout
from pretrain.prompt import PromptRow


@dataclass(frozen=True)
class ClipTask:
    """Clips `start` to `end` of a rank's share of the prompts: what that rank would make in one go. Pure: made again, it gives the same."""

    phase: int  # its place in the sequence
    key: Key  # what every draw begins with
    rank: int
    rows: tuple[PromptRow, ...]  # the rank's share
    clips_per_prompt: int
    start: int
    end: int
    role: Role
    version: str  # of the weights
    stochastic: bool  # steps that grpo trains, where the phase asks for them

    @property
    def prompts(self) -> list[PromptRow]:
        """A row for each clip."""
        return [self.rows[place // self.clips_per_prompt] for place in range(self.start, self.end)]


@dataclass(frozen=True)
class Origin:
    """Which process did it, and in how many seconds: another process of the same worker means that it was lost in between."""

    worker: str
    process: int
    seconds: float


@dataclass(frozen=True)
class Made:
    """The clips of a task."""

    rollout: Rollout
    version: str
    origin: Origin


@dataclass(frozen=True)
class Scored:
    """What a pool says of the clips of a task."""

    scores: Scores
    groups: Tensor  # [n] int64
    sample_ids: Tensor  # [n] int64, of the clips that were there to be scored
    version: str
    origins: tuple[Origin, Origin]  # of the clips and of the scores


def clip_tasks(
    rows: Sequence[PromptRow], world_size: int, clips_per_prompt: int, config: AlignConfig, place: int, key: Key, role: Role, version: str,
    stochastic: bool = True,
) -> Iterator[ClipTask]:  # fmt: skip
    """The tasks of these prompts in the order of the ranks that learn from them; batches are those of the ranks themselves."""
    phase: Phase = config.phases[place][1]
    for rank in range(world_size):
        mine = tuple(share(rows, rank, world_size))
        total = len(mine) * clips_per_prompt
        for start in range(0, total, phase.rollout_batch):
            end = min(start + phase.rollout_batch, total)
            yield ClipTask(place, key, rank, mine, clips_per_prompt, start, end, role, version, stochastic)
