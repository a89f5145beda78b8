"""What a person sees during long work: a live line on a terminal, a line per tenth otherwise."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from pretrain.terminal import plain, shown

_Item = TypeVar("_Item")
NOTABLE_WAIT_PERCENT = 5  # of a step's time; less is not shown


def track(items: Iterable[_Item], total: int, what: str) -> Iterator[_Item]:
    """Yields the items and shows progress on stderr. `what`: a noun phrase such as "clips written"."""
    return track_sized(((item, 1.0) for item in items), total, float(total), what)


def track_sized(
    items: Iterable[tuple[_Item, float]], total: int, total_size: float, what: str
) -> Iterator[_Item]:
    """`track` for (item, its size): the time left follows the sizes, `total_size` of all together."""
    if sys.stderr.isatty():
        with Progress(*Progress.get_default_columns(), console=Console(file=plain(sys.stderr))) as bar:
            task = bar.add_task(escape(shown(what)), total=total_size)
            for item, size in items:
                yield item
                bar.advance(task, size)
        return
    started, reported, came = time.monotonic(), 0, 0.0
    for done, (item, size) in enumerate(items, start=1):
        yield item
        came += size
        tenth = 10 * done // max(total, 1)
        if tenth > reported:
            reported, spent = tenth, time.monotonic() - started
            left = spent / max(came, 1e-12) * max(total_size - came, 0.0)
            print(
                f"{what}: {done}/{total}, {spent:.0f} s, about {left:.0f} s left", file=sys.stderr, flush=True
            )


class MetricsTail:
    """New complete rows of a growing metrics.jsonl at each call; restarts when the file got shorter."""

    def __init__(self, path: Path) -> None:
        self.path, self.offset = path, 0

    def rows(self) -> Iterator[dict[str, Any]]:
        if not self.path.is_file():
            return
        if self.path.stat().st_size < self.offset:
            self.offset = 0
        with self.path.open("rb") as file:
            file.seek(self.offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self.offset += len(line)
                yield json.loads(line)


class StageProgress:
    """Context manager: `show(row)` for rows of metrics.jsonl; `describe` formats one, `unit` names a step."""

    def __init__(
        self,
        stage: str,
        steps: int,
        describe: Callable[[Mapping[str, Any]], str] | None = None,
        unit: str = "step",
    ) -> None:
        self.stage, self.steps, self.unit = stage, steps, unit
        self.describe = describe or describe_step
        self.console = Console(file=plain(sys.stderr))
        self.live = self.console.is_terminal
        self.tenth = -1
        self.bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            _Losses(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            transient=False,
        )

    def __enter__(self) -> StageProgress:
        if self.live:
            self.task = self.bar.add_task(f"{self.stage} starting", total=self.steps, text="")
            self.bar.start()
        else:
            self._line(f"{self.stage}: starting, {self.unit} 0/{self.steps}")
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.bar.stop()

    def show(self, row: Mapping[str, Any]) -> None:
        if "seconds_per_step" not in row:  # a validation row
            return
        step, text = int(row["step"]), self.describe(row)
        if self.live:
            self.bar.update(self.task, completed=step, description=self._named(row), text=shown(text))
            return
        tenth = step * 10 // self.steps
        if tenth != self.tenth:
            self.tenth = tenth
            left = (self.steps - step) * row["seconds_per_step"]
            self._line(
                f"{self.stage}: {self.unit} {step}/{self.steps} {row['task']} {text}, {left:.0f} s left"
            )

    def _named(self, row: Mapping[str, Any]) -> str:
        return escape(shown(f"{self.stage} {row['task']}"))

    def _line(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


def describe_step(row: Mapping[str, Any]) -> str:
    """Losses per modality and speed, in a few words."""
    parts = [f"{name} {row[f'loss_{name}']:.3f}" for name in ("video", "audio") if f"loss_{name}" in row]
    skipped, waits = (
        int(row["skipped_nonfinite"] + row["skipped_spikes"]),
        row.get("time/data_wait_percent", 0),
    )
    parts += [f"{row['tokens_per_s']:,.0f} tokens/s"]
    parts += [f"MFU {row['mfu_percent']:.0f} %"] if "mfu_percent" in row else []
    parts += [f"{waits:.0f} % waiting for data"] if waits >= NOTABLE_WAIT_PERCENT else []
    return ", ".join(parts + ([f"{skipped} skipped"] if skipped else []))


class _Losses(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(str(task.fields["text"]))
