"""Trackers that need nothing: rows of metrics.jsonl, and several trackers as one.

A training that was killed hard repeats the steps behind its last checkpoint. A tracker that keeps points for
good, as an experiment server does, has their first values; it may offer `logged(step) -> {name: value}`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pretrain.files import replacing
from pretrain.types import Tracker
from rewards import plugins

_TIMING = re.compile(
    r"second|per_s|memory|_gib|mfu|time"
)  # of metrics that are measured anew in every attempt


class JsonlTracker:
    """Appends a JSON object per logged step; drops rows after `resume_step` (of a killed run) first."""

    def __init__(self, path: Path, resume_step: int = 0) -> None:
        self.path = path
        rows = path.read_text().splitlines() if path.is_file() else []
        kept = [row for row in rows if row.endswith("}") and json.loads(row)["step"] <= resume_step]
        with replacing(path) as temporary:
            temporary.write_text("".join(row + "\n" for row in kept))

    def log_metrics(self, metrics: Mapping[str, Any], step: int) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")

    def log_artifact(self, path: str, folder: str = "") -> None: ...

    def set_tags(self, tags: Mapping[str, str]) -> None: ...


class Trackers:
    """Reports to all of them; only numbers go to those after the first.

    A repeated step is logged as the first attempt logged it, so that all trackers have the same points. Where
    its numbers came out different, the row has the new ones, and the tag `repeated_differently` says from
    which step on.
    """

    def __init__(self, first: JsonlTracker, others: Sequence[Tracker]) -> None:
        self.first, self.others = first, others
        self._differs = False

    def log_metrics(self, metrics: Mapping[str, Any], step: int) -> None:
        metrics = self._as_logged(metrics, step)
        self.first.log_metrics(metrics, step)
        numbers = {name: float(value) for name, value in metrics.items() if isinstance(value, (int, float))}
        for tracker in self.others:
            tracker.log_metrics(numbers, step)

    def _as_logged(self, metrics: Mapping[str, Any], step: int) -> Mapping[str, Any]:
        earlier: dict[str, float] = {}
        for tracker in self.others:
            logged = getattr(tracker, "logged", None)
            earlier |= logged(step) if logged else {}
        common = {
            name: type(metrics[name])(value)
            for name, value in earlier.items()
            if _is_number(metrics.get(name))
        }
        if all(_TIMING.search(name) or _close(metrics[name], value) for name, value in common.items()):
            return {**metrics, **common}
        if not self._differs:
            self._differs = True
            self.set_tags({"repeated_differently": f"from step {step} on"})
        return metrics

    def log_artifact(self, path: str, folder: str = "") -> None:
        for tracker in self.others:
            tracker.log_artifact(path, folder)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        for tracker in self.others:
            tracker.set_tags(tags)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _close(one: float, other: float) -> bool:
    """Equal but for what another order of sums changes on a GPU."""
    return math.isclose(one, other, rel_tol=1e-3, abs_tol=1e-9) or (math.isnan(one) and math.isnan(other))


def build_tracker(name: str, options: Mapping[str, Any]) -> Tracker:
    """Call "package.module:factory" with the options. Raises ValueError where there is no such factory."""
    return build(name, options, "trackers")


def build(name: str, options: Mapping[str, Any], what: str) -> Any:
    """The same for any kind of part; `what` names it in the error."""
    return imported(name, what)(**options)


def imported(name: str, what: str) -> Any:
    """What "package.module:attribute" names: a part of the kind `what`, a key of `rewards.plugins.KINDS`.

    Raises ValueError in one line, with `what` it is for, where it is not allowed, not there or no such part.
    """
    try:
        return plugins.load(name, plugins.KINDS[what], f"{what}: {name!r}")
    except ValueError as error:
        raise ValueError(f"{error}; write it as package.module:factory") from None
