"""The votes of a survey as a file, and its results as a page that stands alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Engine

from experiments.voting.database import open_database, reading
from experiments.voting.public import public_rows
from experiments.voting.results import results
from experiments.voting.survey import Survey, find_survey
from experiments.voting.texts import read_texts
from pretrain.jsonl import dump
from pretrain.owned import replaced_file

STATIC = Path(__file__).parent / "static"
SCRIPTS = ("charts.js", "texts.js", "owner.js")


@contextmanager
def _opened(place: str) -> Iterator[Engine]:
    """The database of votes, which has to be there, as long as the body runs."""
    engine = open_database(place, make=False)
    try:
        yield engine
    finally:
        engine.dispose()


def export_votes(place: str, name: str | None, votes: Path) -> int:
    """Writes the public JSONL, returns the number of rows; other votes that are there go to the trash.

    Raises ValueError where the survey is not to be found or has no vote.
    """
    with _opened(place) as engine, reading(engine) as connection:
        survey = find_survey(connection, name)
        rows = public_rows(connection, survey)
    if not rows:
        raise ValueError(f"survey {survey.name!r}: nobody has voted yet")
    with replaced_file(votes) as path:
        dump(path, rows)
    return len(rows)


def read_survey(place: str, name: str | None) -> tuple[Survey, dict[str, Any]]:
    """The survey and its results. Raises ValueError as `export_votes` does."""
    with _opened(place) as engine:
        with reading(engine) as connection:
            survey = find_survey(connection, name)
        found = results(engine, survey)
    if not found["ballots"]:
        raise ValueError(f"survey {survey.name!r}: nobody has voted yet")
    return survey, found


def results_page(found: Mapping[str, Any]) -> str:
    """The owner's page with these results in it; it needs no server. Comments stay with the owner."""
    kept = {**found, "comments": []}
    data = json.dumps(kept, allow_nan=False).replace("<", "\\u003c")
    page = (STATIC / "owner.html").read_text(encoding="utf-8")
    for name in ("common.css", "owner.css"):
        style = (STATIC / name).read_text(encoding="utf-8")
        page = page.replace(f'<link rel="stylesheet" href="/static/{name}">', f"<style>\n{style}</style>")
    page = page.replace('<link rel="icon" href="/static/icon.svg">\n', "")
    codes = [(STATIC / name).read_text(encoding="utf-8").split("\n") for name in SCRIPTS]
    lines = [
        line.removeprefix("export ") for code in codes for line in code if not line.startswith("import ")
    ]
    script, words = "\n".join(lines), _words()
    embedded = f'<script type="application/json" id="kept">{data}</script>\n'
    embedded += f'<script type="application/json" id="words">{words}</script>\n'
    embedded += f'<script type="module">\n{script}</script>'
    return page.replace('<script type="module" src="/static/owner.js"></script>', embedded)


def _words() -> str:
    """The owner's words in all languages of this package."""
    kept = {
        code: {key: text for key, text in words.items() if key.startswith("owner_") or "language" in key}
        for code, words in read_texts().by_code.items()
    }
    return json.dumps(kept, ensure_ascii=False).replace("<", "\\u003c")
