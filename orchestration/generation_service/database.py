"""SQLite with one writer: changes that come together are one transaction, and are told when it is on disk."""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from orchestration.private_files import private_folder

T = TypeVar("T")
MOST_AT_ONCE = 128
BUSY_S = 30.0


class DatabaseFull(OSError):
    """The disk has no room, or the file cannot be written; nothing was changed."""


class Database:
    """A file in a folder that only its owner can read.

    `write` runs changes on a thread of their own. `read` is a connection for the thread that asks, which
    waits for no writer. changes: by the version of an earlier file, the statement that makes it one of the
    next. Raises ValueError in one line for a file that is none of `schema`.
    """

    def __init__(self, path: Path, schema: str, version: int, changes: Mapping[int, str] = {}) -> None:
        private_folder(path.parent)
        self.path = path
        try:
            self._connection = _connected(path)
            (found,) = self._connection.execute("PRAGMA user_version").fetchone()
            while found in changes:
                next_one = f"{changes[found]}; PRAGMA user_version = {found + 1}"
                self._connection.executescript(f"BEGIN IMMEDIATE; {next_one}; COMMIT;")
                found += 1
            if found not in (0, version):
                raise ValueError(f"{path}: of version {found}, this is {version}; move the folder away")
            self._connection.executescript(f"{schema}; PRAGMA user_version = {version};")
            path.chmod(0o600)
            self.read = _connected(path)
            self.read.execute("PRAGMA query_only = 1")
        except sqlite3.DatabaseError as error:
            raise ValueError(f"{path}: not a database of jobs ({error}); move it away") from None
        self.version = 0  # another one after each commit
        self._changes: queue.SimpleQueue[_Change | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="jobs database", daemon=True)
        self._thread.start()

    async def write(self, change: Callable[[sqlite3.Connection], T]) -> T:
        """What `change` returns, after it was committed and synced. Its exceptions undo it alone.

        A caller that is cancelled meanwhile does not undo it. Raises DatabaseFull.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()
        self._changes.put(_Change(change, done, loop))
        return await done

    def close(self) -> None:
        """After what was begun."""
        self._changes.put(None)
        self._thread.join()
        self.read.close()
        self._connection.close()

    def _run(self) -> None:
        ended = False
        while not ended:
            changes = [self._changes.get()]
            while len(changes) < MOST_AT_ONCE and not self._changes.empty():
                changes.append(self._changes.get())
            ended = None in changes
            self._commit([change for change in changes if change])

    def _commit(self, changes: list[_Change]) -> None:
        if not changes:
            return
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            for change in changes:
                self._connection.execute("SAVEPOINT one")
                try:
                    change.result = change.work(self._connection)
                except sqlite3.OperationalError:
                    raise
                except Exception as error:
                    change.error = error
                    self._connection.execute("ROLLBACK TO one")
                self._connection.execute("RELEASE one")
            self._connection.execute("COMMIT")
            self.version += 1
        except sqlite3.Error as error:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            for change in changes:
                change.error = DatabaseFull(f"{self.path}: cannot be written ({error})")
        for change in changes:
            change.tell()


class _Change:
    def __init__(self, work: Callable[..., Any], done: asyncio.Future, loop: asyncio.AbstractEventLoop):
        self.work, self.done, self.loop = work, done, loop
        self.result: Any = None
        self.error: Exception | None = None

    def tell(self) -> None:
        def set_it() -> None:
            if self.done.done():
                return
            if self.error:
                self.done.set_exception(self.error)
            else:
                self.done.set_result(self.result)

        with suppress(RuntimeError):  # the loop is closed: nobody waits
            self.loop.call_soon_threadsafe(set_it)


def _connected(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
    connection.row_factory = sqlite3.Row
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")  # a commit is on disk when it returns
    connection.execute("PRAGMA journal_size_limit = 16777216")
    return connection
