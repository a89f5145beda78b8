"""Stages of the schedule, and the draw that gives all ranks the same task per step (nava.md, section 3)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from pretrain.config import nearest
from pretrain.randomness import stable_hash
from pretrain.types import Task

_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """One stage as data: how long, on which sets, with which mix of tasks, at which learning rate.

    The ratio audio-only : audio-visual is the weight of T2A against the other tasks.
    Raises ValueError on unknown tasks, weights that are negative or all zero, and tasks without a set to draw
    from.
    """

    name: str = "stage1"
    steps: int = 1000
    tasks: Mapping[str, float] = field(default_factory=lambda: {"T2A": 3.0, "T2AV": 0.5, "TI2AV": 0.5})
    sets: Mapping[str, float] = field(default_factory=lambda: {"paired": 1.0})  # of tasks with video
    audio_sets: Mapping[str, float] = field(default_factory=lambda: {"audio_only": 1.0})  # of T2A
    audio_only_batch_factor: int = 1  # an audio-only sample has few tokens: take that many times the batch
    lr: float = 1e-3
    warmup_steps: int = 50
    decay_fraction: float = 0.5  # of the steps, at the end
    decay: Literal["linear", "sqrt", "cosine"] = "cosine"
    min_lr_factor: float = 0.05

    @property
    def notice(self) -> str:
        """What of it will not be as it says, in one line; "" = nothing."""
        if self.warmup_steps <= self.steps:
            return ""
        return (
            f"{self.name}: warmup_steps {self.warmup_steps} is more than its {self.steps} steps: the "
            "learning rate rises through all of them, reaches lr at the last and does not decay"
        )

    def __post_init__(self) -> None:
        for name in self.tasks:
            if name not in Task.__members__:
                raise ValueError(f"tasks.{name}: unknown task; {nearest(name, Task.__members__)}")
        if self.steps < 1 or self.warmup_steps < 0 or self.audio_only_batch_factor < 1:
            raise ValueError(
                f"steps and audio_only_batch_factor must be positive and warmup_steps not negative, got "
                f"{self.steps}, {self.audio_only_batch_factor}, {self.warmup_steps}"
            )
        if not (0 < self.lr < math.inf and 0 <= self.decay_fraction <= 1 and 0 <= self.min_lr_factor <= 1):
            raise ValueError(
                f"lr must be > 0, decay_fraction and min_lr_factor in [0, 1]; got {self.lr}, "
                f"{self.decay_fraction}, {self.min_lr_factor}"
            )
        for where in ("sets", "audio_sets"):
            _check_weights(getattr(self, where), where)
        drawn = [Task(name) for name in _checked(self.tasks, "tasks")]
        if any(task is not Task.T2A for task in drawn):
            _checked(self.sets, "sets")
        if Task.T2A in drawn:
            _checked(self.audio_sets, "audio_sets")


class TaskDraw(NamedTuple):
    """What a step trains on."""

    task: Task
    set_name: str


def task_of_step(seed: int, stage: StageConfig, step: int) -> TaskDraw:
    """Task and data set of a step (1-based): a pure function, so ranks agree without communication.

    Tasks follow a golden-ratio sequence: after any number of steps each task's share is within a few steps of
    its weight.
    """
    offset = stable_hash(seed, stage.name, "task") / 2**63
    task = Task(_pick(stage.tasks, (offset + step * _GOLDEN) % 1.0))
    sets = stage.audio_sets if task is Task.T2A else stage.sets
    uniform = stable_hash(seed, stage.name, step, "set") / 2**63
    return TaskDraw(task, _pick(sets, uniform))


def _check_weights(weights: Mapping[str, float], where: str) -> None:
    bad = {name: weight for name, weight in weights.items() if not (math.isfinite(weight) and weight >= 0)}
    if bad:
        raise ValueError(f"{where}: weights must be finite and not negative, got {bad}")


def _checked(weights: Mapping[str, float], where: str) -> list[str]:
    _check_weights(weights, where)
    names = [name for name, weight in weights.items() if weight > 0]
    if not names:
        raise ValueError(f"{where}: no weight above 0 in {dict(weights)}; give at least one")
    return names


def _pick(weights: Mapping[str, float], uniform: float) -> str:
    names = sorted(name for name, weight in weights.items() if weight > 0)
    target = uniform * sum(weights[name] for name in names)
    for name in names:
        target -= weights[name]
        if target < 0:
            return name
    return names[-1]
