"""Prompts to clips that are to be made: a job each, in batches of one kind.

A batch's members decide about the last bits of its clips, since matrix products of another size are summed in
another order. So batches are a function of all jobs, never of those that are left to be made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pretrain.clip_kind import ClipKind, kind_of
from pretrain.generation.config import GenerateConfig
from pretrain.prompt import PromptRow, parse
from pretrain.prompt.names import name_problem
from pretrain.tasks import TASKS
from pretrain.types import Task


@dataclass(frozen=True)
class ClipJob:
    """One clip to be made; `name` is that of its files. Noise is keyed by seed and the row's data_id."""

    name: str
    row: PromptRow
    seed: int


def clip_jobs(rows: Sequence[PromptRow], config: GenerateConfig) -> list[ClipJob]:
    """A job for each row and seed, the config's task and negative prompt put into rows that have none.

    With `seeds`, names are DATA_ID-sSEED. Raises ValueError with the row: it does not give what its task
    needs or gives what that does not take, has a seed beside `seeds`, or two clips would have one name.
    """
    jobs: list[ClipJob] = []
    seen: dict[str, PromptRow] = {}
    for row in rows:
        if config.seeds and row.seed is not None:
            raise ValueError(f"{row.where} seed: stands beside several seeds for all rows; leave one out")
        asked = _asked(row, config)
        for seed in config.seeds or (config.seed if row.seed is None else row.seed,):
            name = f"{row.data_id}-s{seed}" if config.seeds else row.data_id
            if config.seeds and (problem := name_problem(name)):
                raise ValueError(f"{row.where} data_id: with its seed {problem}")
            if name in seen:
                other = "stands twice" if seen[name] is row else f"is also made of line {seen[name].line}"
                other = "stands twice" if seen[name].data_id == row.data_id else other
                raise ValueError(f"{row.where} data_id: {name!r} {other}; give every prompt its own")
            seen[name] = row
            jobs.append(ClipJob(name, asked, seed))
    return jobs


def left_out(rows: Sequence[PromptRow], config: GenerateConfig) -> list[str]:
    """What rows give and the config's task does not take, a line for each kind of it."""
    if not config.task:
        return []
    spec, notes = TASKS[Task(config.task)], []
    plain = [row for row in rows if row.task is None]
    images = sum(row.image_path is not None for row in plain)
    voices = sum(any(row.reference_paths) for row in plain)
    for count, taken, what in (
        (images, spec.first_frame, "image_path"),
        (voices, spec.timbre, "spk_wavs"),
    ):
        if count and not taken:
            notes.append(f"task {config.task} takes no {what}: left out of {count} rows")
    return notes


def batches_of(jobs: Sequence[ClipJob], config: GenerateConfig) -> list[tuple[ClipJob, ...]]:
    """Jobs of one kind together, in their order; kinds in the order in which they first come."""
    kinds: dict[ClipKind, list[ClipJob]] = {}
    for job in jobs:
        kinds.setdefault(kind_of(job.row, config), []).append(job)
    size = config.batch_size
    return [tuple(some[i : i + size]) for some in kinds.values() for i in range(0, len(some), size)]


def _asked(row: PromptRow, config: GenerateConfig) -> PromptRow:
    """The row as it is made: with its task, without what a task of all rows does not take."""
    if row.negative is None and config.negative_prompt:
        row = replace(row, negative=parse(config.negative_prompt))
    if row.task is None and not config.task:
        return row
    task = row.task or Task(config.task)
    spec, named = TASKS[task], any(row.reference_paths)
    if row.task is not None:
        for given, taken, key in (
            (row.image_path, spec.first_frame, "image_path"),
            (named, spec.timbre, "spk_wavs"),
        ):
            if given and not taken:
                raise ValueError(f"{row.where} task: {task} takes no {key}; remove one of them")
    if spec.first_frame and row.image_path is None:
        raise ValueError(f"{row.where} image_path: task {task} starts from one; give it, or say another task")
    if task == Task.TIA2AV and not named:
        raise ValueError(
            f"{row.where} spk_wavs: task {task} speaks in given voices; give one, or say {Task.TI2AV}"
        )
    return replace(
        row,
        task=task,
        image_path=row.image_path if spec.first_frame else None,
        reference_paths=row.reference_paths if spec.timbre else (None,) * len(row.reference_paths),
    )
