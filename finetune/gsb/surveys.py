"""Raters of several surveys in one file: each survey calls its own `rater-001` and so on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING, Any

from pretrain.jsonl import FieldError

if TYPE_CHECKING:
    from finetune.gsb.votes import Vote


def survey_of(row: Mapping[str, Any]) -> tuple[str, str]:
    """(name of a row's survey, its survey_id), "" where it has none."""
    name, number = (row.get(key) for key in ("survey", "survey_id"))
    return "" if name is None else str(name), "" if number is None else str(number)


def survey_problem(vote: Vote, first_with: dict[str, Vote]) -> FieldError | None:
    """What is wrong with the survey of a vote, given the first vote of each survey's name, to which it is
    added: a name with and without a survey_id may be one survey or two, whose votes count otherwise."""
    known = first_with.setdefault(vote.survey, vote)
    if bool(known.survey_id) == bool(vote.survey_id):
        return None
    return FieldError(
        vote.line,
        "survey_id",
        f"survey {vote.survey!r} is with one here or on line {known.line}, and without on the other; export "
        "both again by `nava gsb export`, or give one another name in `survey`",
    )


def told_apart(votes: Sequence[Vote]) -> tuple[list[Vote], tuple[str, ...]]:
    """The votes with raters named SURVEY/RATER where they are of several surveys, and a line about it.

    Votes of one survey, or of none, stay as they are, and so do raters without a survey beside others.
    """
    surveys = list(dict.fromkeys((vote.survey, vote.survey_id) for vote in votes))
    if len(surveys) < 2:
        return list(votes), ()
    labels = _labels(surveys)
    people = {(labels[vote.survey, vote.survey_id], vote.user_id) for vote in votes}
    # longer where somebody is called as a rater of a survey would be
    between = next(sign for sign in map("/".__mul__, count(1)) if len({*_named(people, sign)}) == len(people))
    names = dict(zip(people, _named(people, between), strict=True))
    apart = [
        replace(vote, user_id=names[labels[vote.survey, vote.survey_id], vote.user_id]) for vote in votes
    ]
    shared = len({vote.user_id for vote in votes}) < len(people)
    named = ", ".join(label or "none" for label in labels.values())
    line = (
        f"votes of {len(surveys)} surveys ({named}): raters of one name in two of them are counted apart, as "
        "SURVEY/RATER; leave `survey` out where they are the same people"
    )
    return apart, (line,) if shared else ()


def _named(people: Iterable[tuple[str, str]], between: str) -> list[str]:
    return [f"{label}{between}{rater}" if label else rater for label, rater in people]


def _labels(surveys: Iterable[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """A word for each survey: its name, with its survey_id where another has the same."""
    surveys = list(surveys)
    names = [name for name, _ in surveys]
    return {
        (name, number): name if names.count(name) == 1 else f"{name}~{number}" for name, number in surveys
    }
