"""Paths of the services, the scope that each one wants of a token, and which requests are work."""

from __future__ import annotations

import re

SCORE, HEALTH, METRICS = "/v1/score", "/healthz", "/metrics"
VIDEOS, MODELS = "/v1/videos", "/v1/models"
VIDEO = f"{VIDEOS}/{{id}}"
CONTENT, CANCEL = f"{VIDEO}/content", f"{VIDEO}/cancel"
ANY = ""  # the scope that every token has
SCOPE_OF = {
    SCORE: "score",
    "/v1/rewards": "score",
    "/openapi.json": ANY,
    METRICS: "metrics",
    **dict.fromkeys((VIDEOS, VIDEO, CONTENT, CANCEL, MODELS), "generate"),
}
PATHS = (HEALTH, *SCOPE_OF)
_OF_VIDEO = re.compile(r"/v1/videos/[A-Za-z0-9_-]{1,64}(/content|/cancel)?")


def route_of(path: str) -> str:
    """One of PATHS, in which an id is `{id}`; "" for any other path."""
    if found := _OF_VIDEO.fullmatch(path):
        return VIDEO + (found[1] or "")
    return path if path in PATHS and "{" not in path else ""


def is_work(method: str, route: str) -> bool:
    """A request with a body to be read and decoded, of which only so many are passed on at once."""
    return route == SCORE or (route == VIDEOS and method == "POST")
