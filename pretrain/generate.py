"""Prompts -> latents -> mp4 with sound and wav, each marked as generated with its checkpoint's id."""

from __future__ import annotations

import hashlib
import os
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pretrain.clip_files import marks_of
from pretrain.clip_kind import check_memory, check_sound
from pretrain.codecs.load import load_codecs
from pretrain.files import locked
from pretrain.first_frames import check_first_frames, read_first_frames
from pretrain.generation.clip_folder import COMMAND, ClipFolder
from pretrain.generation.conditions import check_texts, reference_voices
from pretrain.generation.config import GenerateConfig, device_of
from pretrain.generation.jobs import ClipJob, batches_of, clip_jobs, left_out
from pretrain.generation.maker import AS_IT_IS, ModelChange, check_fit
from pretrain.generation.order import ClipDone, ClipOrder, one_process
from pretrain.generation.request import made_with
from pretrain.model.checkpoint import read_model_folder
from pretrain.progress import track
from pretrain.prompt import PromptRow, check_files, read_prompts
from pretrain.storage import is_remote

INDEX_EVERY_S = 10.0  # index.jsonl of what is there, while clips are made
OnBegin = Callable[[], None]


@dataclass(frozen=True)
class Spread:
    """Who makes the batches of an order.

    run: yields each clip that is done, and calls `begin` before the first is written. processes: how many
    share the cores of this machine; context: ranks that hold the tokens of one clip together.
    """

    run: Callable[[ClipOrder, OnBegin], Iterator[ClipDone]]
    processes: int = 1
    context: int = 1


HERE = Spread(one_process)


def generate(
    config: GenerateConfig,
    model: Path,
    codec: Path,
    prompts: Path,
    out: Path,
    limit: int | None = None,
    change: ModelChange = AS_IT_IS,
    *,
    spread: Spread = HERE,
    aside: bool = False,
) -> dict[str, Any]:
    """Make a clip for every prompt and seed: out/NAME.mp4, .wav and index.jsonl. Returns counts and seconds.

    `out`, a folder or the place of a URL, gets each clip as it is done, and knows what it is made with: the
    same call after a kill makes what is missing, whatever `spread`; one that is finished with something else
    goes to the trash, an unfinished one too with `aside`. change: of the loaded model, which marks its clips.
    Everything is checked before work starts. Raises ValueError, FileNotFoundError or OSError in one line;
    also where clips could not be made, after all others are.
    """
    device_of(config)
    jobs = checked_jobs(read_prompts(prompts)[:limit], config)
    described, codecs = read_model_folder(model), load_codecs(codec)
    check_fit(described, model, codecs, codec)
    check_texts([job.row for job in jobs], codecs)
    voices = reference_voices([job.row for job in jobs], prompts, codecs)
    marks = {**marks_of(described.facts["checkpoint_id"], codecs), **change.marks()}
    request = made_with(described, codecs, change.marks(), config, jobs, spread.context)
    started = time.perf_counter()
    with _alone(out):
        folder = ClipFolder.of(out, request, [job.name for job in jobs], aside)
        if folder.not_kept:
            told = f"{out}: begun by an earlier version, which did not keep its {folder.not_kept}; goes on"
            print(told, file=sys.stderr)
        there = folder.done() if folder.state in ("unfinished", "finished") else {}
        made = {"clips": len(jobs), "made": len(jobs) - len(there)}
        if folder.state != "finished":
            if there:
                print(f"{out}: {len(there)} of {len(jobs)} clips are there; going on", file=sys.stderr)
            batches = batches_of(jobs, config)
            missing = frozenset(job.name for job in jobs if job.name not in there)
            order = ClipOrder(
                config=config,
                model=model,
                codec=codec,
                out=str(folder.place),
                request=folder.request,
                batches=batches,
                todo=[
                    number for number, batch in enumerate(batches) if missing & {job.name for job in batch}
                ],
                missing=missing,
                threads=folder.threads or config.threads or threads_of(spread.processes),
                change=change,
                voices=voices,
            )
            _carry_out(order, folder, spread, prompts.stem)
    return {**made, "seconds": round(time.perf_counter() - started, 2), **marks}


def checked_jobs(rows: Sequence[PromptRow], config: GenerateConfig) -> list[ClipJob]:
    """The clips that are asked for. Raises in one line for whatever of them can be wrong without a model."""
    jobs = clip_jobs(rows, config)
    asked = [job.row for job in jobs]
    for note in left_out(rows, config):
        print(f"note: {note}", file=sys.stderr)
    check_files(asked)
    check_first_frames(asked, config, config.fit)
    check_memory(asked, config, config.fps, config.batch_size)
    check_sound(asked, config, config.fps)
    for row in {row.image_path: row for row in asked if row.image_path}.values():
        read_first_frames([row])  # decoded, so that a damaged one is known before the work
    return jobs


def _carry_out(order: ClipOrder, folder: ClipFolder, spread: Spread, what: str) -> None:
    """Make what is missing. Raises ValueError for clips that could not be made, when all others are."""
    failed: list[ClipDone] = []
    written = time.monotonic()
    before = torch.get_num_threads()
    torch.set_num_threads(order.threads)
    try:
        clips = spread.run(order, lambda: folder.begin(order.threads))
        for clip in track(clips, len(order.missing), f"generate {what}"):
            if clip.reason:
                failed.append(clip)
                continue
            folder.took([clip.row])
            if time.monotonic() - written > INDEX_EVERY_S:
                folder.write_index()
                written = time.monotonic()
        if failed and not folder.done():
            folder.abandon()
        elif failed:
            folder.write_index()
    finally:
        torch.set_num_threads(before)
    if failed:
        count, first = f"{len(failed)} of {len(order.missing)} clips", failed[0]
        raise ValueError(f"{count} could not be made; {first.name}: {first.reason}")
    folder.finish()


def threads_of(processes: int) -> int:
    """Threads of each of this many processes on this machine; of one alone, what torch would take."""
    if processes == 1:
        return torch.get_num_threads()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // processes)


def _alone(out: Path) -> Any:
    """Hold the folder against another command of this machine. A store's place cannot be held."""
    where = str(out) if is_remote(out) else os.path.realpath(out)
    name = hashlib.sha256(where.encode()).hexdigest()[:16]
    uid = os.getuid() if hasattr(os, "getuid") else 0
    lock = Path(tempfile.gettempdir()) / f"nava-generate-{uid}" / f"{name}.lock"
    lock.parent.mkdir(mode=0o700, exist_ok=True)
    found = lock.parent.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != uid:
        raise OSError(f"{lock.parent}: not a folder of yours, where locks are kept; remove it")
    return locked(
        lock, f"{out}: another `nava {COMMAND}` is at work here; wait for it, or give another folder"
    )
