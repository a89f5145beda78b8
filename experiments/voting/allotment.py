"""Which tasks a new rater gets: cases asked least so far, pairs of models whose ranking is least sure."""

from __future__ import annotations

import secrets
from collections import Counter
from typing import Any

from sqlalchemy import Connection, select

from experiments.voting import tables
from experiments.voting.plan import ModelPair, PlannedTask, chosen_cases, model_pairs, plan_tasks, quotas
from experiments.voting.survey import Survey

ClipRow = tuple[int, int, str, str]  # id, case, model, spoilt


def allot(connection: Connection, survey: Survey, rater: int, number: int) -> list[dict[str, Any]]:
    """Rows of `gsb_tasks` for the rater of this number. Raises ValueError where the survey has no case."""
    clips, cases = tables.clips, tables.cases
    query = (
        select(clips.c.id, clips.c.case, clips.c.model, clips.c.spoilt)
        .join(cases)
        .where(cases.c.survey_id == survey.id)
        .order_by(clips.c.id)
    )
    found: list[ClipRow] = [(row[0], row[1], row[2], row[3]) for row in connection.execute(query)]
    keys = sorted({case for _, case, _, _ in found})
    if not keys:
        raise ValueError(f"survey {survey.name!r} has no cases left; make another one")
    place = {case: index for index, case in enumerate(keys)}
    pairs, config = model_pairs(survey.config.models), survey.config
    asked, outcomes = _history(connection, survey, {clip[0]: clip for clip in found}, place)
    variances = {pair: _variance(outcomes[pair]) for pair in pairs}
    votes = {pair: float(sum(outcomes[pair].values())) for pair in pairs}
    shares = quotas(variances, votes, min(config.per_rater, len(keys) * len(pairs)))
    chosen = {
        pair: chosen_cases(
            config.seed,
            pair,
            len(keys),
            share,
            config.shares.shared,
            [asked[pair, i] for i in range(len(keys))],
        )
        for pair, share in shares.items()
    }
    spoilt = [(place[case], model, way) for _, case, model, way in found if way]
    planned = plan_tasks(config.seed, number, len(keys), chosen, config.shares, spoilt)
    ids = {(place[case], model, way): clip for clip, case, model, way in found}
    return [_row(task, index, rater, ids) for index, task in enumerate(planned)]


def _row(
    task: PlannedTask, position: int, rater: int, ids: dict[tuple[int, str, str], int]
) -> dict[str, Any]:
    check = task.kind not in ("vote", "repeat")
    left, right = (
        (task.kind if check and spoilt else "") for spoilt in (task.left_is_spoilt, not task.left_is_spoilt)
    )
    return {
        "rater_id": rater,
        "position": position,
        "token": secrets.token_urlsafe(18),
        "kind": task.kind,
        "repeat": task.repeat,
        "left_clip": ids[task.case, task.left, left],
        "right_clip": ids[task.case, task.right, right],
        "left_token": secrets.token_urlsafe(18),
        "right_token": secrets.token_urlsafe(18),
    }


def _history(
    connection: Connection, survey: Survey, clips: dict[int, ClipRow], place: dict[int, int]
) -> tuple[Counter[tuple[ModelPair, int]], dict[ModelPair, Counter[str]]]:
    """How often each (pair, case) was given to a rater, and the answers to each pair on the first axis."""
    tasks, raters, ballots = tables.tasks, tables.raters, tables.ballots
    asked: Counter[tuple[ModelPair, int]] = Counter()
    outcomes: dict[ModelPair, Counter[str]] = {pair: Counter() for pair in model_pairs(survey.config.models)}
    query = (
        select(tasks.c.id, tasks.c.left_clip, tasks.c.right_clip)
        .join(raters)
        .where(raters.c.survey_id == survey.id, tasks.c.kind == "vote")
    )
    pairs: dict[int, tuple[str, str]] = {}
    for task, left, right in connection.execute(query):
        models = clips[left][2], clips[right][2]
        pairs[task] = models
        asked[(min(models), max(models)), place[clips[left][1]]] += 1
    cast = (
        select(ballots.c.task_id, ballots.c.answers)
        .join(raters, raters.c.id == ballots.c.rater_id)
        .where(raters.c.survey_id == survey.id)
        .order_by(ballots.c.generation)
    )
    last = {task: answers for task, answers in connection.execute(cast) if task in pairs}
    for task, answers in last.items():
        if choice := answers.get(survey.config.axes[0]):
            left, right = pairs[task]
            winner = {"left": left, "right": right, "tie": "tie"}[choice]
            outcomes[min(left, right), max(left, right)][winner] += 1
    return asked, outcomes


def _variance(outcomes: Counter[str]) -> float:
    """Of one answer in -1, 0, 1, with a pseudo-vote each way, so that few equal answers are not certainty."""
    decided = [count for name, count in outcomes.items() if name != "tie"] + [0, 0]
    first, second = decided[0] + 1, decided[1] + 1
    total = first + second + outcomes["tie"] + 1
    return (first + second) / total - ((first - second) / total) ** 2
