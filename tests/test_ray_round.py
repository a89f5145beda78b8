from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pipeline_world import ROLLOUT, TRAINER, Future, Interrupted, Task, World

from orchestration.round import Pipeline, Unit, WorkerPool, play_rounds

SEEDS = st.integers(0, 2**32 - 1)
POOLS = st.fixed_dictionaries(
    {ROLLOUT: st.integers(1, 4), "sync": st.integers(1, 3)}, optional={"speech": st.integers(1, 3)}
)
PLACES = st.tuples(st.sampled_from([ROLLOUT, "sync"]), st.integers(0, 4), st.integers(0, 5))


def until_it_ends(work: Callable[[], object]) -> object:
    """Again after every signal."""
    while True:
        try:
            return work()
        except Interrupted:
            continue


@given(
    SEEDS,
    POOLS,
    st.integers(1, 3),
    st.integers(1, 6),
    st.integers(0, 3),
    st.integers(0, 6),
    st.integers(0, 8),
    st.integers(0, 2),
)
def test_rounds_are_whole_and_as_stale_as_asked(
    seed, pools, in_flight, max_unscored, staleness, rounds, count, first
):
    """What the world checks at every step: order, each task once, load, back-pressure, no idling; here:
    versions and the order of parts."""
    world = World(seed, pools, in_flight, max_unscored)
    published, finished = [first], []

    def tasks(round: int, version: int) -> list[Task]:
        assert version == max(round - staleness, 0) <= published[-1], "a version that is not published"
        assert round == first or published[-1] == max(first, round - staleness), (
            "begun later than it could be"
        )
        return world.tasks(round, count)

    def learn(round: int, units: Sequence[Unit[Task, Future]]) -> list[Future]:
        assert round == published[-1] and [unit.task for unit in units] == world.alive.pop(round)
        assert all(world.started[name, unit.task] == 1 for name in pools for unit in units)
        finished.append(round)
        return world.trainers(2)

    def publish(version: int) -> None:
        assert all(future.told for future in world.futures if future.pool == TRAINER)
        assert version == finished[-1] + 1
        published.append(version)

    play_rounds(first, first + rounds, staleness, world.pipeline, tasks, learn, publish)
    assert finished == list(range(first, first + rounds)) and not world.pipeline.begun
    assert len(world.started) == rounds * count * len(pools)


@given(SEEDS, st.integers(0, 2), st.integers(0, 5), st.integers(0, 4))
def test_rounds_go_on_from_the_last_version_after_a_trainer_was_lost(seed, staleness, lost, ahead):
    """The update of one round fails once; dropped and played from there, every round is learned from once and
    by its own version."""
    world, learned, asked = World(seed), [], {}
    published = 0

    def tasks(round: int, version: int) -> list[Task]:
        assert asked.setdefault(round, version) == version <= published
        return world.tasks(round, 3)

    def learn(round: int, units: Sequence[Unit[Task, Future]]) -> list[Future]:
        assert [unit.task for unit in units] == world.alive.pop(round)
        learned.append(round)
        return world.trainers(2)

    def publish(version: int) -> None:
        nonlocal published
        if version == lost + 1 and learned.count(lost) == 1:
            raise OSError("a trainer is gone")
        published = version

    with pytest.raises(OSError, match="a trainer is gone"):
        play_rounds(0, 6, staleness, world.pipeline, tasks, learn, publish)
    for _ in range(ahead):
        world.pipeline.attend(world.trainers(1))
    world.drop()
    play_rounds(published, 6, staleness, world.pipeline, tasks, learn, publish)
    assert learned == [*range(lost + 1), *range(lost, 6)] and published == 6


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("begin"), st.integers(0, 4), st.integers(0, 6)),
        st.tuples(st.just("finish"), st.integers(0, 4), st.just(0)),
        st.tuples(st.just("attend"), st.integers(0, 3), st.just(0)),
        st.tuples(st.just("drop"), st.just(0), st.just(0)),
    ),
    min_size=4,
    max_size=16,
)


@settings(max_examples=200)
@given(SEEDS, POOLS, st.integers(1, 2), st.integers(1, 4), st.sets(PLACES, max_size=4), OPERATIONS)
def test_any_use_with_errors_signals_and_drops(seed, pools, in_flight, max_unscored, failing, operations):
    """`finish` of the round that so many begun ones precede; a `begin` of one under way finishes it first."""
    world = World(seed, pools, in_flight, max_unscored, 0.1, failing)
    for name, number, count in operations:
        if name == "begin":
            if number in world.begun:
                until_it_ends(lambda number=number: world.finish(number))
            world.begin(number, count)
        elif name == "finish" and world.begun:
            chosen = sorted(world.begun)[number % len(world.begun)]
            until_it_ends(lambda chosen=chosen: world.finish(chosen))
        elif name == "attend":
            update = world.trainers(number) if number else []
            until_it_ends(lambda update=update: world.pipeline.attend(update))
            assert all(future.told for future in update)
        elif name == "drop":
            world.drop()
        assert world.pipeline.begun == tuple(sorted(world.begun))
    world.drop()
    world.failing.clear()
    world.begin(7, 3)
    assert len(until_it_ends(lambda: world.finish(7))) == 3  # type: ignore[arg-type]


@given(SEEDS, POOLS)
def test_rounds_go_on_during_the_update(seed, pools):
    """The update ends last, so attending to it has to bring the other round to its end; nothing is left to
    wait for."""
    world = World(seed, pools, last=TRAINER)
    world.begin(1, 5)
    world.pipeline.attend(world.trainers(2))
    world.pipeline.wait = None  # type: ignore[assignment]
    assert world.finish(1) is not None


@given(SEEDS)
def test_a_lower_round_goes_first_though_begun_later(seed):
    world = World(seed, in_flight=1)
    for number in (9, 4, 7, 1):
        world.begin(number, 5)
    assert all(world.finish(number) is not None for number in (7, 1, 4, 9))
    assert [one.task.round for one in world.futures if one.pool == ROLLOUT and one.task][2:] == [1] * 5 + [
        4
    ] * 5 + [7] * 5 + [9] * 3


@given(SEEDS, st.integers(0, 6), st.sampled_from([ROLLOUT, "sync"]))
def test_a_round_begun_again_takes_nothing_of_its_former_life(seed, turns, late):
    """What was dropped ends last, as a rollout or as a score, when another round of that number is under
    way."""
    world = World(seed, last=late)
    world.begin(2, 4)
    for _ in range(turns):
        world.pipeline.attend(world.trainers(1))
    world.drop()
    world.begin(2, 4)
    assert world.finish(2) is not None


@given(SEEDS, PLACES)
def test_an_error_comes_out_of_its_own_round_once(seed, failing):
    world = World(seed, failing={failing})
    for number in range(6):
        world.begin(number, 6)
    ended = [world.finish(number) for number in range(6)]
    assert [number for number, units in enumerate(ended) if units is None] == [failing[1]]
    assert sum(one.asked and one.error is not None for one in world.futures) == 1


@given(SEEDS, st.integers(1, 12))
def test_a_start_that_raises_loses_no_task(seed, nth):
    world = World(seed)
    calls, start = 0, world.start

    def now_and_then(name: str, worker: str, task: object) -> Future:
        nonlocal calls
        calls += 1
        if calls == nth:
            raise OSError("the store is full")
        return start(name, worker, task)

    world.start = now_and_then  # type: ignore[method-assign]
    try:
        world.begin(0, 4)
        units = world.finish(0)
    except OSError:
        units = world.finish(0)
    assert units is not None and len(units) == 4


def test_workers_stay_busy_with_what_was_dropped():
    """Two workers hold dropped tasks, so that the next life has to wait for them; its tasks then come in
    order."""
    world = World(0, in_flight=1)
    world.begin(3, 2)
    old = list(world.futures)
    world.drop()
    world.begin(0, 2)
    assert world.futures == old
    assert world.finish(0) is not None
    assert all(future.told for future in old) and not any(future.asked for future in old)


def test_the_least_loaded_worker_gets_the_next_task():
    world = World(0, {ROLLOUT: 3, "sync": 1}, in_flight=2, max_unscored=9)
    world.begin(0, 4)
    assert [future.worker for future in world.futures] == ["rollout 0", "rollout 1", "rollout 2", "rollout 0"]


def test_wrong_use_is_refused():
    world = World(0)
    world.begin(1, 1)
    with pytest.raises(ValueError, match="round 1 is begun already"):
        world.pipeline.begin(1, [])
    with pytest.raises(ValueError, match=r"round 0 is not begun; begun are \[1\]"):
        world.pipeline.finish(0)
    pool = WorkerPool("sync", ["one"], lambda worker, task: Future("sync", worker, None))
    with pytest.raises(ValueError, match="pool sync: 0 workers"):
        WorkerPool("sync", [], pool.start)
    with pytest.raises(ValueError, match="pool sync: 1 workers with 0 tasks"):
        WorkerPool("sync", ["one"], pool.start, 0)
    for scorers, most in (({}, 1), ({"sync": pool}, 0)):
        with pytest.raises(ValueError, match="at least 1 of both"):
            Pipeline(pool, scorers, lambda futures: futures, lambda future: None, most)
