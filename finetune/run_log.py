"""Output of a run: metrics.jsonl, the trackers, state.json."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from finetune.align_run import AlignRun
from finetune.progress import AlignProgress
from pretrain.files import write_json
from pretrain.launch.torchrun import METRICS, STATE
from pretrain.tracking import CLIPS_SEEN, JsonlTracker, Trackers, build_trackers, last_value


class RunLog:
    """Log of one process; `take_written` returns the sample clips to log with a row.

    A row of a round gets `clips_seen`: clips that the policy has learned from up to then, over all ranks,
    those of its own rollouts or two of each pair.
    """

    def __init__(self, run: AlignRun, take_written: Callable[[], list[Path]]) -> None:
        self.run, self.take_written = run, take_written
        self.trackers: Trackers | None = None
        self.clips_seen = 0

    def begin(self, progress: AlignProgress) -> None:
        """Drop rows of rounds that will be repeated, also after a loss of ranks."""
        path, last = self.run.out / METRICS, progress.rounds if progress.rounds or progress.scored else -1
        first = JsonlTracker(path, last)
        self.clips_seen = last_value(path, CLIPS_SEEN)[1] or 0
        others = self.trackers.others if self.trackers else build_trackers(self.run.trackers, last)
        self.trackers = Trackers(first, others)
        self.state("running", progress.rounds)

    def log(self, row: dict[str, Any], step: int) -> None:
        written = self.take_written()
        if not row or self.trackers is None:
            return
        self.clips_seen += int(row.get("clips", 2 * row.get("pairs", 0)))
        self.trackers.log_metrics({**row, CLIPS_SEEN: self.clips_seen}, step)
        for path in written:
            self.trackers.log_artifact(str(path), f"samples/{path.parent.name}")

    def end(self, status: str, rounds: int, model_id: str, parent_id: str) -> None:
        self.state(status, rounds, model_id)
        assert self.trackers is not None
        self.trackers.set_tags({"status": status, "model_id": model_id, "parent_model_id": parent_id})
        self.trackers.log_artifact(str(self.run.out / METRICS))
        self.trackers.close()

    def state(self, status: str, rounds: int, model_id: str = "") -> None:
        values = {
            "status": status,
            "stage": "align",
            "step": rounds,
            "steps": self.run.config.num_rounds,
            "model_id": model_id,
        }
        write_json(self.run.out / STATE, values)
