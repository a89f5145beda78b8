"""Align a model on local ranks: checks, torchrun and its result."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from finetune.align_run import AlignRun
from finetune.prompts import read_prompt_set, report_left_out
from pretrain.launch import training_lock
from pretrain.launch.launch import StageResult, finished, outcome, set_aside
from pretrain.launch.stage_run import check_run_folder
from pretrain.launch.torchrun import check_port, run_ranks
from pretrain.progress import StageProgress


def align_model(run: AlignRun, nproc: int = 1, port: int = 0, restart: bool = False) -> StageResult:
    """Align into run.out, resuming from the newest checkpoint there.

    Writes adapter/ (PEFT), model/ (merged), metrics.jsonl, state.json and samples/round-N. A finished run is
    returned immediately. port: torchrun's rendezvous port, 0 = any free one. restart: move aside what is in
    the folder. Raises ValueError, FileNotFoundError or OSError in one line; out/log.txt has the rest.
    """
    run.config.check_ranks(nproc)
    report_left_out(read_prompt_set(run.prompts, run.config, run.chosen, run.held_out), run.prompts)
    if port:
        check_port(port)
    with alone(run.out):
        if restart:
            set_aside(run)
        with locked_run(run) as done:
            return done or outcome(run.out, run_ranks("finetune.run", run.out, nproc, port, progress_of(run)))


@contextmanager
def locked_run(run: AlignRun) -> Iterator[StageResult | None]:
    """Lock the run's folder; yields the result of a finished run there, else None with resolved.json written.

    Raises ValueError as `alone` does, and where the folder holds another run.
    """
    with alone(run.out):
        check_run_folder(run)
        done = finished(run.out)
        if done is None:
            run.save()
        yield done


def progress_of(run: AlignRun) -> StageProgress:
    return StageProgress("align", run.config.num_rounds, describe, "round")


def alone(out: Path) -> AbstractContextManager[None]:
    """Hold a run folder. Raises ValueError where another alignment has it."""
    return training_lock.alone(out, "alignment")


def describe(row: Mapping[str, Any]) -> str:
    """One-line summary of a row: rewards and the cost of the round."""
    rewards = [
        f"{name.removeprefix('reward/')} {value:.3f}"
        for name, value in row.items()
        if name.startswith("reward/")
    ]
    loss = [f"loss {row[name]:.4f}" for name in row if name.endswith("/loss")]
    said = [*rewards, *loss, *_of_held_out(row)]
    return ", ".join([*said, f"{row['seconds_per_step']:.0f} s a round"])


def _of_held_out(row: Mapping[str, Any]) -> list[str]:
    """What of the held-out prompts' scores needs to be known."""
    said, lost, alarm = [], "held_out/lost/", "alarm/"
    if fallen := [name.removeprefix(alarm) for name in row if name.startswith(alarm) and row[name]]:
        said.append(
            f"ALARM: {', '.join(fallen)} fell, or could score fewer clips, on the held-out prompts while the "
            "rewards rose"
        )
    if gone := [
        f"{name.removeprefix(lost)} {100 * row[name]:.3g} %"
        for name in row
        if name.startswith(lost) and row[name]
    ]:
        said.append(
            f"held-out prompts without the score that they had, counted as the worst: {', '.join(gone)}"
        )
    if row.get("held_out/by_means"):
        said.append(
            "held-out rewards are compared by their means and judges by position, as the version that "
            "began this alignment kept them"
        )
    return said
