"""Means over the steps since the last log row, per modality and per task."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from pretrain.types import Task


@dataclass(frozen=True)
class StepResult:
    """One step, global over ranks, but for the fields of this rank at the end; a modality that the step
    does not train is None."""

    task: Task
    video: float | None
    audio: float | None
    audio_weight: float
    grad_norm: float
    tokens: int
    started: float  # perf_counter seconds
    video_weight: float = 1.0
    audio_s: float = 0.0  # seconds of sound in the loss, over all ranks
    # of this rank
    seconds: float = 0.0  # of the host, from the begin of the step to its end
    data_s: float = 0.0  # of them waiting for the loader
    prepare_s: float = 0.0  # noising on the host and sending to the device
    flops: float = 0.0  # model FLOPs, forward and backward

    @property
    def loss(self) -> float:
        return self.video_weight * (self.video or 0.0) + self.audio_weight * (self.audio or 0.0)


class Window:
    """Collects steps; `take` empties it."""

    def __init__(self) -> None:
        self.steps: list[StepResult] = []
        self.ended = 0.0

    def add(self, result: StepResult, ended: float) -> None:
        self.steps.append(replace(result, seconds=ended - result.started))
        self.ended = ended

    @property
    def seconds(self) -> float:
        """From the begin of the first step to the end of the last, with what was between them."""
        return max(self.ended - self.steps[0].started, 1e-9)

    def take(self) -> list[StepResult]:
        """The steps, which are no longer in the window."""
        steps, self.steps = self.steps, []
        return steps

    def summary(self, num_ranks: int = 1) -> dict[str, float | str]:
        """One row of metrics.jsonl: last step's `task`, largest `grad_norm`, mean losses (also per task),
        speed and quantiles of the steps' seconds."""
        steps, seconds = self.steps, self.seconds
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
        row["tokens_per_s_per_rank"] = row["tokens_per_s"] / num_ranks
        row["seconds_per_step"] = seconds / len(steps)
        middle, late, most = np.quantile([step.seconds for step in steps], (0.5, 0.95, 1.0)).tolist()
        return row | {"time/step_p50_s": middle, "time/step_p95_s": late, "time/step_max_s": most}


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
