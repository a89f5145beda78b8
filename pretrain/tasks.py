"""The five tasks as data: what is noised, what may be given clean, what is absent (nava.md, section 3)."""

from __future__ import annotations

from dataclasses import dataclass

from pretrain.types import Task


@dataclass(frozen=True)
class TaskSpec:
    """Which streams a task generates and which conditions, besides text, it may use."""

    video: bool  # generated; otherwise absent
    audio: bool
    first_frame: bool  # the first latent frame may be given clean
    timbre: bool  # reference voices may be given


TASKS: dict[Task, TaskSpec] = {
    Task.T2AV: TaskSpec(video=True, audio=True, first_frame=False, timbre=True),
    Task.TI2AV: TaskSpec(video=True, audio=True, first_frame=True, timbre=False),
    Task.TIA2AV: TaskSpec(video=True, audio=True, first_frame=True, timbre=True),
    Task.T2A: TaskSpec(video=False, audio=True, first_frame=False, timbre=True),
    Task.T2V: TaskSpec(video=True, audio=False, first_frame=False, timbre=False),
}
