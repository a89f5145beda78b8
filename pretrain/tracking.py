"""Trackers that need nothing: rows of metrics.jsonl, and several trackers as one."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pretrain.files import replacing
from pretrain.types import Tracker


class JsonlTracker:
    """One JSON object per logged step, appended; rows after `resume_step` (of a killed run) are dropped
    first."""

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
    """Reports to all of them; only numbers go to those after the first."""

    def __init__(self, first: JsonlTracker, others: Sequence[Tracker]) -> None:
        self.first, self.others = first, others

    def log_metrics(self, metrics: Mapping[str, Any], step: int) -> None:
        self.first.log_metrics(metrics, step)
        numbers = {name: float(value) for name, value in metrics.items() if isinstance(value, (int, float))}
        for tracker in self.others:
            tracker.log_metrics(numbers, step)

    def log_artifact(self, path: str, folder: str = "") -> None:
        for tracker in self.others:
            tracker.log_artifact(path, folder)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        for tracker in self.others:
            tracker.set_tags(tags)


def build_tracker(name: str, options: Mapping[str, Any]) -> Tracker:
    """Call "package.module:factory" with the options. Raises ValueError where there is no such factory."""
    return build(name, options, "trackers")


def build(name: str, options: Mapping[str, Any], what: str) -> Any:
    """The same for any kind of part; `what` names it in the error."""
    return imported(name, what)(**options)


def imported(name: str, what: str) -> Any:
    """What "package.module:attribute" names. Raises ValueError in one line, with `what` it is for."""
    module_name, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"{what}: {name!r} cannot be loaded ({error}); write it as package.module:factory"
        ) from None
