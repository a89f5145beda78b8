"""The web application: jobs in, their state and files out. FastAPI, no Ray but what its workers hide."""

from __future__ import annotations

import asyncio
import fcntl
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from orchestration.futures import short_line
from orchestration.generation_service.database import DatabaseFull
from orchestration.generation_service.dispatch import Dispatcher
from orchestration.generation_service.fields import SCHEMA
from orchestration.generation_service.job import FAILED, VideoJob
from orchestration.generation_service.metrics import GenerationMetrics
from orchestration.generation_service.offer import Offer, Wanted
from orchestration.generation_service.results import Folders
from orchestration.generation_service.served_by import GONE, ServedBy, no_longer
from orchestration.generation_service.store import JobStore
from orchestration.generation_service.videos import Videos
from orchestration.generation_service.worker import MakingWorker
from orchestration.service.body import Spool, uploads_folder
from orchestration.service.decoders import Decoders
from orchestration.service.gate import INTERNAL, RequestGate
from orchestration.service.gate_paths import CANCEL, CONTENT, HEALTH, METRICS, MODELS, VIDEO, VIDEOS
from orchestration.service.limits import Limits, Refusal

OPERATOR = "/operator"  # of the process that started this one; the front passes no such path on
LOCK, LOCK_SECONDS = "lock", 60.0  # a killed application may still be ending


@dataclass(frozen=True, kw_only=True)
class AppConfig:
    """folder: of jobs and results; batch: clips that are made at once, at most."""

    offer: Offer
    folder: Path
    limits: Limits = field(default_factory=Limits)
    batch: int = 8


def build_video_app(
    config: AppConfig, token_digest: bytes, make_workers: Callable[[], Sequence[MakingWorker]]
) -> RequestGate:
    """ASGI app. token_digest: gate.digest_of(token) of the front; make_workers: called when it starts."""
    metrics = GenerationMetrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        folders = Folders.under(config.folder)
        async with _alone(folders.root / LOCK):
            store = JobStore(folders.database, config.offer.limits)
            await asyncio.to_thread(folders.sweep, store.ids)
            await store.recover()
            if failed := await store.take_over(
                lambda job: no_longer(job, config.offer), lambda job: _served(config.offer, job), GONE
            ):
                metrics.jobs.labels(FAILED).inc(len(failed))
                await asyncio.to_thread(folders.forget_inputs, failed)
            dispatcher = Dispatcher(
                store, folders, make_workers(), config.offer.limits, config.batch, metrics
            )
            with uploads_folder() as uploads:
                spool, decoders = Spool(uploads, config.limits), Decoders(config.limits, [])
                app.state.videos = Videos(
                    config.offer, config.limits, store, folders, dispatcher, spool, decoders, metrics
                )
                dispatcher.begin()
                yield
                await dispatcher.end()
                decoders.close()
            store.close()

    app = FastAPI(title="NAVA videos", lifespan=lifespan, docs_url=None, redoc_url=None)
    _routes(app)
    _operator(app)
    _errors(app)
    return RequestGate(app, token_digest, config.limits, metrics, "openai")


def _routes(app: FastAPI) -> None:
    def videos() -> Videos:
        return app.state.videos

    @app.post(VIDEOS, openapi_extra={"requestBody": SCHEMA})
    async def create(request: Request) -> Response:
        """A job, on disk when this answers. Idempotency-Key: the same key and body give the same job."""
        try:
            job, replayed = await videos().create(request)
        except ClientDisconnect:
            raise Refusal(408, "body: the connection ended before the body did") from None
        return JSONResponse(job, headers={"idempotency-replayed": "true"} if replayed else {})

    @app.get(VIDEOS)
    async def page(request: Request) -> dict[str, Any]:
        """Jobs of this token: `after` an id, `limit` 1 to 100, `order` desc or asc."""
        return videos().page(request)

    @app.get(VIDEO)
    async def poll(id: str, request: Request) -> dict[str, Any]:
        """The job with its progress, place in the queue and estimated wait."""
        return videos().poll(id, request)

    @app.get(CONTENT)
    async def content(id: str, request: Request) -> Response:
        """The clip: `variant` video (mp4 with sound) or audio (wav); ranges are answered."""
        return await videos().content(id, request)

    @app.post(CANCEL)
    async def cancel(id: str, request: Request) -> dict[str, Any]:
        """Ends a job that waits or is made; one that was cancelled before is answered as it is."""
        return await videos().cancel(id, request)

    @app.delete(VIDEO)
    async def delete(id: str, request: Request) -> dict[str, Any]:
        """Ends a job where it has not ended, and forgets it and its clip."""
        return await videos().delete(id, request)

    @app.get(MODELS)
    async def models() -> dict[str, Any]:
        """What is served, with adapters, defaults and limits."""
        return {"object": "list", "data": [videos().offer.described()]}

    @app.get(HEALTH)
    async def health() -> dict[str, str]:
        """200 where a worker can make clips; needs no token."""
        if wrong := videos().dispatcher.health():
            raise Refusal(503, wrong, "service", retry_after_s=5)
        return {"status": "draining" if videos().dispatcher.draining else "ok"}

    @app.get(METRICS)
    async def prometheus() -> Response:
        """Prometheus text."""
        return Response(videos().measured(), media_type="text/plain; version=0.0.4")


def _operator(app: FastAPI) -> None:
    """For the process that started this one, which has the front's token."""

    @app.get(OPERATOR)
    async def state() -> dict[str, Any]:
        dispatcher: Dispatcher = app.state.videos.dispatcher
        counts = dispatcher.store.counts()
        return {"wrong": dispatcher.health(), "cannot_load": dispatcher.cannot_load, "jobs": counts}

    @app.post(OPERATOR)
    async def drain() -> dict[str, Any]:
        dispatcher: Dispatcher = app.state.videos.dispatcher
        done = await dispatcher.drain()
        return {"drained": done, "jobs": dispatcher.store.counts()}


def _errors(app: FastAPI) -> None:
    def answer(refusal: Refusal, headers: Mapping[str, str] = {}) -> Response:
        return Response(
            refusal.content("openai"), refusal.status, {**headers, **refusal.headers()}, "application/json"
        )

    @app.exception_handler(Refusal)
    async def refused(request: Request, refusal: Refusal) -> Response:
        return answer(refusal)

    @app.exception_handler(DatabaseFull)
    async def full(request: Request, error: DatabaseFull) -> Response:
        return answer(Refusal(503, "service: its disk is full; try again later", "service", 60, "disk_full"))

    @app.exception_handler(Exception)  # re-raised to the gate, which logs it
    async def failed(request: Request, error: Exception) -> Response:
        return answer(INTERNAL)

    @app.exception_handler(HTTPException)
    async def not_found(request: Request, error: HTTPException) -> Response:
        reason = short_line(error) if not error.detail else str(error.detail)
        return answer(Refusal(error.status_code, reason), error.headers or {})


@asynccontextmanager
async def _alone(path: Path) -> AsyncIterator[None]:
    """Holds the folder: two applications on one store would make jobs twice. Raises OSError."""
    with path.open("w") as file:
        await asyncio.to_thread(_held, file, path)
        yield


def wait_until_free(folder: Path) -> None:
    """Waits for an application that is still ending. Raises OSError where another one has the folder."""
    with (Folders.under(folder).root / LOCK).open("w") as file:
        _held(file, folder)


def check_waiting(config: AppConfig) -> None:
    """Raises ValueError in one line where jobs wait that this offer cannot make as they were accepted."""
    store = JobStore(Folders.under(config.folder).database, config.offer.limits)
    try:
        waiting = store.unended()
    finally:
        store.close()
    if reasons := [reason for job in waiting if (reason := no_longer(job, config.offer))]:
        raise ValueError(
            f"{config.folder}: {len(reasons)} of {len(waiting)} jobs that wait cannot be made, the first was "
            f"{reasons[0]}; start it as it was to make them, give another --out, or --fail-waiting"
        )


def _served(offer: Offer, job: VideoJob) -> str:
    return ServedBy.of(offer, Wanted.from_json(job.wanted)).to_json()


def _held(file: IO[str], path: Path) -> None:
    ends = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > ends:
                raise OSError(f"{path}: another service has this folder; give each its own --out") from None
        time.sleep(0.2)
