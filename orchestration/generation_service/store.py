"""Jobs on disk: accepted once, ended once, whatever is killed in between."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestration.generation_service.database import Database
from orchestration.generation_service.job import (
    CANCELLED,
    COLUMNS,
    COMPLETED,
    ENDED,
    FAILED,
    IN_PROGRESS,
    QUEUED,
    VideoJob,
)
from orchestration.generation_service.limits import JobLimits
from orchestration.service.limits import Refusal

VERSION = 2
SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, owner TEXT NOT NULL,
    status TEXT NOT NULL, wanted TEXT NOT NULL, kind TEXT NOT NULL, cost REAL NOT NULL,
    key TEXT, digest TEXT NOT NULL, created_at REAL NOT NULL, started_at REAL NOT NULL,
    completed_at REAL NOT NULL, expires_at REAL NOT NULL, attempt INTEGER NOT NULL,
    suspect INTEGER NOT NULL, losses INTEGER NOT NULL, error_code TEXT NOT NULL,
    error_message TEXT NOT NULL, video_bytes INTEGER NOT NULL, audio_bytes INTEGER NOT NULL,
    expired TEXT NOT NULL, ends INTEGER NOT NULL, served TEXT NOT NULL DEFAULT '', UNIQUE (owner, key));
CREATE INDEX IF NOT EXISTS by_status ON jobs (status, number);
CREATE INDEX IF NOT EXISTS by_owner ON jobs (owner, number)
"""
# by the version that a file has: what makes it one of the next
CHANGES = {1: "ALTER TABLE jobs ADD COLUMN served TEXT NOT NULL DEFAULT ''"}
_HELD = f"status = '{COMPLETED}' AND expired = ''"  # rows with results
REUSED = "idempotency_key: this key came with another request before; take a new one for each request"


@dataclass(frozen=True)
class JobGone:
    """Jobs whose files are no longer wanted: results that expired, and rows that are forgotten."""

    expired: Sequence[str] = ()
    forgotten: Sequence[str] = ()


class JobStore:
    """Of one process at a time. Reads are of what is committed; changes return when they are on disk."""

    def __init__(self, path: Path, limits: JobLimits) -> None:
        self.limits = limits
        self.database = Database(path, SCHEMA, VERSION, CHANGES)
        self._waiting: tuple[int, list[VideoJob]] = (-1, [])  # of that version of the database

    def close(self) -> None:
        self.database.close()

    def find(self, id: str, owner: str) -> VideoJob | None:
        """None where it is somebody else's, too."""
        row = self.database.read.execute(
            "SELECT * FROM jobs WHERE id = ? AND owner = ?", (id, owner)
        ).fetchone()
        return VideoJob.of(row) if row else None

    def of_key(self, owner: str, key: str, digest: str) -> VideoJob | None:
        """The job that came with this key. Raises Refusal 409 where its body was another."""
        return _of_key(self.database.read, owner, key, digest)

    def waiting(self) -> Sequence[VideoJob]:
        """In the order in which they were accepted."""
        version = self.database.version
        if self._waiting[0] != version:
            query = "SELECT * FROM jobs WHERE status = ? ORDER BY number"
            self._waiting = (
                version,
                [VideoJob.of(row) for row in self.database.read.execute(query, (QUEUED,))],
            )
        return self._waiting[1]

    def page(self, owner: str, after: str, limit: int, newest_first: bool) -> tuple[list[VideoJob], bool]:
        """(jobs of a token, whether there are more). Raises Refusal 404 for an `after` that is none."""
        sign, order = ("<", "DESC") if newest_first else (">", "ASC")
        where, values = "owner = ?", [owner]
        if after:
            if (last := self.find(after, owner)) is None:
                raise Refusal(404, f"after: no job {after[:80]!r} of this token")
            where, values = f"owner = ? AND number {sign} ?", [owner, last.number]
        rows = self.database.read.execute(
            f"SELECT * FROM jobs WHERE {where} ORDER BY number {order} LIMIT ?", (*values, limit + 1)
        ).fetchall()
        return [VideoJob.of(row) for row in rows[:limit]], len(rows) > limit

    def status_of(self, id: str) -> str:
        """ "" where there is no such job."""
        row = self.database.read.execute("SELECT status FROM jobs WHERE id = ?", (id,)).fetchone()
        return row[0] if row else ""

    def held_bytes(self, owner: str | None = None) -> int:
        """Of results, of one token or of all."""
        where, values = (_HELD, ()) if owner is None else (f"{_HELD} AND owner = ?", (owner,))
        query = f"SELECT coalesce(sum(video_bytes + audio_bytes), 0) FROM jobs WHERE {where}"
        return self.database.read.execute(query, values).fetchone()[0]

    def counts(self) -> Mapping[str, int]:
        """Of jobs by status."""
        rows = self.database.read.execute("SELECT status, count(*) FROM jobs GROUP BY status")
        return {row[0]: row[1] for row in rows}

    def ids(self) -> set[str]:
        """Of all jobs."""
        return {row[0] for row in self.database.read.execute("SELECT id FROM jobs")}

    def check_room(self, owner: str, wait_s: int) -> None:
        """Raises Refusal 503 where too many jobs wait, 429 where too many of this token do."""
        waiting = self.waiting()
        own = sum(job.owner == owner for job in waiting)
        _check_room(len(waiting), own, owner, self.limits, wait_s)

    async def accept(self, job: VideoJob, wait_s: int = 1) -> tuple[VideoJob, bool]:
        """(the job, True), or the one that came with its key before and False.

        Raises Refusal 409, 429, 503, DatabaseFull.
        """

        def change(connection: sqlite3.Connection) -> tuple[VideoJob, bool]:
            if job.key and (there := _of_key(connection, job.owner, job.key, job.digest)):
                return there, False
            count = "SELECT count(*), coalesce(sum(owner = ?), 0) FROM jobs WHERE status = ?"
            waiting, own = connection.execute(count, (job.owner, QUEUED)).fetchone()
            _check_room(waiting, own, job.owner, self.limits, wait_s)
            names = [name for name in COLUMNS if name != "number"]
            marks = ", ".join("?" * len(names))
            connection.execute(
                f"INSERT INTO jobs ({', '.join(names)}) VALUES ({marks})",
                [getattr(job, name) for name in names],
            )
            row = connection.execute("SELECT * FROM jobs WHERE id = ?", (job.id,)).fetchone()
            return VideoJob.of(row), True

        return await self.database.write(change)

    async def start(self, ids: Sequence[str]) -> list[VideoJob]:
        """Those of them that still wait, now in progress, each with the number of its attempt."""

        def change(connection: sqlite3.Connection) -> list[VideoJob]:
            started = []
            for id in ids:
                row = connection.execute(
                    "UPDATE jobs SET status = ?, attempt = attempt + 1, started_at = ? "
                    "WHERE id = ? AND status = ? RETURNING *",
                    (IN_PROGRESS, time.time(), id, QUEUED),
                ).fetchone()
                started += [VideoJob.of(row)] if row else []
            return started

        return await self.database.write(change)

    async def finish(self, job: VideoJob, video_bytes: int, audio_bytes: int) -> bool:
        """Completed; False where it was cancelled or deleted, or is another attempt's by now."""
        expires = time.time() + self.limits.kept_seconds
        return await self._end(job, COMPLETED, "", "", video_bytes, audio_bytes, expires)

    async def fail(self, job: VideoJob, code: str, message: str) -> bool:
        """Failed for good; False as of `finish`."""
        return await self._end(job, FAILED, code, message)

    async def give_back(self, job: VideoJob, *, suspect: bool = False, lost_alone: bool = False) -> bool:
        """It waits again, in its old place."""

        def change(connection: sqlite3.Connection) -> bool:
            return bool(
                connection.execute(
                    "UPDATE jobs SET status = ?, suspect = max(suspect, ?), losses = losses + ? "
                    "WHERE id = ? AND status = ? AND attempt = ?",
                    (QUEUED, suspect, lost_alone, job.id, IN_PROGRESS, job.attempt),
                ).rowcount
            )

        return await self.database.write(change)

    async def cancel(self, id: str, owner: str) -> VideoJob | None:
        """The job, cancelled unless it had ended before; None for none."""

        def change(connection: sqlite3.Connection) -> VideoJob | None:
            connection.execute(
                "UPDATE jobs SET status = ?, completed_at = ?, ends = ends + 1 "
                "WHERE id = ? AND owner = ? AND status IN (?, ?)",
                (CANCELLED, time.time(), id, owner, QUEUED, IN_PROGRESS),
            )
            row = connection.execute("SELECT * FROM jobs WHERE id = ? AND owner = ?", (id, owner)).fetchone()
            return VideoJob.of(row) if row else None

        return await self.database.write(change)

    async def delete(self, id: str, owner: str) -> VideoJob | None:
        """What it was; it is forgotten, at whatever stage it is."""

        def change(connection: sqlite3.Connection) -> VideoJob | None:
            row = connection.execute(
                "DELETE FROM jobs WHERE id = ? AND owner = ? RETURNING *", (id, owner)
            ).fetchone()
            return VideoJob.of(row) if row else None

        return await self.database.write(change)

    async def recover(self) -> int:
        """Jobs that a killed server was making wait again; how many."""
        return await self.database.write(
            lambda connection: (
                connection.execute(
                    "UPDATE jobs SET status = ? WHERE status = ?", (QUEUED, IN_PROGRESS)
                ).rowcount
            )
        )

    def unended(self) -> list[VideoJob]:
        """Those that wait and, of a killed server, those that it was making; in order."""
        query = "SELECT * FROM jobs WHERE status IN (?, ?) ORDER BY number"
        return [VideoJob.of(row) for row in self.database.read.execute(query, (QUEUED, IN_PROGRESS))]

    async def take_over(
        self, reason_of: Callable[[VideoJob], str], served_of: Callable[[VideoJob], str], code: str
    ) -> list[str]:
        """Jobs that wait and have a reason against them fail with it; others without a model get theirs.

        Returns the ids of those that failed.
        """

        def change(connection: sqlite3.Connection) -> list[str]:
            failed = []
            rows = connection.execute("SELECT * FROM jobs WHERE status = ?", (QUEUED,)).fetchall()
            for job in map(VideoJob.of, rows):
                if reason := reason_of(job):
                    connection.execute(
                        "UPDATE jobs SET status = ?, completed_at = ?, error_code = ?, error_message = ?, "
                        "ends = ends + 1 WHERE id = ?",
                        (FAILED, time.time(), code, reason, job.id),
                    )
                    failed.append(job.id)
                elif not job.served:
                    connection.execute("UPDATE jobs SET served = ? WHERE id = ?", (served_of(job), job.id))
            return failed

        return await self.database.write(change)

    async def trim(self) -> JobGone:
        """Results beyond their time or their token's quota expire, the oldest first, but never the newest of
        a token; ended jobs beyond `token_jobs`, and those that ended two such times ago, are forgotten."""
        return await self.database.write(lambda connection: _trim(connection, self.limits, time.time()))

    async def _end(
        self,
        job: VideoJob,
        status: str,
        code: str,
        message: str,
        video_bytes: int = 0,
        audio_bytes: int = 0,
        expires_at: float = 0.0,
    ) -> bool:
        values = (status, time.time(), expires_at, code, message, video_bytes, audio_bytes)

        def change(connection: sqlite3.Connection) -> bool:
            return bool(
                connection.execute(
                    "UPDATE jobs SET status = ?, completed_at = ?, expires_at = ?, error_code = ?, "
                    "error_message = ?, video_bytes = ?, audio_bytes = ?, ends = ends + 1 "
                    "WHERE id = ? AND status = ? AND attempt = ?",
                    (*values, job.id, IN_PROGRESS, job.attempt),
                ).rowcount
            )

        return await self.database.write(change)


def _of_key(connection: sqlite3.Connection, owner: str, key: str, digest: str) -> VideoJob | None:
    row = connection.execute("SELECT * FROM jobs WHERE owner = ? AND key = ?", (owner, key)).fetchone()
    if row is None:
        return None
    if row["digest"] != digest:
        raise Refusal(409, REUSED, code="idempotency_key_reused")
    return VideoJob.of(row)


def _check_room(waiting: int, own: int, owner: str, limits: JobLimits, wait_s: int) -> None:
    if waiting >= limits.queue:
        raise Refusal(
            503, f"{waiting} jobs wait, which is all at once; try again", "service", wait_s, "queue_full"
        )
    if own >= limits.token_queue:
        raise Refusal(
            429,
            f"token {owner}: {own} jobs wait, which is all at once; try again",
            "service",
            wait_s,
            "queue_full",
        )


def _trim(connection: sqlite3.Connection, limits: JobLimits, now: float) -> JobGone:
    def expire(why: str, where: str, values: tuple) -> list[str]:
        query = f"UPDATE jobs SET expired = ?, expires_at = min(expires_at, ?) WHERE {where} RETURNING id"
        return [row[0] for row in connection.execute(query, (why, now, *values)).fetchall()]

    expired = expire("time", f"{_HELD} AND expires_at <= ?", (now,))
    owners = connection.execute(
        f"SELECT owner FROM jobs WHERE {_HELD} GROUP BY owner HAVING sum(video_bytes + audio_bytes) > ?",
        (limits.token_bytes,),
    ).fetchall()
    for (owner,) in owners:
        query = (
            f"SELECT id, video_bytes + audio_bytes FROM jobs WHERE {_HELD} AND owner = ? "
            "ORDER BY completed_at DESC, number DESC"
        )
        held, old = 0, []
        for place, (id, size) in enumerate(connection.execute(query, (owner,)).fetchall()):
            held += size
            old += [id] if held > limits.token_bytes and place else []
        for id in old:
            expired += expire("quota", "id = ?", (id,))
    ended = ", ".join(f"'{status}'" for status in ENDED)
    placed = (
        "SELECT number, row_number() OVER (PARTITION BY owner ORDER BY completed_at DESC, number DESC) "
        f"AS place FROM jobs WHERE status IN ({ended})"
    )
    forgotten = connection.execute(
        f"DELETE FROM jobs WHERE status IN ({ended}) AND (completed_at < ? "
        f"OR number IN (SELECT number FROM ({placed}) WHERE place > ?)) RETURNING id",
        (now - 2 * limits.kept_seconds, limits.token_jobs),
    ).fetchall()
    return JobGone(expired, [row[0] for row in forgotten])
