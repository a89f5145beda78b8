"""Raters and their votes. Queries are by the rater's own id, so nothing of another can come back."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, case, func, or_, select, update
from sqlalchemy.exc import IntegrityError

from experiments.voting import tables
from experiments.voting.allotment import allot
from experiments.voting.database import reading, writing
from experiments.voting.survey import Survey, find_survey, now

SIDES = ("left", "right")
CLOCK_S = 1.0  # a browser's clock may be ahead of ours by so much


@dataclass(frozen=True)
class LinkedRater:
    id: int
    survey_id: int
    name: str
    closed: bool


class ConflictError(ValueError):
    """The request is well formed, but not in this state; `code` is a word for the page."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def digest_of(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def make_links(engine: Engine, survey_name: str, count: int) -> list[tuple[str, str]]:
    """(pseudonym, secret of the personal link) of new raters; only digests of the secrets are kept."""
    made = []
    for _ in range(count):
        secret = secrets.token_urlsafe(24)
        with writing(engine) as connection:
            survey = find_survey(connection, survey_name)
            column = tables.raters.c
            # one maker at a time, where the database would let several
            connection.execute(
                select(tables.surveys.c.id).where(tables.surveys.c.id == survey.id).with_for_update()
            )
            last = connection.execute(
                select(func.max(column.number)).where(column.survey_id == survey.id)
            ).scalar()
            number = 0 if last is None else last + 1
            row = {
                "survey_id": survey.id,
                "number": number,
                "name": f"rater-{number + 1:03d}",
                "link_sha256": digest_of(secret),
                "made_at": now(),
                "closed": False,
            }
            key = connection.execute(tables.raters.insert().values(row)).inserted_primary_key
            assert key is not None
            planned = allot(connection, survey, key[0], number)
            connection.execute(tables.tasks.insert(), planned)
        made.append((row["name"], secret))
    return made


def set_closed(engine: Engine, survey: Survey, rater: int, closed: bool) -> bool:
    """False where the survey has no such rater."""
    column = tables.raters.c
    with writing(engine) as connection:
        change = update(tables.raters).where(column.id == rater, column.survey_id == survey.id)
        return connection.execute(change.values(closed=closed)).rowcount == 1


def find_rater(engine: Engine, secret: str) -> LinkedRater | None:
    """By the digest of a link's secret, so that the time of a comparison tells nothing about it."""
    column = tables.raters.c
    query = select(column.id, column.survey_id, column.name, column.closed).where(
        column.link_sha256 == digest_of(secret)
    )
    with reading(engine) as connection:
        row = connection.execute(query).one_or_none()
    return LinkedRater(*row) if row else None


def _generations(connection: Connection, rater: int) -> dict[int, tuple[int, int]]:
    """task id -> (number of its ballots, id of the last one)."""
    column = tables.ballots.c
    query = select(column.task_id, func.count(), func.max(column.id)).where(column.rater_id == rater)
    return {task: (count, last) for task, count, last in connection.execute(query.group_by(column.task_id))}


def state_of(engine: Engine, rater: LinkedRater) -> dict[str, Any]:
    """Where the rater is: `done`, `of`, the next `task` or None, and `last`, the vote that can be undone."""
    tasks, cases, clips = tables.tasks, tables.cases, tables.clips
    with reading(engine) as connection:
        ballots = _generations(connection, rater.id)
        column = tasks.c
        rows = connection.execute(
            select(column.id, column.token).where(column.rater_id == rater.id).order_by(column.position)
        ).all()
        voted = {task for task, (count, _) in ballots.items() if count % 2}
        following = next((row for row in rows if row.id not in voted), None)
        task = None
        if following is not None:
            query = (
                select(
                    column.token, column.left_token, column.right_token, cases.c.prompt, cases.c.duration_s
                )
                .add_columns(cases.c.references)
                .select_from(tasks.join(clips, clips.c.id == column.left_clip).join(cases))
                .where(column.id == following.id)
            )
            task = dict(connection.execute(query).mappings().one())
        latest = max(voted, key=lambda task: ballots[task][1], default=None)
    last = next((row.token for row in rows if row.id == latest), None)
    return {"done": len(voted), "of": len(rows), "task": task, "last": last}


def _task(connection: Connection, rater: LinkedRater, token: str) -> Mapping[str, Any]:
    column = tables.tasks.c
    query = select(tables.tasks).where(column.token == token, column.rater_id == rater.id)
    row = connection.execute(query).mappings().one_or_none()
    if row is None:
        raise KeyError(token)
    return dict(row)


def cast(
    engine: Engine,
    rater: LinkedRater,
    request_id: str,
    task_token: str,
    answers: Mapping[str, str],
    seconds: float,
    comment: str = "",
) -> bool:
    """Stores a vote; False where this very request was stored before.

    Raises KeyError for a task that is not this rater's, ConflictError for one that is voted already or whose
    clips were not both shown.
    """
    try:
        with writing(engine) as connection:
            if _known(connection, rater, request_id):
                return False
            task = _task(connection, rater, task_token)
            count, _ = _generations(connection, rater.id).get(task["id"], (0, 0))
            if count % 2:
                raise ConflictError("voted", "this pair has your vote already")
            shown = _shown_at(connection, task["id"])
            if len(shown) < len(SIDES):
                raise ConflictError("unseen", "play both clips before you vote")
            elapsed = time.time() - min(shown.values()) + CLOCK_S
            values = {"answers": dict(answers), "comment": comment, "seconds": min(seconds, elapsed)}
            _insert(connection, rater, task, request_id, count, values)
    except IntegrityError:  # PostgreSQL: another tab was quicker
        return _after_race(engine, rater, request_id)
    return True


def take_back(engine: Engine, rater: LinkedRater, request_id: str, task_token: str) -> bool:
    """Takes the rater's last vote back; False where this very request was stored before.

    Raises KeyError as `cast`, ConflictError where it is not the last vote.
    """
    try:
        with writing(engine) as connection:
            if _known(connection, rater, request_id):
                return False
            task = _task(connection, rater, task_token)
            ballots = _generations(connection, rater.id)
            voted = {key: last for key, (count, last) in ballots.items() if count % 2}
            if task["id"] not in voted or voted[task["id"]] != max(voted.values()):
                raise ConflictError("not_last", "only your last vote can be taken back")
            values = {"answers": {}, "comment": "", "seconds": 0.0}
            _insert(connection, rater, task, request_id, ballots[task["id"]][0], values)
    except IntegrityError:
        return _after_race(engine, rater, request_id)
    return True


def _after_race(engine: Engine, rater: LinkedRater, request_id: str) -> bool:
    with reading(engine) as connection:
        if _known(connection, rater, request_id):
            return False
    raise ConflictError("voted", "this pair has your vote already") from None


def _known(connection: Connection, rater: LinkedRater, request_id: str) -> bool:
    column = tables.ballots.c
    query = select(column.id).where(column.rater_id == rater.id, column.request_id == request_id)
    return connection.execute(query).first() is not None


def _shown_at(connection: Connection, task: int) -> dict[str, float]:
    column = tables.showings.c
    return {
        side: at
        for side, at in connection.execute(select(column.side, column.at).where(column.task_id == task))
    }


def _insert(
    connection: Connection,
    rater: LinkedRater,
    task: Mapping[str, Any],
    request_id: str,
    generation: int,
    values: Mapping[str, Any],
) -> None:
    column, shown = tables.clips.c, [task[f"{side}_clip"] for side in SIDES]
    query = select(column.id, column.shown_sha256).where(column.id.in_(shown))
    digests = {key: digest for key, digest in connection.execute(query)}
    row = {
        "rater_id": rater.id,
        "task_id": task["id"],
        "generation": generation,
        "request_id": request_id,
        "left_sha256": digests[shown[0]],
        "right_sha256": digests[shown[1]],
        "at": now(),
        **values,
    }
    connection.execute(tables.ballots.insert().values(row))


def clip_of(engine: Engine, rater: LinkedRater, token: str) -> tuple[int, str, str] | None:
    """(task id, side, file) of a clip that this rater is shown."""
    tasks, clips = tables.tasks, tables.clips
    left = case((tasks.c.left_token == token, True), else_=False).label("left")
    query = (
        select(tasks.c.id, left, clips.c.file)
        .join(
            clips,
            clips.c.id == case((tasks.c.left_token == token, tasks.c.left_clip), else_=tasks.c.right_clip),
        )
        .where(tasks.c.rater_id == rater.id)
        .where(or_(tasks.c.left_token == token, tasks.c.right_token == token))
    )
    with reading(engine) as connection:
        row = connection.execute(query).one_or_none()
    return (row.id, SIDES[0] if row.left else SIDES[1], row.file) if row else None


def reference_of(engine: Engine, rater: LinkedRater, task_token: str, number: int) -> str | None:
    """File of a reference of one of this rater's tasks."""
    tasks, clips, cases = tables.tasks, tables.clips, tables.cases
    query = (
        select(cases.c.references)
        .select_from(tasks.join(clips, clips.c.id == tasks.c.left_clip).join(cases))
        .where(tasks.c.rater_id == rater.id, tasks.c.token == task_token)
    )
    with reading(engine) as connection:
        found = connection.execute(query).scalar()
    return found[number] if found and 0 <= number < len(found) else None


def note_shown(engine: Engine, task: int, side: str) -> None:
    """Remembers when a clip was first sent."""
    try:
        with writing(engine) as connection:
            if side not in _shown_at(connection, task):
                row = {"task_id": task, "side": side, "at": time.time()}
                connection.execute(tables.showings.insert().values(row))
    except IntegrityError:
        pass
