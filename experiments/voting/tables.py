"""Tables of a database of surveys: SQLite (WAL) or, by URL, PostgreSQL.

A vote is a ballot: a row that is never changed or deleted (triggers refuse it). Taking a vote back is
a ballot too; `generation` counts the ballots of a task, and its uniqueness lets one of two tabs win.
"""

from __future__ import annotations

from sqlalchemy import (
    DDL,
    JSON,
    Boolean,
    Column,
    Engine,
    Float,
    ForeignKey,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    event,
)

VERSION = 1
metadata = MetaData()

version = Table("nava_gsb_version", metadata, Column("version", Integer, nullable=False))

surveys = Table(
    "gsb_surveys",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(200), unique=True, nullable=False),
    Column("made_at", String(40), nullable=False),
    Column("config", JSON, nullable=False),
    Column("inputs", String(64), nullable=False),  # digest of names and content of the clips
)

cases = Table(
    "gsb_cases",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("survey_id", ForeignKey("gsb_surveys.id"), nullable=False, index=True),
    Column("case_id", String(400), nullable=False),
    Column("prompt", Text, nullable=False),
    Column("kind", String(200), nullable=False),  # of prompt, "" if the set has none
    Column("duration_s", Float, nullable=False),
    Column("references", JSON, nullable=False),  # files in the survey's folder
    UniqueConstraint("survey_id", "case_id"),
)

clips = Table(
    "gsb_clips",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("case", ForeignKey("gsb_cases.id"), nullable=False, index=True),
    Column("model", String(400), nullable=False),
    Column("spoilt", String(20), nullable=False),  # "" | desync | voice
    Column("file", String(100), nullable=False),  # in the survey's folder, a random name
    Column("sha256", String(64), nullable=False),  # of the file that the model made
    Column("shown_sha256", String(64), nullable=False),  # of the file that is shown
)

raters = Table(
    "gsb_raters",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("survey_id", ForeignKey("gsb_surveys.id"), nullable=False, index=True),
    Column("number", Integer, nullable=False),  # from 0, in a survey
    Column("name", String(100), nullable=False),  # a pseudonym
    Column("link_sha256", String(64), unique=True, nullable=False),
    Column("made_at", String(40), nullable=False),
    Column("closed", Boolean, nullable=False, default=False),
    UniqueConstraint("survey_id", "number"),
)

tasks = Table(
    "gsb_tasks",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("rater_id", ForeignKey("gsb_raters.id"), nullable=False, index=True),
    Column("position", Integer, nullable=False),
    Column("token", String(64), unique=True, nullable=False),
    Column("kind", String(20), nullable=False),  # vote | repeat | desync | voice
    Column("repeat", Integer, nullable=False),
    Column("left_clip", ForeignKey("gsb_clips.id"), nullable=False),
    Column("right_clip", ForeignKey("gsb_clips.id"), nullable=False),
    Column("left_token", String(64), unique=True, nullable=False),
    Column("right_token", String(64), unique=True, nullable=False),
    UniqueConstraint("rater_id", "position"),
)

showings = Table(
    "gsb_showings",
    metadata,
    Column("task_id", ForeignKey("gsb_tasks.id"), primary_key=True),
    Column("side", String(5), primary_key=True),
    Column("at", Float, nullable=False),  # seconds since 1970
)

ballots = Table(
    "gsb_ballots",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("rater_id", ForeignKey("gsb_raters.id"), nullable=False, index=True),
    Column("task_id", ForeignKey("gsb_tasks.id"), nullable=False),
    Column("generation", Integer, nullable=False),  # even: a vote, odd: the vote before is taken back
    Column("request_id", String(64), nullable=False),
    Column("answers", JSON, nullable=False),  # axis -> left | tie | right
    Column("comment", Text, nullable=False),
    Column("seconds", Float, nullable=False),
    Column("left_sha256", String(64), nullable=False),  # of the files that were shown
    Column("right_sha256", String(64), nullable=False),
    Column("at", String(40), nullable=False),
    UniqueConstraint("rater_id", "request_id"),
    UniqueConstraint("task_id", "generation"),
)

for _what in ("UPDATE", "DELETE"):
    event.listen(
        ballots,
        "after_create",
        DDL(
            f"CREATE TRIGGER gsb_ballots_no_{_what.lower()} BEFORE {_what} ON gsb_ballots "
            "BEGIN SELECT RAISE(ABORT, 'ballots are append-only'); END"
        ).execute_if(dialect="sqlite"),
    )
event.listen(
    ballots,
    "after_create",
    DDL(
        "CREATE OR REPLACE FUNCTION gsb_append_only() RETURNS trigger AS $$ BEGIN "
        "RAISE EXCEPTION 'ballots are append-only'; END $$ LANGUAGE plpgsql"
    ).execute_if(dialect="postgresql"),
)
event.listen(
    ballots,
    "after_create",
    DDL(
        "CREATE TRIGGER gsb_ballots_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON gsb_ballots "
        "FOR EACH STATEMENT EXECUTE FUNCTION gsb_append_only()"
    ).execute_if(dialect="postgresql"),
)


def create(engine: Engine) -> None:
    """The tables, in a database that has none of them."""
    with engine.begin() as connection:
        metadata.create_all(connection)
        connection.execute(version.insert().values(version=VERSION))
