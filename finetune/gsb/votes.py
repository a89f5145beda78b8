"""Votes on pairs of clips, Good / Same / Bad: NAVA's public JSONL with our optional fields.

Public fields: user_id, left_model, right_model, choice (left | right | tie), ours_side (left | right),
case_id. Ours: axis (overall when absent), repeat, seconds, seed, left_sha256, right_sha256, simulated,
attention (metrics.md 9.1, 9.4), survey and survey_id, within which a user_id is one person.
"""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from finetune.gsb.names import alike_warnings, folded_name, name_problem
from finetune.gsb.surveys import names_of_raters, survey_of, survey_problem
from pretrain.config import nearest
from pretrain.jsonl import FieldError, scan

AXES = ("overall", "sync", "voice", "picture")
SIDES = ("left", "right")
CHOICES = (*SIDES, "tie")
REQUIRED = ("user_id", "left_model", "right_model", "choice", "ours_side", "case_id")
OPTIONAL = ("axis", "repeat", "seconds", "seed", "left_sha256", "right_sha256", "simulated", "attention")
OF_SURVEY = ("survey", "survey_id")  # of `nava gsb export`
NAMES = ("user_id", "case_id", "left_model", "right_model")
_LOOKS_MEANT = 0.75  # likeness from which an unknown key is taken for a misspelt optional one


@dataclass(frozen=True, slots=True)
class Vote:
    """One vote of one rater on one pair of clips.

    `ours_side` is None where neither clip is ours. In an attention check it names the untouched original, so
    that is the correct choice. `repeat` counts how often this rater had seen this pair before.
    """

    user_id: str
    case_id: str
    left_model: str
    right_model: str
    choice: str
    ours_side: str | None
    axis: str = "overall"
    repeat: int = 0
    seconds: float | None = None  # the rater's time
    seed: int | None = None  # of the random side
    left_sha256: str = ""
    right_sha256: str = ""
    simulated: bool = False
    attention: bool = False
    line: int = 0
    survey: str = ""  # its name, "" = none
    survey_id: str = ""  # differs between surveys of one name

    @property
    def pair(self) -> tuple[str, str]:
        """The two models in alphabetical order."""
        return (
            (self.left_model, self.right_model)
            if self.left_model < self.right_model
            else (self.right_model, self.left_model)
        )

    @property
    def question(self) -> tuple[str, str, tuple[str, str], str]:
        """The question: rater, case, pair, axis."""
        return self.user_id, self.case_id, self.pair, self.axis

    def preference(self, model: str) -> int:
        """+1 where `model` (one of the two) was preferred, -1 where the other was, 0 for a tie."""
        if self.choice == "tie":
            return 0
        return 1 if (self.left_model if self.choice == "left" else self.right_model) == model else -1


@dataclass(frozen=True)
class VoteSet:
    """The votes of a file and which model is `ours`; None where no vote names a side of ours."""

    path: Path
    votes: tuple[Vote, ...]
    ours: str | None
    warnings: tuple[str, ...] = ()  # about names that may be one

    @property
    def num_simulated(self) -> int:
        return sum(vote.simulated for vote in self.votes)


def read_votes(path: Path | str, ours: str | None = None, models: Sequence[str] = ()) -> VoteSet:
    """Every vote of a JSONL file; one bad row rejects the file, since it would change the statistics.

    Names, also `ours` and `models`, are compared without blanks around them, in Unicode's NFC and with one
    blank for white space inside; `warnings` tells of those that then differ by case only.
    `ours`, when not given, is the model of that name, else the one that ours_side names in most rows. Where
    ours_side is null in every vote, the model given as `ours` is ours in each. With `models` no other model
    may occur. In a file of several surveys (`survey`, `survey_id`) a rater is called SURVEY/RATER, since each
    survey numbers its own. Raises FileNotFoundError, or ValueError `file:line field: message` for
    the first row that is wrong: a field missing or of the wrong kind, an unknown model, ours_side against
    left_model and right_model, the same rater, case, models, axis and repeat twice.
    """
    path = Path(path)
    ours, models = folded_name(ours) if ours else ours, tuple(map(folded_name, models))
    votes: list[Vote] = []
    seen: dict[tuple[Any, ...], int] = {}
    surveys: dict[str, tuple[str, int]] = {}
    error: FieldError | None = None
    for line, row in scan(path, finite=True):
        result = (
            row
            if isinstance(row, FieldError)
            else _vote(row, line, {*models, *([ours] if ours else [])} if models else set())
        )
        if isinstance(result, Vote):
            wrong = survey_problem(result.survey, result.survey_id, line, surveys)
            result = wrong or _unless_seen(result, seen)
        if isinstance(result, FieldError):
            error = result
            break
        votes.append(result)
    if ours and not error and not any(vote.ours_side for vote in votes if not vote.attention):
        votes = _told(votes, ours, path)
    ours = ours or _find_ours(votes)
    error = next((wrong for vote in votes if (wrong := _side_error(vote, ours))), error)
    if error:
        raise ValueError(error.at(path))
    names, about_surveys = names_of_raters([(vote.survey, vote.survey_id, vote.user_id) for vote in votes])
    if names != [vote.user_id for vote in votes]:
        votes = [replace(vote, user_id=name) for vote, name in zip(votes, names, strict=True)]
    return VoteSet(path, tuple(votes), ours, (*_warnings(votes), *about_surveys))


def _vote(row: dict[str, Any], line: int, models: set[str]) -> Vote | FieldError:
    for name in REQUIRED:
        if name not in row:
            return FieldError(line, name, f"missing; a vote has {', '.join(REQUIRED)}")
    for name in row.keys() - {*REQUIRED, *OPTIONAL, *OF_SURVEY}:
        if meant := _misspelt(name):
            return FieldError(line, str(name), f"unknown; did you mean {meant!r}?")
    values: dict[str, Any] = {name: row[name] for name in (*REQUIRED, *OPTIONAL) if name in row}
    for name in ("user_id", "case_id"):
        if isinstance(values[name], int) and not isinstance(values[name], bool):
            values[name] = str(values[name])
    for name in NAMES:
        if problem := name_problem(values[name]):
            return FieldError(line, name, problem)
        values[name] = folded_name(values[name])
    for name in OF_SURVEY:
        if wrong := _wrong_survey(row.get(name)):
            return FieldError(line, name, wrong)
    survey, survey_id = map(folded_name, survey_of(row))
    message = next(
        ((name, wrong) for name, value in values.items() if (wrong := _wrong(name, value, models, row))), None
    )
    if message:
        return FieldError(line, *message)
    if values["left_model"] == values["right_model"]:
        return FieldError(
            line,
            "right_model",
            f"{values['right_model']!r} on both sides; give two clips of one model two names",
        )
    return Vote(**values, line=line, survey=survey, survey_id=survey_id)


def _wrong_survey(value: Any) -> str:
    if value is None or value == "" or (isinstance(value, int) and not isinstance(value, bool)):
        return ""
    return name_problem(value)


def _wrong(name: str, value: Any, models: set[str], row: dict[str, Any]) -> str:
    """What is wrong with one field, or ''."""
    if name in ("choice", "axis") or (name == "ours_side" and value is not None):
        valid = {"choice": CHOICES, "axis": AXES, "ours_side": SIDES}[name]
        return "" if value in valid else f"unknown value {value!r}; {nearest(str(value), valid)}"
    if name in NAMES:
        known = not models or value in models or row.get("attention") is True or not name.endswith("_model")
        return "" if known else f"unknown model {value!r}; {nearest(str(value), models)}"
    if name in ("simulated", "attention"):
        return "" if isinstance(value, bool) else f"expected true or false, got {value!r}"
    if name in ("left_sha256", "right_sha256"):
        return "" if isinstance(value, str) else f"expected a digest as text, got {value!r}"
    if name == "repeat":
        return (
            ""
            if isinstance(value, int) and not isinstance(value, bool) and value >= 0
            else f"expected 0, 1, 2 ..., got {value!r}"
        )
    if name == "seed" and value is not None:
        return (
            ""
            if isinstance(value, int) and not isinstance(value, bool)
            else f"expected a whole number, got {value!r}"
        )
    if name == "seconds" and value is not None:
        number = (
            isinstance(value, (int, float))
            and not isinstance(value, bool)
            and math.isfinite(value)
            and value >= 0
        )
        return "" if number else f"expected seconds from 0, got {value!r}"
    return ""


def _warnings(votes: Sequence[Vote]) -> tuple[str, ...]:
    return alike_warnings(
        {
            "raters": (vote.user_id for vote in votes),
            "cases": (vote.case_id for vote in votes),
            "models": (model for vote in votes for model in vote.pair),
        }
    )


def differing_clips(votes: Sequence[Vote]) -> tuple[str, ...]:
    """A line where clips of one model and case have several digests: of two trainings, it may be. For what
    counts votes by case and model."""
    digests: dict[tuple[str, str], set[str]] = {}
    for vote in votes:
        for side in SIDES:
            if digest := getattr(vote, f"{side}_sha256"):
                digests.setdefault((vote.case_id, getattr(vote, f"{side}_model")), set()).add(digest)
    several = [named for named, found in digests.items() if len(found) > 1]
    if not several:
        return ()
    case, model = several[0]
    return (
        f"{len(several)} clips have several digests, the first is of {model!r} for case {case!r}: votes on "
        "different clips are counted as on one; give two models two names",
    )


@lru_cache(256)
def _misspelt(name: str) -> str:
    return (difflib.get_close_matches(name, OPTIONAL, n=1, cutoff=_LOOKS_MEANT) or [""])[0]


def _unless_seen(vote: Vote, seen: dict[tuple[Any, ...], int]) -> Vote | FieldError:
    key = (vote.survey, vote.survey_id, *vote.question, vote.repeat)
    first = seen.setdefault(key, vote.line)
    if first == vote.line:
        return vote
    what = f"case {vote.case_id!r}, {' and '.join(vote.pair)}, {vote.axis}, repeat {vote.repeat}"
    return FieldError(
        vote.line,
        "repeat",
        f"{vote.user_id!r} voted on {what} on line {first} too; remove one, or count repeats up",
    )


def _find_ours(votes: Sequence[Vote]) -> str | None:
    if any("ours" in vote.pair for vote in votes if not vote.attention):
        return "ours"
    tellers = [vote for vote in votes if vote.ours_side and not vote.attention]
    named = Counter(vote.left_model if vote.ours_side == "left" else vote.right_model for vote in tellers)
    return named.most_common(1)[0][0] if named else None


def _told(votes: Sequence[Vote], ours: str, path: Path) -> list[Vote]:
    """The votes with the side of `ours`. Raises ValueError where no vote is about it."""
    models = {model for vote in votes if not vote.attention for model in vote.pair}
    if models and ours not in models:
        raise ValueError(f"{path}: no vote is about {ours!r} (--ours); {nearest(ours, sorted(models))}")
    sides = [dict(zip((vote.left_model, vote.right_model), SIDES, strict=True)) for vote in votes]
    return [
        vote if vote.attention else replace(vote, ours_side=side.get(ours))
        for vote, side in zip(votes, sides, strict=True)
    ]


def _side_error(vote: Vote, ours: str | None) -> FieldError | None:
    if vote.attention:  # compares any clip with its spoilt copy
        return (
            None
            if vote.ours_side
            else FieldError(
                vote.line, "ours_side", "an attention check names the side of the untouched original"
            )
        )
    side = "left" if vote.left_model == ours else "right" if vote.right_model == ours else None
    if vote.ours_side == side:
        return None
    sides = f"{vote.left_model!r} is left and {vote.right_model!r} right"
    right = f"{side!r}" if side else "null"
    return FieldError(
        vote.line,
        "ours_side",
        f"{vote.ours_side!r} contradicts the models: {sides}, ours is {ours!r}; expected {right}",
    )
