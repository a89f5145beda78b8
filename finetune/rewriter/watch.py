"""Callback of TRL's loop: rows to trackers, progress, atomic checkpoints, signals, divergence."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from finetune.rewriter.checkpoints import mark_complete
from pretrain.progress import StageProgress
from pretrain.tracking import Trackers

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Watch(TrainerCallback):
    """Raises ValueError from the step whose loss or gradient is not finite."""

    def __init__(self, trackers: Trackers, progress: StageProgress) -> None:
        self.trackers, self.progress = trackers, progress
        self.stop_requested = False
        self._clock = time.monotonic()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self.stop_requested:
            control.should_save = control.should_training_stop = True

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        mark_complete(Path(str(args.output_dir)) / f"checkpoint-{state.global_step}")

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> None:
        if not logs or "loss" not in logs:  # the summary of a finished training
            return
        step, seconds = state.global_step, time.monotonic() - self._clock
        self._clock = time.monotonic()
        if wrong := next(
            (name for name in ("loss", "grad_norm") if not math.isfinite(float(logs.get(name, 0.0)))), None
        ):
            raise ValueError(f"tuning diverged at step {step}: {wrong} is {logs[wrong]}; lower learning_rate")
        row = {
            name: float(value)
            for name, value in logs.items()
            if isinstance(value, (int, float)) and math.isfinite(value)
        }
        row |= {"seconds_per_step": seconds}
        self.trackers.log_metrics(row, step)
        self.progress.show({"step": step, "task": "", **row})

    @contextmanager
    def signals(self) -> Iterator[None]:
        """SIGTERM and the first Ctrl-C end the training after the running step, with a checkpoint."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in SIGNALS}

        def stop(number: int, _: object) -> None:
            self.stop_requested = True
            signal.signal(number, before[signal.Signals(number)])  # the second one is not waited for

        for number in SIGNALS:
            signal.signal(number, stop)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def describe(row: Mapping[str, Any]) -> str:
    """Reward or share of preferred pairs, in a few words."""
    named = {"reward": "reward", "rewards/accuracies": "preferred", "loss": "loss"}
    return ", ".join(f"{text} {row[name]:.3f}" for name, text in named.items() if name in row)
