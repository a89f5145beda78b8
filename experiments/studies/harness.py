"""Parts common to all studies: cached runs per arm and seed, a parent run, and OUT/study/NAME.*.

The results are NAME.json, .png and .md.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.layout import Layout
from experiments.runs.invocation import INVOCATION_TAG, bring_up_to_date, named, publish
from experiments.runs.provenance import git_state
from experiments.runs.run import Interrupted
from experiments.runs.tracker import (
    RUN_KEY,
    RunStart,
    SpoolTracker,
    ensure_sender,
    failure_marked,
    kept_run_key,
)
from experiments.studies.page import render
from pretrain.config import to_json
from pretrain.files import read_json, replacing, write_json
from pretrain.launch.launch import StageResult
from pretrain.launch.training_lock import alone
from pretrain.progress import MetricsTail
from pretrain.randomness import stable_hash

REPORT_S = 20.0


@dataclass(frozen=True)
class Run:
    """One arm with one seed, cached when finished.

    `folder` depends on everything that changes the training, `mark` on everything that changes the
    measurement.
    """

    label: str
    folder: Path
    mark: str
    stages: Mapping[str, tuple[float, int]] = field(default_factory=dict)  # subfolder -> (work, steps)
    scoring: float = 1.0  # work of generation and scoring
    scores: tuple[Path, ...] = ()  # files that scoring writes one after another, where it is of several parts

    @property
    def result(self) -> Path:
        return self.folder / f"result-{self.mark}.json"

    @property
    def finished(self) -> bool:
        return self.result.is_file()

    @property
    def work(self) -> float:
        return sum(work for work, _ in self.stages.values()) + self.scoring

    @property
    def scored(self) -> int:
        """How many of `scores` are there."""
        return sum(path.is_file() for path in self.scores)

    def read(self) -> dict[str, Any]:
        return read_json(self.result, f"remove {self.folder}")


@dataclass(frozen=True)
class StudyResults:
    """The page of a study; its numbers are in its children."""

    text: str
    numbers: Mapping[str, float] = field(default_factory=dict)
    columns: Sequence[str] = ()


@dataclass(frozen=True)
class Study:
    """A study. `settings`: its section; `recipe`: all sections it reads; `inputs`: digests of its data."""

    name: str
    folder: Path  # of the runs and their shared files
    layout: Layout
    settings: Any
    recipe: Any
    inputs: Mapping[str, str]
    root: Path = Path()

    @property
    def key(self) -> str:
        """Key of the tracked run, constant until the study is finished."""
        return kept_run_key(self.folder, f"study_{self.name}")

    def alone(self) -> AbstractContextManager[None]:
        """Hold the study, which trains into its folders. Raises ValueError where another command has it."""
        return alone(self.layout.out / "study" / self.name, f"`nava study {self.name}`", "--out")

    @contextmanager
    def tracked(self) -> Iterator[None]:
        """Run the body as a tracked run that logs the published files."""
        tracker, git = SpoolTracker(self.layout.tracking / self.key), git_state(self.root)
        tags = {
            "nava.study": self.name,
            INVOCATION_TAG: f"study {self.name}",
            "mlflow.source.git.commit": git.commit,
            "git.dirty": str(git.dirty).lower(),
        }
        name, config = named(f"study {self.name}"), to_json(self.recipe)
        tracker.start(RunStart(name=name, tags=tags, config=config, inputs=self.inputs))
        ensure_sender(self.layout.tracking, self.root)
        with failure_marked(tracker):
            yield
        for path in sorted((self.layout.out / "study").glob(f"{self.name}.*")):
            tracker.log_artifact(str(path))
        text = (self.layout.out / "study" / f"{self.name}.md").read_text(encoding="utf-8")
        publish(tracker, StudyResults(text))
        bring_up_to_date(tracker, self.layout)
        tracker.finish("FINISHED")
        (self.folder / RUN_KEY).unlink(missing_ok=True)

    @contextmanager
    def tracked_run(
        self, run: Run, tags: Mapping[str, str], config: Mapping[str, Any]
    ) -> Iterator[SpoolTracker]:
        """Run the body, which writes the run's result, as a child run of the study."""
        run.folder.mkdir(parents=True, exist_ok=True)
        tracker = SpoolTracker(self.layout.tracking / kept_run_key(run.folder, f"{self.name}-{run.label}"))
        tracker.start(
            RunStart(
                name=f"study {self.name} {run.label}",
                tags={"nava.study": self.name, **tags},
                config=config,
                inputs=self.inputs,
                parents={"study": self.key},
                invocation=self.key,
            )
        )
        with failure_marked(tracker):
            yield tracker
        tracker.log_artifact(str(run.result))
        tracker.finish("FINISHED")

    def publish(
        self, found: Mapping[str, Any], draw: Callable[[Mapping[str, Any], Path], None] | None = None
    ) -> dict[str, Any]:
        """Write OUT/study/NAME.json, .md and (if there is a plot) .png; returns the JSON content."""
        git, out = git_state(self.root), self.layout.out / "study"
        study = {
            "study": self.name,
            "commit": git.commit + (" with changes" if git.dirty else ""),
            "config": to_json(self.settings),
            "inputs": dict(self.inputs),
            **found,
        }
        study = json.loads(json.dumps(study, allow_nan=False))
        write_json(out / f"{self.name}.json", study)
        if draw:
            draw(study, out / f"{self.name}.png")
        with replacing(out / f"{self.name}.md") as temporary:
            temporary.write_text(render(study))
        return study


def mark_of(*parts: Any) -> str:
    """Eight hex digits that hash plain values."""
    return f"{stable_hash(json.dumps(parts, sort_keys=True)):016x}"[:8]


def require(needed: Mapping[Path, str], what: str = "file or folder") -> None:
    """Raises FileNotFoundError for the first missing path, with the command that creates it."""
    for path, hint in needed.items():
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such {what}; {hint}")


def model_of(result: StageResult, stopped: str) -> Path:
    """The trained model.

    Raises Interrupted, with a message that starts with `stopped`, if a signal ended the training.
    """
    if result.model is None:
        raise Interrupted(f"{stopped} {result.step} with a checkpoint; the same command goes on from there")
    return result.model


class Progress:
    """Share of finished work, and remaining time at the current rate."""

    def __init__(self, name: str, runs: Sequence[Run]) -> None:
        self.name, self.runs = name, runs
        self.total = sum(run.work for run in runs)
        self.tails = {
            (run.folder, stage): MetricsTail(run.folder / stage / "metrics.jsonl")
            for run in runs
            for stage in run.stages
        }
        self.steps: dict[tuple[Path, str], int] = {}
        self.at_start, self.started, self.reported = self.done(), time.monotonic(), 0.0

    def done(self) -> float:
        """Work of finished runs plus logged steps and scores of the others."""
        return sum(run.work if run.finished else self._trained(run) for run in self.runs)

    def _trained(self, run: Run) -> float:
        work = 0.0
        for stage, (whole, steps) in run.stages.items():
            for row in self.tails[run.folder, stage].rows():
                self.steps[run.folder, stage] = int(row["step"])
            work += whole * min(1.0, self.steps.get((run.folder, stage), 0) / steps)
        return work + (run.scoring * run.scored / len(run.scores) if run.scores else 0.0)

    def report(self, running: Sequence[Run], force: bool = False) -> None:
        """Print a line to stderr, at most every 20 s."""
        now = time.monotonic()
        if not force and now - self.reported < REPORT_S:
            return
        self.reported = now
        done, spent = self.done(), now - self.started
        minutes = (self.total - done) / (done - self.at_start) * spent / 60 if done > self.at_start else None
        left = "time left not known yet" if minutes is None else f"about {minutes:.0f} min left"
        finished = sum(run.finished for run in self.runs)
        head = (
            f"{self.name}: {finished}/{len(self.runs)} runs, {100 * done / self.total:.0f} %, "
            f"{spent / 60:.1f} min, {left}"
        )
        print("; ".join([head, *map(self._where, running)]), file=sys.stderr, flush=True)

    def _where(self, run: Run) -> str:
        reached = [stage for stage in run.stages if (run.folder, stage) in self.steps]
        step, steps = (self.steps[run.folder, reached[-1]], run.stages[reached[-1]][1]) if reached else (0, 1)
        if run.scores and len(reached) == len(run.stages) and (step >= steps or not reached):
            return f"{run.label} sampled and scored {run.scored}/{len(run.scores)}"
        return f"{run.label} {reached[-1]} {step}/{steps}" if reached else f"{run.label} starting"


def run_each(name: str, runs: Sequence[Run], execute: Callable[[Run], None], hint: str) -> None:
    """Run `execute` for each unfinished run; failures are raised after all others have finished.

    Raises ValueError with the line of the first that failed and `hint`.
    """
    failed: list[str] = []
    progress = Progress(name, runs)
    for run in runs:
        if not run.finished:
            progress.report([run], force=True)
            try:
                execute(run)
            except (ValueError, OSError) as error:
                failed.append(f"{run.label}: {error}")
                print(f"{name}: {failed[-1]}; going on with the others", file=sys.stderr, flush=True)
    if failed:
        rest = f" ({len(failed) - 1} more failed)" if failed[1:] else ""
        raise ValueError(f"{failed[0]}{rest}; {hint}")
