"""The votes of a survey as a file."""

from __future__ import annotations

from pathlib import Path

from experiments.voting.database import open_database, reading
from experiments.voting.public import public_rows
from experiments.voting.survey import find_survey
from pretrain.jsonl import dump


def export_votes(place: str, name: str | None, votes: Path) -> tuple[str, int]:
    """Writes the public JSONL; returns (name of the survey, number of rows).

    Raises ValueError where the survey is not to be found or has no vote.
    """
    engine = open_database(place, make=False)
    try:
        with reading(engine) as connection:
            survey = find_survey(connection, name)
            rows = public_rows(connection, survey)
    finally:
        engine.dispose()
    if not rows:
        raise ValueError(f"survey {survey.name!r}: nobody has voted yet")
    dump(votes, rows)
    return survey.name, len(rows)
