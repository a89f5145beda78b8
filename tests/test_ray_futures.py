"""What comes of Ray's errors: one line of an own class, or the word that a rank is gone."""

import pytest

from orchestration.futures import Futures, LostRank
from orchestration.generation import Hands, _result


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (
            lambda ray: ray.RuntimeEnvSetupError("no such\npackage"),
            "Ray cannot start a process, look at its runtime_env.*no such package",
        ),
        (lambda ray: ray.ActorUnschedulableError("no room"), "Ray cannot start a process.*no room"),
        (lambda ray: ray.ObjectLostError("ab", None, ""), "Ray lost what a worker had made"),
        (lambda ray: ray.OutOfDiskError("no room\non /tmp"), r"Ray failed \(OutOfDiskError\)"),
        (
            lambda ray: ray.RayTaskError("f", "", ray.ActorDiedError()).as_instanceof_cause(),
            "a worker was lost more often than",
        ),
        (lambda ray: ray.RayTaskError("f", "", OSError("disk full")).as_instanceof_cause(), "disk full"),
    ],
)
def test_what_ray_cannot_do_is_one_line_also_of_a_rank(monkeypatch, error, says):
    ray = pytest.importorskip("ray")
    futures, rank = Futures(), object()
    monkeypatch.setattr(ray, "wait", lambda asked, **_: (asked, []))

    def fail(future: object) -> None:
        raise error(ray.exceptions)

    monkeypatch.setattr(ray, "get", fail)
    with pytest.raises(OSError, match=says) as raised:
        futures.result(object())
    assert "\n" not in str(raised.value)
    futures.watch([rank])
    with pytest.raises(OSError, match=says):  # of a clip that a rank was given, no loss of the rank
        futures.wait([rank])
    with pytest.raises(OSError, match=says) as raised:
        _result(object())  # of `nava generate --ray`
    assert "\n" not in str(raised.value)


def test_a_dead_rank_is_told_from_one_that_complains_of_it(monkeypatch):
    ray = pytest.importorskip("ray")
    dead = ray.exceptions.ActorDiedError()
    said = {
        "a": ray.exceptions.RayTaskError(
            "learn", "", RuntimeError("connection closed by peer")
        ).as_instanceof_cause(),
        "b": dead,
    }
    monkeypatch.setattr(ray, "wait", lambda asked, **_: (asked, []))

    def fail(future: str) -> None:
        raise said[future]

    monkeypatch.setattr(ray, "get", fail)
    futures = Futures()
    futures.watch(["a", "b"])
    with pytest.raises(LostRank, match="connection closed by peer"):
        futures.wait(["a", "b"])
    futures.watch(["a"])
    with pytest.raises(ValueError, match="RuntimeError: connection closed by peer"):
        futures.wait(["a"])


GONE = [
    lambda ray: ray.OutOfMemoryError("killed due to the node running low on memory"),
    lambda ray: ray.ActorDiedError(),
    lambda ray: ray.NodeDiedError("its node died"),
]


@pytest.mark.parametrize("error", GONE)
def test_what_ray_kills_for_memory_is_lost_and_replaced(monkeypatch, error):
    ray = pytest.importorskip("ray")
    raised, ended = [error(ray.exceptions)] * 2, []

    def get(future: object) -> object:
        if raised:
            raise raised.pop()
        return future

    monkeypatch.setattr(ray, "get", get)
    workers = iter("abcdefghijkl")
    hands = Hands(lambda: next(workers), lambda _, task: task, lambda some: some[:1], _result, ended.append)
    hands.workers = [hands.hire(), hands.hire()]
    hands.prove(lambda worker: worker)
    raised.append(error(ray.exceptions))
    assert sorted(hands.work([0, 1, 2], 2)) == [0, 1, 2] and len(ended) == 3 and len(hands.workers) == 2
    raised += [error(ray.exceptions)] * 99
    with pytest.raises(OSError, match="5 workers were lost without a batch"):
        hands.prove(lambda worker: worker)


@pytest.mark.parametrize("error", GONE)
def test_a_rank_that_ray_kills_for_memory_is_a_lost_rank(monkeypatch, error):
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(ray, "wait", lambda asked, **_: (asked, []))

    def get(future: str) -> None:
        raise error(ray.exceptions)

    monkeypatch.setattr(ray, "get", get)
    futures = Futures()
    futures.watch(["a"])
    with pytest.raises(LostRank):
        futures.wait(["a"])
    with pytest.raises(OSError, match="lost more often than max_restarts allows"):
        futures.result("b")


@pytest.mark.parametrize("error", GONE)
def test_a_reward_that_ray_kills_for_memory_has_died(error):
    ray = pytest.importorskip("ray")
    from orchestration.service.holder import _translated
    from orchestration.service.scoring import Died, RewardFailed

    assert isinstance(_translated(error(ray.exceptions)), Died)
    other = _translated(ray.exceptions.RuntimeEnvSetupError("no such\npackage"))
    assert isinstance(other, RewardFailed) and other.again and "\n" not in str(other)


def test_a_task_that_fails_in_a_worker_is_its_own_line(monkeypatch):
    ray = pytest.importorskip("ray")

    def get(future: BaseException) -> None:
        raise ray.exceptions.RayTaskError("make", "", future).as_instanceof_cause()

    monkeypatch.setattr(ray, "get", get)
    for cause, kind in ((ValueError("no room"), ValueError), (FileNotFoundError("gone"), OSError)):
        with pytest.raises(kind, match=str(cause)):
            _result(cause)
    with pytest.raises(ValueError, match="RuntimeError: CUDA error"):
        _result(RuntimeError("CUDA error\nof a kernel"))
