"""Jobs on disk: accepted once, ended once, in turns, within quotas."""

import asyncio
import dataclasses
import random
import sqlite3
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestration.generation_service.database import DatabaseFull
from orchestration.generation_service.dispatch import chosen
from orchestration.generation_service.job import VideoJob, new_id
from orchestration.generation_service.limits import JobLimits
from orchestration.generation_service.pace import Pace, ahead_of, estimate
from orchestration.generation_service.store import JobStore
from orchestration.service.limits import Refusal


def job(owner: str = "a", key: str | None = None, **fields) -> VideoJob:
    given = {"id": new_id(), "owner": owner, "wanted": "{}", "kind": "k", "cost": 1.0, "key": key}
    return VideoJob(**{**given, "digest": "d", "created_at": 1.0, **fields})


def with_store(tmp_path: Path, work, **limits):
    store = JobStore(tmp_path / "db" / "jobs.db", JobLimits(**limits))
    try:
        return asyncio.run(work(store))
    finally:
        store.close()


def test_a_job_ends_once_whatever_is_said_of_it(tmp_path):
    async def work(store):
        accepted, is_new = await store.accept(job())
        (started,) = await store.start([accepted.id])
        assert is_new and started.attempt == 1 and await store.start([accepted.id]) == []
        assert await store.give_back(started) and not await store.finish(started, 1, 1)
        (again,) = await store.start([accepted.id])
        assert again.attempt == 2 and not await store.finish(started, 1, 1)  # the lost attempt comes late
        assert await store.finish(again, 5, 6) and not await store.fail(again, "c", "m")
        assert (await store.cancel(accepted.id, "a")).status == "completed"
        done = store.find(accepted.id, "a")
        assert (done.status, done.ends, done.video_bytes, done.attempt) == ("completed", 1, 5, 2)

    with_store(tmp_path, work)


def test_a_token_sees_its_own_jobs_only(tmp_path):
    async def work(store):
        mine, _ = await store.accept(job("a"))
        await store.accept(job("b"))
        assert store.find(mine.id, "b") is None and await store.cancel(mine.id, "b") is None
        assert await store.delete(mine.id, "b") is None and store.find(mine.id, "a") == mine
        assert [one.owner for one in store.page("a", "", 10, True)[0]] == ["a"]
        with pytest.raises(Refusal):
            store.page("b", mine.id, 10, True)

    with_store(tmp_path, work)


def test_a_key_makes_one_job_also_where_requests_race(tmp_path):
    async def work(store):
        racing = await asyncio.gather(*(store.accept(job(key="k1")) for _ in range(20)))
        assert len({one.id for one, _ in racing}) == 1 and sum(is_new for _, is_new in racing) == 1
        with pytest.raises(Refusal) as refused:
            await store.accept(job(key="k1", digest="another"))
        assert refused.value.status == 409
        _, is_new = await store.accept(job("b", key="k1", digest="another"))
        assert is_new and len(store.waiting()) == 2

    with_store(tmp_path, work)


def test_queues_are_bounded_in_all_and_by_token(tmp_path):
    async def work(store):
        done = await asyncio.gather(*(store.accept(job("a")) for _ in range(9)), return_exceptions=True)
        refused = [one for one in done if isinstance(one, Refusal)]
        assert len(refused) == 6 and {one.status for one in refused} == {429}
        for _ in range(2):
            await store.accept(job("b"))
        with pytest.raises(Refusal) as full:
            await store.accept(job("c"), 17)
        assert full.value.status == 503 and full.value.headers() == {"retry-after": "17"}
        with pytest.raises(Refusal):
            store.check_room("c", 1)
        await store.start([store.waiting()[0].id])
        assert (await store.accept(job("c")))[1]

    with_store(tmp_path, work, queue=5, token_queue=3)


def test_results_expire_by_time_and_by_the_tokens_quota_oldest_first(tmp_path):
    async def work(store):
        ids = []
        for owner, size in (("a", 40), ("a", 40), ("a", 40), ("b", 500), ("b", 1)):
            one, _ = await store.accept(job(owner))
            await store.finish((await store.start([one.id]))[0], size, 0)
            ids.append(one.id)
        gone = await store.trim()
        assert sorted(gone.expired) == sorted([ids[0], ids[3]]) and store.find(ids[0], "a").expired == "quota"
        assert store.held_bytes("a") == 80 and store.held_bytes() == 81 and (await store.trim()).expired == []
        store.database.read.execute("SELECT 1")
        await store.database.write(
            lambda db: db.execute("UPDATE jobs SET expires_at = 1 WHERE id = ?", (ids[1],))
        )
        assert (await store.trim()).expired == [ids[1]] and store.find(ids[1], "a").expired == "time"

    with_store(tmp_path, work, token_bytes=100)


def test_a_newest_result_above_the_quota_stays_and_old_rows_are_forgotten(tmp_path):
    async def work(store):
        for _ in range(5):
            one, _ = await store.accept(job())
            await store.finish((await store.start([one.id]))[0], 1000, 0)
        gone = await store.trim()
        assert len(gone.expired) == 4 and len(gone.forgotten) == 2
        assert store.held_bytes("a") == 1000 and len(store.ids()) == 3

    with_store(tmp_path, work, token_bytes=10, token_jobs=3)


def test_one_wrong_change_undoes_itself_alone(tmp_path):
    async def work(store):
        def wrong(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM jobs")
            raise KeyError("x")

        changes = [store.accept(job()), store.database.write(wrong), store.accept(job())]
        done = await asyncio.gather(*changes, return_exceptions=True)
        assert isinstance(done[1], KeyError) and len(store.waiting()) == 2

    with_store(tmp_path, work)


def test_a_full_disk_accepts_nothing_and_loses_nothing(tmp_path):
    async def work(store):
        await store.accept(job())
        (pages,) = store.database._connection.execute("PRAGMA page_count").fetchone()
        store.database._connection.execute(f"PRAGMA max_page_count = {pages + 1}")
        with pytest.raises(DatabaseFull, match="cannot be written"):
            await store.accept(job(wanted="x" * 100_000))
        assert len(store.waiting()) == 1
        assert (await store.accept(job()))[1]

    with_store(tmp_path, work)


def test_what_is_no_database_is_one_line(tmp_path):
    folder = tmp_path / "db"
    folder.mkdir()
    (folder / "jobs.db").write_bytes(b"not a database, but long enough to be read as one" * 100)
    with pytest.raises(ValueError, match="not a database of jobs"):
        JobStore(folder / "jobs.db", JobLimits())


KILLED = """
import asyncio, os, sys
from pathlib import Path
from test_video_store import job
from orchestration.generation_service.limits import JobLimits
from orchestration.generation_service.store import JobStore
async def main():
    store = JobStore(Path(sys.argv[1]), JobLimits(queue=10**6, token_queue=10**6))
    async def one():
        while True:
            accepted, _ = await store.accept(job())
            os.write(1, (accepted.id + "\\n").encode())
            await store.start([accepted.id])
    await asyncio.gather(*(one() for _ in range(8)))
asyncio.run(main())
"""


def test_a_killed_server_forgets_no_job_that_it_said_it_has(tmp_path):
    path, said = tmp_path / "db" / "jobs.db", set[str]()
    environment = {
        "PYTHONPATH": f"{Path(__file__).parent}:{Path(__file__).parents[1]}",
        "PATH": "/usr/bin:/bin",
    }
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    for line in process.stdout:
        said.add(line.strip())
        if len(said) == 60:
            process.kill()
    process.wait()
    said.discard("")

    async def work(store):
        assert {id for id in said if len(id) == 54} <= store.ids() and len(said) >= 60
        waited = await store.recover()
        assert waited > 0 and len(store.waiting()) == len(store.ids())

    store = JobStore(path, JobLimits())
    asyncio.run(work(store))
    store.close()


jobs_of = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from("kl"), st.booleans()), min_size=1, max_size=25
)


def queue_of(drawn) -> list[VideoJob]:
    return [
        job(owner, kind=kind, suspect=int(suspect), number=number)
        for number, (owner, kind, suspect) in enumerate(drawn, start=1)
    ]


@given(
    drawn=jobs_of, batch=st.integers(1, 6), busy=st.dictionaries(st.sampled_from("abc"), st.integers(0, 9))
)
@settings(max_examples=200, deadline=None)
def test_a_batch_has_one_kind_suspects_alone_and_tokens_in_turns(drawn, batch, busy):
    waiting, working = queue_of(drawn), Counter(busy)
    found = chosen(waiting, working, {}, batch)
    assert 1 <= len(found) <= batch and len({one.id for one in found}) == len(found)
    assert len({one.kind for one in found}) == 1
    assert not any(one.suspect for one in found) or len(found) == 1
    assert working[found[0].owner] == min(working[one.owner] for one in waiting)
    shares = Counter(one.owner for one in found)
    left = [one for one in waiting if one.kind == found[0].kind and not one.suspect and one not in found]
    for one in left if len(found) == batch and not found[0].suspect else []:  # who could have had more
        assert shares[one.owner] >= max(shares.values()) - 1
    for owner in shares:  # the oldest first, within a token
        numbers = [one.number for one in found if one.owner == owner]
        assert numbers == sorted(numbers)


@given(drawn=jobs_of, which=st.integers(0, 24))
@settings(max_examples=100, deadline=None)
def test_the_place_in_the_queue_is_that_of_a_simulation(drawn, which):
    """One at a time, as the dispatcher would: off by no more than the tokens that share a round."""
    waiting = [dataclasses.replace(one, suspect=0) for one in queue_of(drawn)]
    target, turns, left = waiting[which % len(waiting)], {}, list(waiting)
    served = []
    while left:
        (one,) = chosen(left, Counter(), turns, 1)
        turns[one.owner] = len(served) + 1
        served.append(one.number)
        left.remove(one)
    found = ahead_of(target, waiting)
    assert abs(len(found) - served.index(target.number)) <= 2
    assert target not in found


def test_estimates_are_what_was_measured():
    pace, waiting = Pace(), [job(number=number, cost=10.0) for number in range(1, 9)]
    ahead = ahead_of(waiting[4], waiting)
    assert len(ahead) == 4 and estimate(waiting[4], ahead, waiting[4:], 0.0, pace, 2, 1) is None
    pace.note("k", 40.0, 20.0)  # 4 clips in 20 s: 5 s each
    assert estimate(waiting[4], ahead, waiting[4:], 6.0, pace, 2, 1) == pytest.approx((6 + 20) / 2 + 5)
    assert estimate(waiting[4], ahead, waiting[4:], 6.0, pace, 2, 4) == pytest.approx((6 + 20) / 2 + 20)
    for _ in range(50):
        pace.note("k", 40.0, 40.0)
    assert pace.seconds(waiting[:1]) == pytest.approx(10.0, rel=1e-3)
    assert pace.seconds([job(kind="unseen", cost=2.0)]) == pytest.approx(2.0, rel=1e-3)


def test_ids_cannot_be_guessed():
    ids = {new_id() for _ in range(1000)}
    assert len(ids) == 1000 and all(len(id) == 54 for id in ids)
    assert len({id[6 + random.randrange(48)] for id in ids}) == 16
