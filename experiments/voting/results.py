"""What the owner sees of a survey. Every statistic is that of `nava gsb stats` on the exported votes."""

from __future__ import annotations

import csv
import io
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, func, select

from experiments.voting import tables
from experiments.voting.database import reading
from experiments.voting.power import votes_to_settle
from experiments.voting.public import last_ballots, public_rows
from experiments.voting.survey import Survey
from finetune.gsb.summary import summarise
from finetune.gsb.votes import VoteSet, read_votes
from pretrain.jsonl import dump

MIN_FOR_STATISTICS = 2  # votes
TIMES = 500  # votes whose times are drawn
COLUMNS = ("good", "same", "bad", "gsb", "gsb_low", "gsb_high", "gsb_interval", "win_rate", "win_low")
COLUMNS += ("win_high", "tie_split", "sign_p", "sign_p_holm", "raters", "prompts")


def results(engine: Engine, survey: Survey) -> dict[str, Any]:
    """Statistics, those by kind of prompt, power, progress of raters, times and comments, as JSON."""
    with reading(engine) as connection:
        rows = public_rows(connection, survey)
        ballots = last_ballots(connection, survey)
        raters = _raters(connection, survey)
    votes = _read(rows)
    found, reason = _summary(votes)
    kinds = {ballot["case_id"]: ballot["prompt_kind"] for ballot in ballots}
    return {
        "survey": survey.name,
        "title": survey.config.title,
        "ours": survey.config.ours,
        "models": list(survey.config.models),
        "asked": list(survey.config.axes),
        "simulated": survey.config.simulated,
        "ballots": len(ballots),
        "statistics": found,
        "reason": reason,
        "kinds": _by_kind(votes, kinds),
        "to_settle": _to_settle(found),
        "raters": raters,
        "seconds": _times([ballot["seconds"] for ballot in ballots]),
        "comments": [
            {"rater": ballot["name"], "case": ballot["case_id"], "text": ballot["comment"]}
            for ballot in ballots
            if ballot["comment"]
        ],
    }


def as_csv(found: Mapping[str, Any]) -> str:
    """A row for each kind of prompt ("" = all), axis and baseline."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["survey", "kind", "axis", "baseline", *COLUMNS])
    for kind, summary in {"": found["statistics"], **found["kinds"]}.items():
        for axis, part in _axes(summary).items():
            for baseline, pair in part["pairs"].items():
                values = ["" if pair[name] is None else pair[name] for name in COLUMNS]
                writer.writerow([found["survey"], kind, axis, baseline, *values])
    return text.getvalue()


def _read(rows: Sequence[Mapping[str, Any]]) -> VoteSet | None:
    """The rows through the reader of vote files, so that nothing is counted otherwise than there."""
    if not rows:
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "votes.jsonl"
        dump(path, rows)
        return replace(read_votes(path), path=Path("votes.jsonl"))


def _summary(votes: VoteSet | None) -> tuple[dict[str, Any] | None, str]:
    """(statistics, "") or (None, why there are none)."""
    if votes is None:
        return None, "no votes yet"
    axis = None if any(vote.axis == "overall" for vote in votes.votes) else votes.votes[0].axis
    try:
        if axis:  # the survey does not ask for an overall answer
            parts = {name: summarise(votes, name) for name in dict.fromkeys(v.axis for v in votes.votes)}
            return {**parts[axis], "axes": parts}, ""
        return summarise(votes), ""
    except ValueError as error:
        return None, str(error)


def _axes(summary: Mapping[str, Any] | None) -> Mapping[str, Any]:
    return summary.get("axes", {summary["axis"]: summary}) if summary else {}


def _by_kind(votes: VoteSet | None, kinds: Mapping[str, str]) -> dict[str, Any]:
    """The same statistics over each kind of prompt, where there are several kinds."""
    if votes is None or len(set(kinds.values())) < 2:
        return {}
    found = {}
    for kind in sorted(set(kinds.values())):
        chosen = tuple(vote for vote in votes.votes if kinds.get(vote.case_id) == kind)
        summary, _ = _summary(replace(votes, votes=chosen)) if chosen else (None, "")
        if summary:
            found[kind or "other"] = summary
    return found


def _to_settle(found: Mapping[str, Any] | None) -> dict[str, dict[str, int | None]]:
    return {
        axis: {
            baseline: votes_to_settle(pair["good"], pair["same"], pair["bad"])
            for baseline, pair in part["pairs"].items()
        }
        for axis, part in _axes(found).items()
    }


def _raters(connection: Connection, survey: Survey) -> list[dict[str, Any]]:
    """Progress by rater: links made, closed, and how much of each is voted."""
    raters, tasks, ballots = tables.raters, tables.tasks, tables.ballots
    given = dict(
        connection.execute(
            select(tasks.c.rater_id, func.count())
            .join(raters)
            .where(raters.c.survey_id == survey.id)
            .group_by(tasks.c.rater_id)
        ).all()
    )
    times: dict[int, list[float]] = {}
    standing = select(ballots.c.rater_id, ballots.c.task_id, ballots.c.generation, ballots.c.seconds)
    standing = standing.join(raters, raters.c.id == ballots.c.rater_id).where(raters.c.survey_id == survey.id)
    last: dict[int, Any] = {}
    for row in connection.execute(standing.order_by(ballots.c.generation)):
        last[row.task_id] = row
    for row in last.values():
        if row.generation % 2 == 0:
            times.setdefault(row.rater_id, []).append(row.seconds)
    people = select(raters).where(raters.c.survey_id == survey.id).order_by(raters.c.number)
    return [
        {
            "id": row["id"],
            "name": row["name"],
            "closed": bool(row["closed"]),
            "done": len(times.get(row["id"], [])),
            "of": given.get(row["id"], 0),
            "median_s": statistics.median(times[row["id"]]) if row["id"] in times else None,
        }
        for row in connection.execute(people).mappings()
    ]


def _times(seconds: Sequence[float]) -> dict[str, Any]:
    if not seconds:
        return {"median": None, "each": []}
    return {"median": statistics.median(seconds), "each": [round(value, 2) for value in seconds[-TIMES:]]}
