"""The owner's side: surveys, their results, exports and raters' links. Every path asks for the token."""

from __future__ import annotations

import json
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.concurrency import run_in_threadpool

from experiments.voting import store
from experiments.voting.body import RefusedError, read_object, whole
from experiments.voting.database import reading
from experiments.voting.public import public_rows
from experiments.voting.results import as_csv, results
from experiments.voting.site import Site
from experiments.voting.survey import Survey, list_surveys

MAX_LINKS = 200  # at once


def add_routes(app: FastAPI, site: Site) -> None:
    def check(request: Request) -> None:
        if not site.is_owner(request):
            raise RefusedError(401, "token", "the owner's token is missing or wrong")

    def chosen(request: Request, number: str) -> Survey:
        check(request)
        if not (number.isascii() and number.isdigit() and len(number) < 10):
            raise RefusedError(404, "survey", "there is no such survey")
        return site.survey(int(number))

    @app.get("/owner/surveys")
    def surveys(request: Request) -> list[dict[str, Any]]:
        check(request)
        with reading(site.engine) as connection:
            found = list_surveys(connection)
        return [{"id": survey.id, "name": survey.name, "title": survey.config.title} for survey in found]

    @app.get("/owner/surveys/{number}/results")
    def show(number: str, request: Request) -> dict[str, Any]:
        return results(site.engine, chosen(request, number))

    @app.get("/owner/surveys/{number}/{name}")
    def download(number: str, name: str, request: Request) -> Response:
        return _download(site, chosen(request, number), name)

    @app.post("/owner/surveys/{number}/links")
    async def links(number: str, request: Request) -> list[dict[str, str]]:
        survey = await run_in_threadpool(chosen, request, number)
        count = whole(await read_object(request), "count", 1, MAX_LINKS)
        try:
            made = await run_in_threadpool(store.make_links, site.engine, survey.name, count)
        except ValueError as error:  # nothing is left to ask about
            raise RefusedError(409, "cases", str(error)) from None
        return [{"name": name, "path": f"/r/{secret}"} for name, secret in made]

    @app.post("/owner/surveys/{number}/raters/{rater}")
    async def close(number: str, rater: str, request: Request) -> dict[str, bool]:
        survey = await run_in_threadpool(chosen, request, number)
        closed = (await read_object(request)).get("closed")
        if not isinstance(closed, bool):
            raise RefusedError(422, "closed", "closed: expected true or false")
        known = rater.isascii() and rater.isdigit() and len(rater) < 10
        if not known or not await run_in_threadpool(
            store.set_closed, site.engine, survey, int(rater), closed
        ):
            raise RefusedError(404, "rater", "there is no such rater")
        return {"closed": closed}


def _download(site: Site, survey: Survey, name: str) -> Response:
    named = {"Content-Disposition": f'attachment; filename="{survey.name}-{name}"'}
    if name == "votes.jsonl":
        with reading(site.engine) as connection:
            rows = public_rows(connection, survey)
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        return Response(text, media_type="application/x-ndjson", headers=named)
    if name == "results.json":
        text = json.dumps(results(site.engine, survey), indent=1, allow_nan=False)
        return Response(text, media_type="application/json", headers=named)
    if name == "results.csv":
        return Response(
            as_csv(results(site.engine, survey)), media_type="text/csv; charset=utf-8", headers=named
        )
    raise RefusedError(404, "page", "there is no such page")
