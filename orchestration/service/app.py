"""The web application over a `ScoringBackend`: FastAPI, no ray."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from orchestration.futures import short_line
from orchestration.service.body import Spool, uploads_folder
from orchestration.service.decode import Decoded, DecodeJob
from orchestration.service.decoders import Decoders
from orchestration.service.fair import Caller
from orchestration.service.front.config import CALLER_HEADER
from orchestration.service.gate import INTERNAL, RequestGate
from orchestration.service.gate_paths import HEALTH, METRICS, SCORE
from orchestration.service.limits import Limits, Refusal
from orchestration.service.metrics import ServiceMetrics
from orchestration.service.paths import real_path
from orchestration.service.schema import (
    PART,
    RefusalAnswer,
    RewardAnswer,
    ScoreAnswer,
    ScoreRequest,
    ServedReward,
    read_request,
)
from orchestration.service.scoring import RewardFailed, ScoringBackend, SharedClip
from rewards.rubric import Rubric
from rewards.types import Clip, Score, split_part

_JSON_AND_FILES = {
    "description": "One clip. With uploads: multipart/form-data, this JSON as the part `request`, files as "
    "parts it names `part:NAME`.",
    "content": {
        "application/json": {"schema": ScoreRequest.model_json_schema()},
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["request"],
                "properties": {
                    "request": {"type": "string"},
                    **{part: {"type": "string", "format": "binary"} for part in ("video", "audio")},
                },
            }
        },
    },
}
_REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": RefusalAnswer} for status in (401, 403, 408, 413, 415, 422, 503)
}


def build_app(
    scoring: ScoringBackend,
    roots: Sequence[Path],
    limits: Limits,
    token_digest: bytes,
    rubric: Rubric | None = None,
) -> RequestGate:
    """ASGI app. `roots`: folders of clips; `token_digest`: gate.digest_of(token); `rubric`: for totals."""
    metrics = ServiceMetrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI):
        with uploads_folder() as folder:
            service.spool = Spool(folder, limits)
            service.decoders = Decoders(limits, roots)
            yield
            service.decoders.close()

    app = FastAPI(title="NAVA rewards", lifespan=lifespan, docs_url=None, redoc_url=None)
    service = app.state.service = _Service(scoring, roots, metrics, rubric)

    @app.post(SCORE, responses=_REFUSALS, openapi_extra={"requestBody": _JSON_AND_FILES})
    async def score(request: Request) -> ScoreAnswer:
        """Scores one clip; a reward that fails or has no score for it says so, and the others answer."""
        return await service.score(request)

    @app.get("/v1/rewards")
    async def rewards() -> list[ServedReward]:
        """What may be asked for."""
        return list(scoring.served.values())

    @app.get(HEALTH)
    async def health() -> dict[str, str]:
        """200 where every reward answers; needs no token."""
        if wrong := await scoring.health():
            raise Refusal(503, wrong, "service", retry_after_s=5)
        return {"status": "ok"}

    @app.get(METRICS)
    async def prometheus() -> Response:
        """Prometheus text."""
        metrics.held.labels("uploads").set(service.spool.held)
        metrics.held.labels("decoded").set(service.decoders.bytes.held)
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    @app.exception_handler(Refusal)
    async def refused(request: Request, refusal: Refusal) -> Response:
        return Response(refusal.content(), refusal.status, refusal.headers(), "application/json")

    @app.exception_handler(Exception)  # re-raised to the gate, which logs it
    async def failed(request: Request, error: Exception) -> Response:
        return await refused(request, INTERNAL)

    @app.exception_handler(HTTPException)
    async def not_found(request: Request, error: HTTPException) -> Response:
        refusal = Refusal(error.status_code, short_line(error) if not error.detail else str(error.detail))
        return Response(refusal.content(), refusal.status, error.headers, "application/json")

    return RequestGate(app, token_digest, limits, metrics)


class _Service:
    spool: Spool
    decoders: Decoders

    def __init__(
        self,
        scoring: ScoringBackend,
        roots: Sequence[Path],
        metrics: ServiceMetrics,
        rubric: Rubric | None,
    ) -> None:
        self.scoring, self.roots, self.metrics, self.rubric = scoring, roots, metrics, rubric

    async def score(self, incoming: Request) -> ScoreAnswer:
        started = time.monotonic()
        try:
            async with self.spool.receive(incoming) as body:
                parsed = read_request(body.request, set(body.uploads), list(self.scoring.served))
                job = await asyncio.to_thread(self._job, parsed, body.uploads)
                async with self.decoders.decoded(job, self.spool.folder, _caller(incoming)) as decoded:
                    names = list(dict.fromkeys(parsed.rewards or self.scoring.served))
                    results = await self._answers(names, _clip(parsed, decoded))
        except ClientDisconnect:
            raise Refusal(408, "body: the connection ended before the body did") from None
        scores = dict(zip(names, results, strict=True))
        total = total_of(self.rubric, scores) if self.rubric else None
        return ScoreAnswer(scores=scores, seconds=round(time.monotonic() - started, 3), total=total)

    def _job(self, parsed: ScoreRequest, uploads: dict[str, Path]) -> DecodeJob:
        def real(name: str | None, field: str) -> str | None:
            if name is None:
                return None
            return str(
                uploads[name.removeprefix(PART)]
                if name.startswith(PART)
                else real_path(name, self.roots, field)
            )

        clip = real(parsed.clip, "clip")
        assert clip is not None  # read_request refuses a request without
        return DecodeJob(
            clip,
            real(parsed.audio, "audio"),
            [real(name, f"references[{index}]") for index, name in enumerate(parsed.references)],
            real(parsed.first_frame, "first_frame"),
            real(parsed.reference_sound, "reference_sound"),
        )

    async def _answers(self, names: Sequence[str], clip: Clip) -> list[RewardAnswer]:
        try:
            shared = await self.scoring.share(clip)
        except RewardFailed as error:
            return [_failed(error) for _ in names]
        return await asyncio.gather(*(self._answer(name, shared) for name in names))

    async def _answer(self, name: str, clip: Clip | SharedClip) -> RewardAnswer:
        started = time.monotonic()
        try:
            answer = _answer_of(await self.scoring.score(name, clip))
        except RewardFailed as error:
            answer = _failed(error)
        outcome = "failed" if answer.error else "unscorable" if answer.reason else "scored"
        self.metrics.rewards.labels(name, outcome).inc()
        self.metrics.reward_seconds.labels(name).observe(time.monotonic() - started)
        return answer


def _caller(incoming: Request) -> Caller:
    """As the front tells it, which alone has this application's token."""
    token, _, address = incoming.headers.get(CALLER_HEADER, "").partition(" ")
    return Caller(token, address)


def _clip(parsed: ScoreRequest, decoded: Decoded) -> Clip:
    arrays = decoded.arrays
    references = tuple(arrays.get(f"references[{index}]") for index in range(len(parsed.references)))
    spans = tuple(parsed.spans or ())
    return Clip(
        waveform=arrays.get("waveform"),
        sample_rate_hz=decoded.sample_rate_hz,
        frames=arrays.get("frames"),
        fps=decoded.fps,
        mended=decoded.mended,
        prompt=parsed.prompt,
        spans=spans,
        references=references + (None,) * (len(spans) - len(references)),
        voices=tuple(parsed.voices),
        name=parsed.name,
        mouth_boxes=tuple(parsed.mouth_boxes),
        face_boxes=tuple(parsed.face_boxes),
        span_times=tuple(parsed.span_times),
        first_frame=arrays.get("first_frame"),
        reference_sound=arrays.get("reference_sound"),
    )


def total_of(rubric: Rubric, answers: Mapping[str, RewardAnswer]) -> RewardAnswer | None:
    """The rubric's total of one clip, or why it has none; None where one of its rewards was not asked for."""
    columns = {
        name: [Score(_measured(answer.value), answer.reason or answer.error, _parts(answer))]
        for name, answer in answers.items()
    }
    if any(split_part(item.reward, columns)[0] not in columns for item in rubric.items):
        return None
    try:
        (total,) = rubric.total(columns, [""]).totals
    except ValueError as error:  # a part that the reward did not give
        return RewardAnswer(reason=_sendable(short_line(error)))
    return _answer_of(total)


def _parts(answer: RewardAnswer) -> dict[str, float]:
    return {name: _measured(value) for name, value in answer.parts.items()}


def _measured(value: float | None) -> float:
    return math.nan if value is None else value


def _answer_of(score: Score) -> RewardAnswer:
    """JSON has no NaN and no infinity, and no halves of characters."""
    value = _number(score.value)
    return RewardAnswer(
        value=value,
        parts={_sendable(name): _number(part) for name, part in score.parts.items()},
        reason=_sendable(score.reason) or ("" if value is not None else f"its value is {float(score.value)}"),
        text=_sendable(score.text),
        seconds=_number(score.seconds) or 0.0,
    )


def _failed(error: RewardFailed) -> RewardAnswer:
    return RewardAnswer(error=_sendable(short_line(error)), again=error.again)


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _sendable(text: str) -> str:
    return " ".join(str(text).split()).encode("utf-8", "replace").decode()
