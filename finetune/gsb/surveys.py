"""Raters of several surveys in one file: each survey calls its own `rater-001` and so on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from typing import Any

from pretrain.jsonl import FieldError

RaterKey = tuple[str, str, str]  # survey and survey_id, "" = none, and user_id


def survey_of(row: Mapping[str, Any]) -> tuple[str, str]:
    """(name of a row's survey, its survey_id), "" where it has none."""
    name, number = (row.get(key) for key in ("survey", "survey_id"))
    return "" if name is None else str(name), "" if number is None else str(number)


def survey_problem(
    survey: str, number: str, line: int, first: dict[str, tuple[str, int]]
) -> FieldError | None:
    """What is wrong with the survey of a vote; `first`: survey_id and line of the first vote of each survey's
    name, to which it is added. A name with and without a survey_id may be one survey or two, whose votes
    count otherwise."""
    known, above = first.setdefault(survey, (number, line))
    if bool(known) == bool(number):
        return None
    return FieldError(
        line,
        "survey_id",
        f"survey {survey!r} is with one here or on line {above}, and without on the other; export both again "
        "by `nava gsb export`, or give one another name in `survey`",
    )


def names_of_raters(votes: Sequence[RaterKey]) -> tuple[list[str], tuple[str, ...]]:
    """The name of each vote's rater, SURVEY/RATER where votes are of several surveys, and a line about it.

    Raters of one survey, or of none, keep their names, and so do those without a survey beside others.
    """
    surveys = list(dict.fromkeys(vote[:2] for vote in votes))
    if len(surveys) < 2:
        return [user for _, _, user in votes], ()
    labels = _labels(surveys)
    people = list(dict.fromkeys(votes))
    # more signs between where somebody is called as a rater of a survey would be
    named = next(
        names
        for number in count(1)
        if len(set(names := [_name(labels[one[:2]], "/" * number, one[2]) for one in people])) == len(people)
    )
    name_of = dict(zip(people, named, strict=True))
    shared = len({user for _, _, user in people}) < len(people)
    listed = ", ".join(label or "none" for label in labels.values())
    line = (
        f"votes of {len(surveys)} surveys ({listed}): raters of one name in two of them are counted apart, "
        "as SURVEY/RATER; leave `survey` out where they are the same people"
    )
    return [name_of[vote] for vote in votes], (line,) if shared else ()


def _name(label: str, between: str, user: str) -> str:
    return f"{label}{between}{user}" if label else user


def _labels(surveys: Iterable[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """A word for each survey: its name, with its survey_id where another has the same."""
    surveys = list(surveys)
    names = [name for name, _ in surveys]
    return {
        (name, number): name if names.count(name) == 1 else f"{name}~{number}" for name, number in surveys
    }
