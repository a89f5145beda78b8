"""A study's training as one run over several stages; imported by every rank, so it stays light."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from experiments.tracking import SpoolTracker


class StepsSoFar(SpoolTracker):
    """Each stage's steps count on from the `before` steps of those ahead of it."""

    def __init__(self, folder: Path | str, before: int) -> None:
        super().__init__(folder)
        self.before = before

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        super().log_metrics(metrics, step + self.before)
