"""Trackers that need nothing: rows of metrics.jsonl, and several trackers as one.

A training that was killed hard repeats the steps behind its last checkpoint. A tracker that keeps points for
good, as an experiment server does, has their first values; it may offer `logged(step) -> {name: value}`. One
that can drop points may offer `begin(step)`, called before the first row with the last step that is kept, and
one that holds a file or a connection `close()`.
"""

from __future__ import annotations

import inspect
import json
import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pretrain.config import one_line
from pretrain.files import replacing
from pretrain.types import Tracker
from rewards import plugins

log = logging.getLogger(__name__)
CLIPS_SEEN = "clips_seen"  # clips that the weights were trained on so far; an axis to draw others over

_TIMING = re.compile(
    r"second|per_s|memory|_gib|mfu|time"
)  # of metrics that are measured anew in every attempt


class JsonlTracker:
    """Appends a JSON object per logged step; drops rows after `resume_step` (of a killed run) first."""

    def __init__(self, path: Path, resume_step: int = 0) -> None:
        self.path, self.resume_step = path, resume_step
        rows = path.read_text().splitlines() if path.is_file() else []
        kept = [row for row in rows if row.endswith("}") and json.loads(row)["step"] <= resume_step]
        with replacing(path) as temporary:
            temporary.write_text("".join(row + "\n" for row in kept))

    def log_metrics(self, metrics: Mapping[str, Any], step: int) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")

    def log_artifact(self, path: str, folder: str = "") -> None: ...

    def set_tags(self, tags: Mapping[str, str]) -> None: ...


def last_value(path: Path, name: str) -> tuple[int, Any]:
    """(step, value) of the last row of a metrics.jsonl that has the metric; (0, None) where none has."""
    rows = path.read_text().splitlines() if path.is_file() else []
    for row in reversed(rows):
        if row.endswith("}") and name in (values := json.loads(row)):
            return values["step"], values[name]
    return 0, None


class Trackers:
    """Reports to all of them; only numbers go to those after the first.

    A repeated step is logged as the first attempt logged it, so that all trackers have the same points. Where
    its numbers came out different, the row has the new ones, and the tag `repeated_differently` says from
    which step on. What one of the others raises is told once, and the tag `tracker_failed` names it; it never
    ends a training.
    """

    def __init__(self, first: JsonlTracker, others: Sequence[Tracker]) -> None:
        self.first, self.others = first, others
        self._differs = False
        self._failed: set[int] = set()  # places in `others`
        self._each(lambda tracker: _offered(tracker, "begin")(first.resume_step))

    def log_metrics(self, metrics: Mapping[str, Any], step: int) -> None:
        metrics = self._as_logged(metrics, step)
        self.first.log_metrics(metrics, step)
        numbers = {name: float(value) for name, value in metrics.items() if isinstance(value, (int, float))}
        self._each(lambda tracker: tracker.log_metrics(numbers, step))

    def _as_logged(self, metrics: Mapping[str, Any], step: int) -> Mapping[str, Any]:
        earlier: dict[str, float] = {}
        self._each(lambda tracker: earlier.update(_offered(tracker, "logged")(step) or {}))
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
        self._each(lambda tracker: tracker.log_artifact(path, folder))

    def set_tags(self, tags: Mapping[str, str]) -> None:
        self._each(lambda tracker: tracker.set_tags(tags))

    def close(self) -> None:
        """The last call of a training that ended well."""
        self._each(lambda tracker: _offered(tracker, "close")())

    def _each(self, call: Callable[[Tracker], object]) -> None:
        for place, tracker in enumerate(self.others):
            try:
                call(tracker)
            except Exception as error:
                if place not in self._failed:
                    self._failed.add(place)
                    self._tell(tracker, error)

    def _tell(self, failed: Tracker, error: Exception) -> None:
        name = type(failed).__name__
        log.warning("tracker %s raised %s; the training goes on", name, _described(error))
        tags = {
            "tracker_failed": f"{name}: {type(error).__name__}"
        }  # without the text, which may hold a login
        self._each(lambda tracker: tracker.set_tags(tags) if tracker is not failed else None)


def _offered(tracker: Tracker, method: str) -> Callable[..., Any]:
    """A method that a tracker may have."""
    return getattr(tracker, method, lambda *_: None)


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(error, 300)}"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _close(one: float, other: float) -> bool:
    """Equal but for what another order of sums changes on a GPU."""
    return math.isclose(one, other, rel_tol=1e-3, abs_tol=1e-9) or (math.isnan(one) and math.isnan(other))


def build_trackers(named: Mapping[str, Mapping[str, Any]], resume_step: int) -> list[Tracker]:
    """Call each "package.module:factory" with its options.

    Raises ValueError in one line where one cannot be loaded, or raises itself at the start of a training. A
    training that goes on (`resume_step` above 0) does so without it.
    """
    built = []
    for name, options in named.items():
        check_factory(name, options, "trackers")
        try:
            built.append(build(name, options, "trackers"))
        except Exception as error:
            if resume_step <= 0:
                raise ValueError(f"trackers: {name} raised {_described(error)}") from error
            log.warning("tracker %s raised %s; the training goes on without it", name, _described(error))
    return built


def check_factory(name: str, options: Mapping[str, Any], what: str) -> None:
    """Load "package.module:factory" without calling it. Raises ValueError in one line where there is none, or
    it does not take the options."""
    factory = imported(name, what)
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):  # of compiled code
        return
    try:
        signature.bind(**options)
    except TypeError as error:
        raise ValueError(
            f"{what}: {name!r} cannot be called with {', '.join(options) or 'nothing'} ({error})"
        ) from None


def build(name: str, options: Mapping[str, Any], what: str) -> Any:
    """The same for any kind of part; `what` names it in the error."""
    return imported(name, what)(**options)


def imported(name: str, what: str) -> Any:
    """What "package.module:attribute" names: a part of the kind `what`, a key of `rewards.plugins.KINDS`.

    Raises ValueError in one line, with `what` it is for, where it is not allowed, not there or no such part.
    """
    try:
        return plugins.load(name, plugins.KINDS[what.rpartition(".")[2]], f"{what}: {name!r}")
    except ValueError as error:
        raise ValueError(f"{error}; write it as package.module:factory, importable by PYTHONPATH") from None
