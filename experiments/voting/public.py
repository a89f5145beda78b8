"""The counted ballots of one survey as votes in the public JSONL (finetune/gsb/votes.py)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, select

from experiments.voting import tables
from experiments.voting.survey import TELLING, Survey
from finetune.gsb.votes import AXES


def last_ballots(connection: Connection, survey: Survey) -> list[Mapping[str, Any]]:
    """The ballots that stand, in the order of casting, with their task, rater and clips.

    A ballot stands if it is the last of its task and not one that takes back.
    """
    left, right = tables.clips.alias("l"), tables.clips.alias("r")
    ballots, tasks, raters, cases = tables.ballots, tables.tasks, tables.raters, tables.cases
    query = (
        select(ballots, tasks.c.kind.label("task_kind"), tasks.c.repeat, raters.c.name, cases.c.case_id)
        .add_columns(cases.c.kind.label("prompt_kind"))
        .add_columns(left.c.model.label("left_model"), right.c.model.label("right_model"))
        .add_columns(left.c.spoilt.label("left_spoilt"), right.c.spoilt.label("right_spoilt"))
        .add_columns(left.c.sha256.label("left_source"), right.c.sha256.label("right_source"))
        .join(tasks, tasks.c.id == ballots.c.task_id)
        .join(raters, raters.c.id == tasks.c.rater_id)
        .join(left, left.c.id == tasks.c.left_clip)
        .join(right, right.c.id == tasks.c.right_clip)
        .join(cases, cases.c.id == left.c.case)
        .where(raters.c.survey_id == survey.id)
        .order_by(ballots.c.id)
    )
    standing: dict[int, Mapping[str, Any]] = {}
    for row in connection.execute(query).mappings():
        standing.pop(row["task_id"], None)
        if row["generation"] % 2 == 0:
            standing[row["task_id"]] = dict(row)
    return list(standing.values())


def public_rows(connection: Connection, survey: Survey) -> list[dict[str, Any]]:
    """Rows of the public format: one per axis of each ballot; `seconds` is the time of the whole ballot.

    An attention check is exported on the axes that it spoils only: on the others the copies are equal.
    """
    rows = []
    for ballot in last_ballots(connection, survey):
        check = ballot["task_kind"] not in ("vote", "repeat")
        for axis in sorted(ballot["answers"], key=AXES.index):
            if not check or axis in TELLING[ballot["task_kind"]]:
                rows.append(_row(ballot, survey, axis, check))
    return rows


def _row(ballot: Mapping[str, Any], survey: Survey, axis: str, check: bool) -> dict[str, Any]:
    names = {side: _model(ballot, side) for side in ("left", "right")}
    wanted = ballot["left_model"] if check else survey.config.ours  # the original bears the plain name
    return {
        "user_id": ballot["name"],
        "case_id": ballot["case_id"],
        "left_model": names["left"],
        "right_model": names["right"],
        "choice": ballot["answers"][axis],
        "ours_side": next((side for side, name in names.items() if name == wanted), None),
        "axis": axis,
        "repeat": ballot["repeat"],
        "seconds": round(ballot["seconds"], 3),
        "seed": survey.config.seed,
        "left_sha256": _digest(ballot, "left"),
        "right_sha256": _digest(ballot, "right"),
        **({"attention": True} if check else {}),
        **({"simulated": True} if survey.config.simulated else {}),
        "survey": survey.name,
        "survey_id": survey.key,
    }


def _model(ballot: Mapping[str, Any], side: str) -> str:
    spoilt = ballot[f"{side}_spoilt"]
    return f"{ballot[f'{side}_model']} ({spoilt})" if spoilt else ballot[f"{side}_model"]


def _digest(ballot: Mapping[str, Any], side: str) -> str:
    """Of the model's own file, by which `nava gsb export` finds it; a spoilt copy has only its shown file."""
    return ballot[f"{side}_sha256"] if ballot[f"{side}_spoilt"] else ballot[f"{side}_source"]
