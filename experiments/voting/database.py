"""Opening a database of surveys, and what may go wrong with it, in words."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, inspect, select
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError, SQLAlchemyError

from experiments.voting import tables
from pretrain.config import one_line

# threads take turns in order; SQLite itself would let them sleep and try again
_WRITER = threading.Lock()
BUSY_S = 15.0  # a writer of SQLite waits so long for another
_FULL = re.compile(r"disk is full|disk full|no space left|could not extend|disk i/o error", re.IGNORECASE)


class StorageFullError(OSError):
    """No room for a vote."""


class StorageAwayError(OSError):
    """The database does not answer, or is busy for too long."""


def is_url(place: str) -> bool:
    return re.match(r"[a-z0-9+]+://", place) is not None


def shown_place(place: str) -> str:
    """The place without a password."""
    return make_url(place).render_as_string(hide_password=True) if is_url(place) else place


def open_database(place: str, make: bool = True) -> Engine:
    """The engine of a SQLite file or a PostgreSQL URL, its tables made where there are none and `make`.

    Raises ValueError for a URL of another kind and a database of another version, FileNotFoundError for a
    missing file without `make`, StorageAwayError for one that cannot be reached.
    """
    engine = _engine(place, make)
    where = shown_place(place)
    try:
        found = set(inspect(engine).get_table_names())
        if tables.version.name not in found:
            if not make:
                raise ValueError(f"{where}: holds no survey; `nava gsb serve` makes one")
            if found and not is_url(place):
                raise ValueError(f"{where}: a database of something else; give another --votes")
            with at_database():
                tables.create(engine)
        with engine.connect() as connection:
            version = connection.execute(select(tables.version.c.version)).scalar()
    except (SQLAlchemyError, StorageAwayError) as error:
        engine.dispose()
        if isinstance(error, DBAPIError) and "not a database" in str(error.orig):
            raise ValueError(f"{where}: not a database of SQLite; give another --votes") from None
        said = one_line(str(error.orig) if isinstance(error, DBAPIError) else str(error), 200)
        raise StorageAwayError(f"{where}: cannot be opened ({said}); check --votes") from None
    if version != tables.VERSION:
        engine.dispose()
        raise ValueError(
            f"{where}: a database of version {version}, this program reads {tables.VERSION}; use the program "
            "that made it, or another --votes"
        )
    return engine


def _engine(place: str, make: bool) -> Engine:
    if not is_url(place):
        path = Path(place)
        if path.is_dir():
            raise ValueError(f"{place}: a folder; give a file, as {place.rstrip('/')}/votes.db")
        if not path.is_file():
            if not make:
                raise FileNotFoundError(f"{place}: no such file; give --votes of `nava gsb serve`")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600)
        engine = create_engine(
            f"sqlite:///{path.resolve()}", connect_args={"timeout": BUSY_S}, pool_size=8, max_overflow=64
        )
        event.listen(engine, "connect", _prepare)
        event.listen(engine, "begin", _begin)
        return engine
    try:
        url = make_url(place)
    except ArgumentError:
        raise ValueError("--votes: not a URL of a database; expected postgresql://USER@HOST/NAME") from None
    if url.get_backend_name() != "postgresql":
        raise ValueError(f"--votes {shown_place(place)}: expected a file or postgresql://USER@HOST/NAME")
    if url.drivername == "postgresql":
        url = url.set(drivername="postgresql+psycopg")
    try:
        return create_engine(url, pool_size=8, max_overflow=16, pool_pre_ping=True, pool_timeout=BUSY_S)
    except ModuleNotFoundError as error:
        raise ValueError(f"--votes: {error.name} is missing; pip install 'psycopg[binary]'") from None


def _prepare(connection: Any, record: Any) -> None:
    connection.isolation_level = None  # transactions begin where SQLAlchemy says so
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin(connection: Connection) -> None:
    writes = connection.get_execution_options().get("writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


@contextmanager
def at_database() -> Iterator[None]:
    """A failure of the store itself leaves as StorageFullError or StorageAwayError, in words."""
    try:
        yield
    except SQLAlchemyError as error:
        said = str(error.orig) if isinstance(error, DBAPIError) else str(error)
        if _FULL.search(said):
            raise StorageFullError("no room to store this; nothing was stored, try again later") from error
        if isinstance(error, OperationalError) or not isinstance(error, DBAPIError):
            raise StorageAwayError(f"the store does not answer ({one_line(said, 120)})") from error
        raise


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    with at_database(), engine.begin() as connection:
        yield connection


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """A transaction that holds SQLite's write lock from its beginning."""
    turn = _WRITER if engine.dialect.name == "sqlite" else nullcontext()
    with turn, at_database(), engine.connect().execution_options(writes=True) as connection:
        with connection.begin():
            yield connection
