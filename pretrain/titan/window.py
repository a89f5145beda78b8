"""Means over the steps since the last log row, per modality and per task."""

from __future__ import annotations

from dataclasses import dataclass

from pretrain.types import Task


@dataclass(frozen=True)
class StepResult:
    """One step, global over ranks; a modality the step does not train is None."""

    task: Task
    video: float | None
    audio: float | None
    audio_weight: float
    grad_norm: float
    tokens: int
    started: float  # perf_counter seconds
    video_weight: float = 1.0
    audio_s: float = 0.0  # seconds of sound in the loss, over all ranks

    @property
    def loss(self) -> float:
        return self.video_weight * (self.video or 0.0) + self.audio_weight * (self.audio or 0.0)


class Window:
    """Collects steps; `summary` empties it."""

    def __init__(self) -> None:
        self.steps: list[StepResult] = []
        self.ended = 0.0

    def add(self, result: StepResult, ended: float) -> None:
        self.steps.append(result)
        self.ended = ended

    def summary(self) -> dict[str, float | str]:
        """One row of metrics.jsonl: last step's `task`, largest `grad_norm`, mean losses (also per task)."""
        steps, self.steps = self.steps, []
        seconds = max(self.ended - steps[0].started, 1e-9)
        row: dict[str, float | str] = {
            "task": steps[-1].task.value,
            "loss": _mean([step.loss for step in steps]),
        }
        for name in ("video", "audio"):
            taken = [(step.task, value) for step in steps if (value := getattr(step, name)) is not None]
            if taken:
                row[f"loss_{name}"] = _mean([value for _, value in taken])
            for task in sorted({task for task, _ in taken}):
                row[f"loss_{name}/{task}"] = _mean([value for other, value in taken if other is task])
        row["grad_norm"] = max(step.grad_norm for step in steps)
        row["tokens_per_s"] = sum(step.tokens for step in steps) / seconds
        row["seconds_per_step"] = seconds / len(steps)
        return row


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
