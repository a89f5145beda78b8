"""The pages and their interface.

A rater is known by the secret in the path of the personal link, the owner by a bearer token. There are no
cookies, so another site can make no browser act for either.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from experiments.voting import owner, store
from experiments.voting.body import RefusedError, identifier, is_identifier, read_object, vote_body
from experiments.voting.database import StorageAwayError, StorageFullError, reading
from experiments.voting.prompts import prompt_parts
from experiments.voting.serving import SameHeaders, media_answer
from experiments.voting.site import Site
from experiments.voting.store import ConflictError, LinkedRater

STATIC = Path(__file__).parent / "static"
TYPES = {".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8"}
TYPES |= {".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}


def make_app(site: Site) -> FastAPI:
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(SameHeaders)
    _answer_errors(app)
    _add_pages(app, site)
    _add_rater(app, site)
    owner.add_routes(app, site)
    return app


def _answer_errors(app: FastAPI) -> None:
    def answer(status: int, code: str, message: str) -> JSONResponse:
        return JSONResponse({"code": code, "error": message}, status)

    app.add_exception_handler(RefusedError, lambda _, e: answer(e.status, e.code, str(e)))  # type: ignore[attr-defined]
    app.add_exception_handler(ConflictError, lambda _, e: answer(409, e.code, str(e)))  # type: ignore[attr-defined]
    app.add_exception_handler(StorageFullError, lambda _, e: answer(507, "full", str(e)))
    app.add_exception_handler(StorageAwayError, lambda _, e: answer(503, "away", str(e)))
    app.add_exception_handler(HTTPException, lambda _, e: answer(e.status_code, "http", str(e.detail)))  # type: ignore[attr-defined]


def static_file(name: str, status: int = 200) -> Response:
    path = STATIC / name
    return Response(path.read_bytes(), status, media_type=TYPES[path.suffix])


def _add_pages(app: FastAPI, site: Site) -> None:
    names = {path.name for path in STATIC.iterdir() if path.suffix in TYPES}

    @app.get("/healthz")
    def health() -> dict[str, str]:
        with reading(site.engine):
            return {"status": "ok"}

    @app.get("/")
    def start() -> Response:
        return static_file("start.html")

    @app.get("/owner")
    def owner_page() -> Response:
        return static_file("owner.html")

    @app.get("/static/{name}")
    def static(name: str) -> Response:
        if name not in names:
            raise RefusedError(404, "page", "there is no such page")
        return static_file(name)

    @app.get("/texts")
    def languages() -> dict[str, str]:
        return site.texts.names()

    @app.get("/texts/{code}")
    def texts(code: str) -> dict[str, str]:
        if code not in site.texts.by_code:
            raise RefusedError(404, "language", "there is no such language")
        return site.texts.by_code[code]


def _add_rater(app: FastAPI, site: Site) -> None:
    _add_media(app, site)

    @app.get("/r/{link}")
    def page(link: str) -> Response:
        try:
            site.rater(link)
        except RefusedError as error:
            return static_file("start.html", error.status)
        return static_file("rate.html")

    @app.get("/r/{link}/state")
    def state(link: str) -> dict[str, Any]:
        rater = site.rater(link)
        return _state(site, rater)

    @app.post("/r/{link}/votes")
    async def vote(link: str, request: Request) -> dict[str, Any]:
        values = await read_object(request)
        return await run_in_threadpool(_vote, site, link, values)

    @app.post("/r/{link}/undo")
    async def undo(link: str, request: Request) -> dict[str, Any]:
        values = await read_object(request)
        return await run_in_threadpool(_undo, site, link, values)


def _add_media(app: FastAPI, site: Site) -> None:
    @app.api_route("/r/{link}/clips/{token}", methods=["GET", "HEAD"])
    def clip(link: str, token: str, request: Request) -> Response:
        rater = site.rater(link)
        found = store.clip_of(site.engine, rater, token) if is_identifier(token) else None
        if found is None:
            raise RefusedError(404, "clip", "there is no such clip")
        task, side, file = found
        answer = media_answer(request, site.folder / site.survey(rater.survey_id).name / file, "video/mp4")
        if request.method == "GET" and answer.status_code < 300:
            _note(site, task, side)
        return answer

    @app.api_route("/r/{link}/references/{task}/{number}", methods=["GET", "HEAD"])
    def reference(link: str, task: str, number: str, request: Request) -> Response:
        rater = site.rater(link)
        usable = is_identifier(task) and number.isascii() and number.isdigit() and len(number) < 4
        file = store.reference_of(site.engine, rater, task, int(number)) if usable else None
        if file is None:
            raise RefusedError(404, "reference", "there is no such sound")
        return media_answer(request, site.folder / site.survey(rater.survey_id).name / file, "audio/wav")


def _note(site: Site, task: int, side: str) -> None:
    """A store without room does not keep a clip from being seen; the showing is written with the vote."""
    if (task, side) in site.noted:
        return
    try:
        store.note_shown(site.engine, task, side)
        site.noted.add((task, side))
    except (StorageFullError, StorageAwayError):
        site.unnoted.add((task, side))


def _state(site: Site, rater: LinkedRater) -> dict[str, Any]:
    found = store.state_of(site.engine, rater)
    config = site.survey(rater.survey_id).config
    task = found["task"]
    shown = None
    if task is not None:
        shown = {
            "id": task["token"],
            "left": f"clips/{task['left_token']}",
            "right": f"clips/{task['right_token']}",
            "prompt": prompt_parts(task["prompt"]),
            "duration_s": round(task["duration_s"], 3),
            "references": [f"references/{task['token']}/{i}" for i in range(len(task["references"]))],
        }
    progress = {"done": found["done"], "of": found["of"], "last": found["last"]}
    return {"title": config.title, "axes": list(config.axes), **progress, "task": shown}


def _vote(site: Site, link: str, values: dict[str, Any]) -> dict[str, Any]:
    rater = site.rater(link)
    body = vote_body(values, site.survey(rater.survey_id).config.axes)
    for task, side in list(site.unnoted):
        store.note_shown(site.engine, task, side)
        site.unnoted.discard((task, side))
    new = _of_rater(
        lambda: store.cast(site.engine, rater, body.id, body.task, body.answers, body.seconds, body.comment)
    )
    return {"stored": True, "new": new}


def _undo(site: Site, link: str, values: dict[str, Any]) -> dict[str, Any]:
    rater = site.rater(link)
    request_id, task = identifier(values, "id"), identifier(values, "task")
    return {"stored": True, "new": _of_rater(lambda: store.take_back(site.engine, rater, request_id, task))}


def _of_rater(action: Callable[[], bool]) -> bool:
    try:
        return action()
    except KeyError:
        raise RefusedError(404, "task", "there is no such pair") from None
