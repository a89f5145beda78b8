"""Jobs that wait to workers that are free, in batches of one kind."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestration.generation_service.database import DatabaseFull
from orchestration.generation_service.job import CANCELLED, COMPLETED, FAILED, IN_PROGRESS, QUEUED, VideoJob
from orchestration.generation_service.limits import JobLimits
from orchestration.generation_service.making import MadeBatch, MakeTask
from orchestration.generation_service.metrics import GenerationMetrics
from orchestration.generation_service.pace import Pace, ahead_of, estimate
from orchestration.generation_service.results import Folders
from orchestration.generation_service.store import JobStore
from orchestration.generation_service.worker import MakingWorker, WorkerLost

LOG = logging.getLogger(__name__)
PROGRESS_S = 0.5  # between two questions to a worker
PAUSE_S = 5.0  # after a full disk, and between starts of a worker that does not start
TRIM_S, TRIM_EVERY_S = 2.0, 30.0  # after a batch, and without one
LOOK_S = 1.0


@dataclass
class Running:
    """A batch that is being made."""

    jobs: Sequence[VideoJob]
    began: float = field(default_factory=time.monotonic)
    share: float = 0.0
    unwanted: set[str] = field(default_factory=set)

    def left_s(self, pace: Pace) -> float:
        """Seconds that it still needs; NaN where nothing was measured."""
        seconds = pace.seconds(self.jobs) - (time.monotonic() - self.began)
        return seconds if math.isnan(seconds) else max(0.0, seconds)


class Dispatcher:
    """One task for each worker. Everything is in the store before it is done, so any of them may die."""

    def __init__(
        self,
        store: JobStore,
        folders: Folders,
        workers: Sequence[MakingWorker],
        limits: JobLimits,
        batch: int,
        metrics: GenerationMetrics,
    ) -> None:
        self.store, self.folders, self.workers, self.limits = store, folders, workers, limits
        self.batch, self.metrics, self.pace = batch, metrics, Pace()
        self.running: dict[int, Running] = {}
        self.wrong: dict[int, str] = dict.fromkeys(range(len(workers)), "loading")
        self.cannot_load = ""
        self.draining = False
        self._turns, self._turn = dict[str, int](), 0
        self._trim_due = True
        self._choosing = asyncio.Lock()
        self._woken = asyncio.Condition()
        self._tasks: list[asyncio.Task[None]] = []

    def begin(self) -> None:
        self._tasks = [asyncio.create_task(self._serve(number)) for number in range(len(self.workers))]
        self._tasks.append(asyncio.create_task(self._keep_trimmed()))

    async def end(self) -> None:
        """At once; what runs waits again when the store is opened next."""
        left = set(self._tasks)
        while left:  # a task may lose a cancellation that meets the end of what it waits for
            for task in left:
                task.cancel()
            left = (await asyncio.wait(left, timeout=1.0))[1]

    async def drain(self) -> bool:
        """No further batch begins; True when those that run have ended, False after `drain_seconds`."""
        self.draining = True
        await self.wake()
        ends = time.monotonic() + self.limits.drain_seconds
        while self.running and time.monotonic() < ends:
            await asyncio.sleep(0.1)
        return not self.running

    async def wake(self) -> None:
        """A job has come."""
        async with self._woken:
            self._woken.notify_all()

    async def unwanted(self, id: str) -> None:
        """A job was cancelled or deleted; its batch goes on for the others, or is dropped."""
        for number, running in list(self.running.items()):
            if id in {job.id for job in running.jobs}:
                running.unwanted.add(id)
                if len(running.unwanted) == len(running.jobs):
                    await _quietly(self.workers[number].drop())

    def holds(self, id: str) -> bool:
        """A batch with this job runs, which may read its inputs; they go when it ends."""
        return any(id in {job.id for job in running.jobs} for running in self.running.values())

    def progress_of(self, job: VideoJob) -> int:
        """Percent, of a job that is being made; 99 is the most before it is kept."""
        for running in self.running.values():
            if any(one.id == job.id for one in running.jobs):
                return min(99, int(100 * running.share))
        return 0

    def outlook(self, job: VideoJob) -> tuple[int | None, float | None]:
        """(jobs before it, seconds until it is made): None where it does not wait, or none are known."""
        for running in self.running.values():
            if any(one.id == job.id for one in running.jobs):
                left = running.left_s(self.pace)
                return None, None if math.isnan(left) else left
        waiting = self.store.waiting()
        if not any(one.number == job.number for one in waiting):
            return None, None
        ahead = ahead_of(job, waiting)
        before = {one.number for one in ahead}
        behind = [one for one in waiting if one.number not in before]
        busy = sum(running.left_s(self.pace) for running in self.running.values())
        workers = max(1, len(self.workers) - len([reason for reason in self.wrong.values() if reason]))
        return len(ahead), estimate(job, ahead, behind, busy, self.pace, workers, self.batch)

    def wait_s(self) -> int:
        """Seconds after which a full queue has a free place, as far as is known; 1 to 600."""
        waiting = self.store.waiting()
        seconds = self.pace.seconds(waiting[: self.batch]) / max(1, len(self.workers))
        return 5 if math.isnan(seconds) else int(min(600.0, max(1.0, seconds)))

    def health(self) -> str:
        """ "" or what is wrong: no worker can make anything."""
        if self.wrong and all(self.wrong.values()):
            return f"no worker: {next(iter(self.wrong.values()))}"
        return ""

    async def _serve(self, number: int) -> None:
        while True:
            try:
                if await self._start(number):
                    jobs = await self._next(number)
                    await self._make(number, jobs)
                    await self._tidy(jobs)
            except DatabaseFull as error:
                LOG.error("%s", error)
                self.wrong[number] = "the disk is full"
                await self._give_back(number)
            except Exception:
                LOG.exception("worker %d", number)
                await self._give_back(number)
            finally:
                self.running.pop(number, None)
            await self.wake()

    async def _give_back(self, number: int) -> None:
        """What did not end waits again, as soon as the disk takes it."""
        jobs = self.running[number].jobs if number in self.running else ()
        while True:
            await asyncio.sleep(PAUSE_S)
            try:
                for job in jobs:
                    await self.store.give_back(job)
            except DatabaseFull:
                continue
            return

    async def _start(self, number: int) -> bool:
        worker = self.workers[number]
        try:
            await worker.ready()
        except WorkerLost as error:
            await self._replace(number, str(error))
            await asyncio.sleep(0.2)
            return False
        except ValueError as error:
            self.wrong[number] = self.cannot_load = str(error)
            await asyncio.sleep(PAUSE_S)
            await worker.replace()
            return False
        self.wrong[number] = self.cannot_load = ""
        return True

    async def _next(self, number: int) -> list[VideoJob]:
        """Jobs for a free worker, in progress when this returns."""
        while True:
            async with self._woken:
                while self.draining or not self.store.waiting():
                    with suppress(TimeoutError):  # a caller who left after acceptance wakes nobody
                        async with asyncio.timeout(LOOK_S):
                            await self._woken.wait()
            async with self._choosing:
                if self.draining or not (chosen := self._choose()):
                    continue
                self.running[number] = Running(chosen)  # before the store says so: `drain` must see it
                started = await self.store.start([job.id for job in chosen])
                if not started:
                    self.running.pop(number, None)
                    continue
                for owner in {job.owner for job in started}:
                    self._turn += 1
                    self._turns[owner] = self._turn
                self.running[number] = Running(started)
                return started

    def _choose(self) -> list[VideoJob]:
        waiting = self.store.waiting()
        owners = {job.owner for job in waiting}
        self._turns = {owner: turn for owner, turn in self._turns.items() if owner in owners}
        working = Counter(job.owner for running in self.running.values() for job in running.jobs)
        return chosen(waiting, working, self._turns, self.batch)

    async def _make(self, number: int, jobs: Sequence[VideoJob]) -> None:
        worker, running = self.workers[number], self.running[number]
        try:
            await worker.progress()
        except WorkerLost as error:  # while it had nothing to do: no job is to blame
            for job in jobs:
                await self.store.give_back(job)
            return await self._replace(number, str(error))
        watching = asyncio.create_task(self._watch(worker, running))
        self.metrics.batch_clips.observe(len(jobs))
        try:
            tasks = [self._task(job) for job in jobs]
            async with asyncio.timeout(self.limits.batch_seconds):
                made = await worker.make(tasks)
        except (WorkerLost, TimeoutError) as error:
            why = str(error) or f"no answer after {self.limits.batch_seconds:g} s"
            await self._replace(number, why)
            return await self._lost(jobs, why)
        finally:
            watching.cancel()
        seconds = time.monotonic() - running.began
        if made.outcome == "made":
            self.pace.note(jobs[0].kind, sum(job.cost for job in jobs), seconds)
            self.metrics.batch_seconds.observe(seconds)
        await self._keep(number, jobs, made)

    def _task(self, job: VideoJob) -> MakeTask:
        stem = self.folders.work / f"{job.id}-{job.attempt}"
        return MakeTask(name=job.id, wanted=job.wanted, inputs=self.folders.inputs(job.id), files=stem)

    async def _watch(self, worker: MakingWorker, running: Running) -> None:
        while True:
            await asyncio.sleep(PROGRESS_S)
            try:
                running.share = max(running.share, await worker.progress())
                if len(running.unwanted) == len(running.jobs):
                    await worker.drop()
            except WorkerLost:  # which `make` says too, or it is busy
                continue

    async def _keep(self, number: int, jobs: Sequence[VideoJob], made: MadeBatch) -> None:
        if made.outcome == "disk":
            self.wrong[number] = "the disk is full"
            for job in jobs:
                await self.store.give_back(job)
            self._clear(jobs)
            await asyncio.sleep(PAUSE_S)
        elif made.outcome == "dropped":
            for job in jobs:  # one that came back to life between: it waits again
                await self.store.give_back(job)
        elif made.outcome == "refused":
            for job in jobs:
                if len(jobs) > 1:
                    await self.store.give_back(job, suspect=True)
                else:
                    await self._failed(job, "cannot_be_made", made.reason)
        else:
            by_name = {clip.name: clip for clip in made.clips}
            for job in jobs:
                clip = by_name[job.id]
                if clip.reason:
                    await self._failed(job, "cannot_be_made", clip.reason)
                else:
                    await self._completed(number, job, dict(clip.files))
        self._trim_due = True

    async def _tidy(self, jobs: Sequence[VideoJob]) -> None:
        """Inputs go with the end of their job, but not while a batch may read them."""
        ended = [job.id for job in jobs if self.store.status_of(job.id) not in (QUEUED, IN_PROGRESS)]
        await asyncio.to_thread(self.folders.forget_inputs, ended)

    async def _completed(self, number: int, job: VideoJob, files: dict[str, Path]) -> None:
        try:
            sizes = await asyncio.to_thread(self.folders.take, job.id, files)
        except OSError as error:
            LOG.error("%s: %s", job.id, error)
            self.wrong[number] = "results cannot be written"
            await self.store.give_back(job)
            return await asyncio.sleep(PAUSE_S)
        if await self.store.finish(job, sizes.get("video", 0), sizes.get("audio", 0)):
            self.metrics.jobs.labels(COMPLETED).inc()
            self.metrics.job_seconds.observe(time.time() - job.created_at)
        elif self.store.status_of(job.id) in ("", CANCELLED, FAILED):  # while it was made
            await asyncio.to_thread(self.folders.forget_results, [job.id])

    async def _failed(self, job: VideoJob, code: str, reason: str) -> None:
        if await self.store.fail(job, code, reason):
            self.metrics.jobs.labels(FAILED).inc()

    async def _lost(self, jobs: Sequence[VideoJob], why: str) -> None:
        """Done again, each alone; one that loses workers while it is alone fails."""
        self._clear(jobs)
        alone = len(jobs) == 1
        for job in jobs:
            if alone and job.losses + 1 >= self.limits.lost_workers:
                reason = (
                    f"{job.losses + 1} workers were lost while they made this clip alone; the last: {why}"
                )
                await self._failed(job, "worker_lost", reason)
            else:
                await self.store.give_back(job, suspect=True, lost_alone=alone)

    def _clear(self, jobs: Sequence[VideoJob]) -> None:
        for job in jobs:
            for path in self.folders.work.glob(f"*{job.id}-*"):
                path.unlink(missing_ok=True)

    async def _replace(self, number: int, why: str) -> None:
        LOG.warning("worker %d: %s; another is started", number, why)
        self.wrong[number] = f"lost ({why})"
        self.metrics.lost_workers.inc()
        await self.workers[number].replace()

    async def trim(self) -> None:
        """Forget what is beyond its time or quota."""
        gone = await self.store.trim()
        if gone.expired or gone.forgotten:
            ids = [*gone.expired, *gone.forgotten]
            await asyncio.to_thread(self.folders.forget_results, ids)
        self.metrics.expired.inc(len(gone.expired))

    async def _keep_trimmed(self) -> None:
        last = 0.0
        while True:
            await asyncio.sleep(TRIM_S)
            if not self._trim_due and time.monotonic() - last < TRIM_EVERY_S:
                continue
            self._trim_due, last = False, time.monotonic()
            try:
                await self.trim()
            except Exception:
                LOG.exception("results")


def chosen(
    waiting: Sequence[VideoJob], working: Counter[str], turns: dict[str, int], batch: int
) -> list[VideoJob]:
    """The next batch: the oldest job of the token that has the fewest at work, then of the one that waits
    longest for a turn; with it others of its kind, tokens in turns. A suspect is alone.

    waiting: in the order in which they were accepted; turns: when each token was served last.
    """
    if not waiting:
        return []

    def first(jobs: Sequence[VideoJob], counts: Counter[str]) -> VideoJob:
        return min(jobs, key=lambda job: (counts[job.owner], turns.get(job.owner, 0), job.number))

    head = first(waiting, working)
    if head.suspect:
        return [head]
    found, counts = [head], Counter({head.owner: 1})
    like = [job for job in waiting if job.kind == head.kind and not job.suspect and job is not head]
    while like and len(found) < batch:
        job = first(like, counts)
        counts[job.owner] += 1
        found.append(job)
        like.remove(job)
    return found


async def _quietly(work: Coroutine[Any, Any, None]) -> None:
    with suppress(WorkerLost):
        await work
