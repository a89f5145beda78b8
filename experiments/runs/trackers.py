"""What a training reports to beside MLflow: TensorBoard, or trackers of one's own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretrain.config import nearest
from pretrain.tracking import check_factory

if TYPE_CHECKING:
    from experiments.runs.tracker import SpoolTracker

TENSORBOARD = "tensorboard"  # the setting, and the folder beside the spool
_FACTORY = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
WHERE = "tracking.trackers"


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Trackers and system metrics; no number of a run depends on it. Raises ValueError for a name of another
    form, one that stands twice, and options of a tracker that is not named."""

    trackers: tuple[str, ...] = ()  # "tensorboard", or package.module:factory
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # of a factory: keyword arguments
    system_metrics_s: float = 10.0  # seconds between two samples of processors and memory; 0 = none

    def __post_init__(self) -> None:
        for index, name in enumerate(self.trackers):
            if name != TENSORBOARD and not _FACTORY.fullmatch(name):
                raise ValueError(
                    f"trackers[{index}]: {name!r} is neither {TENSORBOARD!r} nor package.module:factory"
                )
            if name in self.trackers[:index]:
                raise ValueError(f"trackers[{index}]: {name!r} stands twice; leave one out")
        own = [name for name in self.trackers if name != TENSORBOARD]
        if unknown := next((name for name in self.options if name not in own), None):
            raise ValueError(f"options.{unknown}: not in trackers; {nearest(unknown, own)}")
        if not (self.system_metrics_s == 0 or self.system_metrics_s >= 1):
            raise ValueError(
                f"system_metrics_s: expected 0 or at least 1 second, got {self.system_metrics_s:g}"
            )


def factories(config: TrackingConfig, tracker: SpoolTracker | None) -> dict[str, dict[str, Any]]:
    """package.module:factory -> keyword arguments of all trackers of a training, for the rank that reports.

    Those of one's own get `run`, the name of the run, beside their options: it stays where a run goes on.
    Without `tracker` they are only checked. Raises ValueError in one line where one cannot be loaded.
    """
    found: dict[str, dict[str, Any]] = dict(tracker.factory()) if tracker else {}
    key = tracker.key if tracker else ""
    for name in config.trackers:
        if name == TENSORBOARD:
            folder = (tracker.folder.parent if tracker else Path()).resolve().with_name(TENSORBOARD) / key
            name, options = "experiments.runs.tensorboard:TensorBoardTracker", {"folder": str(folder)}
        else:
            options = {**config.options.get(name, {}), "run": key}
        check_factory(name, options, WHERE)
        found[name] = options
    return found if tracker else {}
