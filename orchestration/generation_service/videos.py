"""Answers of the video API over the store, the dispatcher and the files."""

from __future__ import annotations

import asyncio
import hashlib
import math
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import FileResponse

from orchestration.generation_service.dispatch import Dispatcher
from orchestration.generation_service.fields import FIRST_FRAME, read_fields, references_of
from orchestration.generation_service.job import (
    CANCELLED,
    COMPLETED,
    ENDED,
    FAILED,
    IN_PROGRESS,
    QUEUED,
    VideoJob,
    new_id,
    view,
)
from orchestration.generation_service.metrics import GenerationMetrics
from orchestration.generation_service.offer import Offer, Wanted
from orchestration.generation_service.results import SUFFIXES, Folders
from orchestration.generation_service.served_by import ServedBy
from orchestration.generation_service.store import JobStore
from orchestration.service.body import Body, Spool
from orchestration.service.decode import Decoded, DecodeJob
from orchestration.service.decoders import Decoders
from orchestration.service.fair import Caller
from orchestration.service.front.config import CALLER_HEADER
from orchestration.service.limits import Limits, Refusal

MOST_LISTED = 100
MIN_VOICE_S = 0.1
TYPES = {"video": "video/mp4", "audio": "audio/wav"}
_KEY = re.compile(r"[\x21-\x7e]{1,255}")


class Videos:
    """Each method answers one kind of request; the caller is whom the front says."""

    def __init__(
        self,
        offer: Offer,
        limits: Limits,
        store: JobStore,
        folders: Folders,
        dispatcher: Dispatcher,
        spool: Spool,
        decoders: Decoders,
        metrics: GenerationMetrics,
    ) -> None:
        self.offer, self.limits, self.store, self.folders = offer, limits, store, folders
        self.dispatcher, self.spool, self.decoders, self.metrics = dispatcher, spool, decoders, metrics

    async def create(self, incoming: Request) -> tuple[dict[str, Any], bool]:
        """(the accepted job, whether its key had come before). Raises Refusal; nothing is left of that."""
        caller, key = caller_of(incoming), _key_of(incoming)
        async with self.spool.receive(incoming) as body:
            digest = await asyncio.to_thread(_digest, body) if key else ""
            if key and (there := self.store.of_key(caller.token, key, digest)):
                return self._seen(there), True
            if self.dispatcher.draining:
                raise Refusal(503, "service: ending; try again when it is back", "service", 30, "draining")
            self.store.check_room(caller.token, self.dispatcher.wait_s())
            request, files = read_fields(body.request, body.uploads, self.limits.json_bytes)
            voices = references_of(files)
            wanted = self.offer.wanted(request, FIRST_FRAME in files, set(voices))
            job = self._job(caller, wanted, key, digest)
            if not files:
                return await self._accepted(job, None)
            sources = DecodeJob(
                references=[
                    str(voices[i]) if i in voices else None for i in range(max(voices, default=-1) + 1)
                ],
                first_frame=str(files[FIRST_FRAME]) if FIRST_FRAME in files else None,
            )
            async with self.decoders.decoded(sources, self.spool.folder, caller) as decoded:
                return await self._accepted(job, decoded)

    def poll(self, id: str, incoming: Request) -> dict[str, Any]:
        return self._seen(self._own(id, incoming))

    def page(self, incoming: Request) -> dict[str, Any]:
        asked = incoming.query_params
        if unknown := set(asked) - {"after", "limit", "order"}:
            raise Refusal(422, f"query: unknown parameter {min(unknown)[:40]!r}; after, limit or order")
        limit, order = asked.get("limit", "20"), asked.get("order", "desc")
        if not (limit.isdecimal() and len(limit) <= 3 and 1 <= int(limit) <= MOST_LISTED):
            raise Refusal(422, f"limit: {limit[:40]!r}; from 1 to {MOST_LISTED}")
        if order not in ("asc", "desc"):
            raise Refusal(422, f"order: {order[:40]!r}; asc or desc")
        owner = caller_of(incoming).token
        jobs, more = self.store.page(owner, asked.get("after", ""), int(limit), order == "desc")
        return {
            "object": "list",
            "data": [self._seen(job) for job in jobs],
            "first_id": jobs[0].id if jobs else None,
            "last_id": jobs[-1].id if jobs else None,
            "has_more": more,
            "retention": self._retention(owner),
        }

    async def content(self, id: str, incoming: Request) -> FileResponse:
        job = self._own(id, incoming)
        held = {"video": job.video_bytes, "audio": job.audio_bytes}
        variant = incoming.query_params.get("variant") or ("video" if job.video_bytes else "audio")
        if variant not in SUFFIXES:
            raise Refusal(422, f"variant: {variant[:40]!r}; video or audio")
        if job.status != COMPLETED:
            raise Refusal(404, f"job: {job.status}, so there is no clip of it", code="not_ready")
        why = {"time": "its time is over", "quota": "newer ones needed its place"}.get(job.expired, "")
        path = self.folders.result(job.id, variant)
        if why or not held[variant]:
            reason = f"clip: gone, {why}; make it again" if why else f"variant: this job made no {variant}"
            raise Refusal(410 if why else 404, reason)
        if not await asyncio.to_thread(path.is_file):
            raise Refusal(410, "clip: gone; make it again")
        return FileResponse(path, media_type=TYPES[variant], filename=path.name)

    async def cancel(self, id: str, incoming: Request) -> dict[str, Any]:
        before = self._own(id, incoming)
        job = await self.store.cancel(id, before.owner)
        if job is None:
            raise _no_job()
        if job.status in (COMPLETED, FAILED):
            raise Refusal(409, f"job: {job.status} already; delete it to forget it", code="already_ended")
        if before.status in (QUEUED, IN_PROGRESS):
            self.metrics.jobs.labels(CANCELLED).inc()
            await self.dispatcher.unwanted(id)
        if before.status == QUEUED and not self.dispatcher.holds(id):
            await asyncio.to_thread(self.folders.forget_inputs, [id])
        return self._seen(job)

    async def delete(self, id: str, incoming: Request) -> dict[str, Any]:
        job = await self.store.delete(self._own(id, incoming).id, caller_of(incoming).token)
        if job is None:
            raise _no_job()
        if job.status not in ENDED:
            self.metrics.jobs.labels("deleted").inc()
            await self.dispatcher.unwanted(id)
        if not self.dispatcher.holds(id):
            await asyncio.to_thread(self.folders.forget_inputs, [id])
        await asyncio.to_thread(self.folders.forget_results, [id])
        return {"id": id, "object": "video.deleted", "deleted": True}

    def measured(self) -> bytes:
        """Metrics of now."""
        counts = self.store.counts()
        for status in (QUEUED, IN_PROGRESS, COMPLETED, FAILED, CANCELLED):
            self.metrics.states.labels(status).set(counts.get(status, 0))
        self.metrics.kept_bytes.set(self.store.held_bytes())
        self.metrics.held.labels("uploads").set(self.spool.held)
        self.metrics.held.labels("decoded").set(self.decoders.bytes.held)
        return self.metrics.text()

    async def _accepted(self, job: VideoJob, decoded: Decoded | None) -> tuple[dict[str, Any], bool]:
        # on its own: a caller who leaves must not part a job from its files
        task = asyncio.create_task(self._accept(job, decoded))
        there, is_new = await asyncio.shield(task)
        retention = {"retention": self._retention(job.owner)} if is_new else {}
        return {**self._seen(there), **retention}, not is_new

    async def _accept(self, job: VideoJob, decoded: Decoded | None) -> tuple[VideoJob, bool]:
        if decoded is not None:
            voices = _voices(decoded)
            first = decoded.arrays.get("first_frame")
            try:
                await asyncio.to_thread(self.folders.keep_inputs, job.id, first, voices)
            except OSError:
                raise Refusal(
                    503, "service: its disk is full; try again later", "service", 60, "disk_full"
                ) from None
        try:
            there, is_new = await self.store.accept(job, self.dispatcher.wait_s())
        except BaseException:
            await asyncio.to_thread(self.folders.forget_inputs, [job.id])
            raise
        if not is_new:
            await asyncio.to_thread(self.folders.forget_inputs, [job.id])
        await self.dispatcher.wake()
        return there, is_new

    def _job(self, caller: Caller, wanted: Wanted, key: str, digest: str) -> VideoJob:
        config = self.offer.config
        return VideoJob(
            id=new_id(),
            owner=caller.token,
            wanted=wanted.to_json(),
            kind=wanted.kind(config),
            cost=wanted.cost(config),
            key=key or None,
            digest=digest,
            created_at=time.time(),
            served=ServedBy.of(self.offer, wanted).to_json(),
        )

    def _own(self, id: str, incoming: Request) -> VideoJob:
        job = self.store.find(id, caller_of(incoming).token)
        if job is None:
            raise _no_job()
        return job

    def _seen(self, job: VideoJob) -> dict[str, Any]:
        progress = self.dispatcher.progress_of(job) if job.status == IN_PROGRESS else 0
        place, wait_s = self.dispatcher.outlook(job) if job.status in (QUEUED, IN_PROGRESS) else (None, None)
        return view(job, self.offer.config.fps, progress, place, wait_s)

    def _retention(self, owner: str) -> Mapping[str, Any]:
        limits = self.offer.limits
        return {
            "seconds": limits.kept_seconds,
            "bytes": limits.token_bytes,
            "held_bytes": self.store.held_bytes(owner),
            "order": "the oldest results go first",
        }


def caller_of(incoming: Request) -> Caller:
    """As the front tells it, which alone has this application's token."""
    token, _, address = incoming.headers.get(CALLER_HEADER, "").partition(" ")
    return Caller(token, address)


def _no_job() -> Refusal:
    return Refusal(404, "id: no such job of this token; it may be forgotten")


def _key_of(incoming: Request) -> str:
    key = incoming.headers.get("idempotency-key", "")
    if key and not _KEY.fullmatch(key):
        raise Refusal(422, "idempotency_key: 1 to 255 visible ASCII characters, such as a UUID")
    return key


def _digest(body: Body) -> str:
    """Of what was sent, whatever the boundary and order of its parts."""
    digest = hashlib.sha256(hashlib.sha256(body.request).digest())
    for name, path in sorted(body.uploads.items()):
        digest.update(name.encode() + b"\0" + _digest_of(path))
    return digest.hexdigest()


def _digest_of(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _voices(decoded: Decoded) -> dict[int, Any]:
    """16 kHz samples by the number of their span. Raises Refusal 422 for one that is too short."""
    found = {}
    for name, samples in decoded.arrays.items():
        if not name.startswith("references["):
            continue
        seconds = len(samples) / 16_000
        if not math.isfinite(seconds) or seconds < MIN_VOICE_S:
            raise Refusal(422, f"{name}: {seconds:.3f} s of sound; at least {MIN_VOICE_S:g} s are needed")
        found[int(name[len("references[") : -1])] = samples
    return found
