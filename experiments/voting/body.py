"""Requests of anybody: counted bodies, strict JSON, checked fields. A wrong one is a word, never a fault."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import Request

from pretrain.files import strict_json

MAX_BODY = 16_384  # bytes
MAX_COMMENT = 2000  # characters
MAX_SECONDS = 86_400.0
CHOICES = ("left", "tie", "right")
_ID = re.compile(r"[A-Za-z0-9_-]{16,64}")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


class RefusedError(Exception):
    """An answer with a status, a code for the page and a word for people."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


@dataclass(frozen=True)
class VoteBody:
    id: str  # made by the page, so that a vote sent twice is one
    task: str
    answers: dict[str, str]
    seconds: float
    comment: str


async def read_object(request: Request) -> dict[str, Any]:
    """The JSON object of a request. Raises RefusedError."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise RefusedError(415, "type", "expected application/json")
    content = bytearray()
    async for piece in request.stream():
        content += piece
        if len(content) > MAX_BODY:
            raise RefusedError(413, "large", f"expected at most {MAX_BODY} bytes")
    try:
        found = strict_json(bytes(content), parse_constant=_refuse)
    except ValueError:
        raise RefusedError(400, "json", "not JSON") from None
    if not isinstance(found, dict):
        raise RefusedError(422, "object", "expected a JSON object")
    return found


def vote_body(values: Mapping[str, Any], axes: tuple[str, ...]) -> VoteBody:
    """Raises RefusedError naming the field."""
    unknown = sorted(values.keys() - {"id", "task", "answers", "seconds", "comment"})
    if unknown:
        raise RefusedError(422, "fields", f"unknown field {unknown[0][:40]!a}")
    answers = values.get("answers")
    if not isinstance(answers, dict) or set(answers) != set(axes):
        raise RefusedError(422, "answers", f"answers: expected one for each of {', '.join(axes)}")
    if any(not isinstance(choice, str) or choice not in CHOICES for choice in answers.values()):
        raise RefusedError(422, "answers", f"answers: expected {', '.join(CHOICES)}")
    seconds = values.get("seconds")
    if not isinstance(seconds, (int, float)) or isinstance(seconds, bool):
        seconds = math.nan
    if not 0 <= seconds <= MAX_SECONDS:
        raise RefusedError(422, "seconds", f"seconds: expected a number of 0 to {MAX_SECONDS:.0f}")
    comment = values.get("comment", "")
    if not isinstance(comment, str) or len(comment) > MAX_COMMENT or not _storable(comment):
        raise RefusedError(422, "comment", f"comment: expected text of at most {MAX_COMMENT} characters")
    return VoteBody(
        identifier(values, "id"), identifier(values, "task"), dict(answers), float(seconds), comment.strip()
    )


def identifier(values: Mapping[str, Any], name: str) -> str:
    """Raises RefusedError where it is none."""
    value = values.get(name)
    if not isinstance(value, str) or not _ID.fullmatch(value):
        raise RefusedError(422, name, f"{name}: expected 16 to 64 letters, digits, - and _")
    return value


def is_identifier(text: str) -> bool:
    return _ID.fullmatch(text) is not None


def whole(values: Mapping[str, Any], name: str, low: int, high: int) -> int:
    value = values.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise RefusedError(422, name, f"{name}: expected a whole number of {low} to {high}")
    return value


def _storable(text: str) -> bool:
    """Without signs that a database or a terminal trips over, and without halves of surrogate pairs."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return not _CONTROL.search(text)


def _refuse(text: str) -> float:
    raise ValueError(text)
