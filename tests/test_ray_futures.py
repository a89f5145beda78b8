"""What comes of Ray's errors: one line of an own class, or the word that a rank is gone."""

import pytest

from orchestration.futures import Futures, LostRank


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (
            lambda ray: ray.RuntimeEnvSetupError("no such\npackage"),
            "Ray cannot start a process, look at its runtime_env.*no such package",
        ),
        (lambda ray: ray.ActorUnschedulableError("no room"), "Ray cannot start a process.*no room"),
        (lambda ray: ray.ObjectLostError("ab", None, ""), "Ray lost what a worker had made"),
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
