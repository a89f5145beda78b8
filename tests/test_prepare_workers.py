"""Workers of `nava prepare`, local and on Ray: what dies, what raises, and the same bytes of both."""

from __future__ import annotations

import os
import random
import signal
import time
from functools import partial
from pathlib import Path

import pytest
from prepare_kills import content_of, kill_through, write_videos
from sleeping_preparation import MEASURED_S, sleep_through

from experiments.preparation.assemble import Assembled
from experiments.preparation.config import PrepareConfig
from experiments.preparation.digests import DIGESTS, digests
from experiments.preparation.pool import LocalWorkers
from experiments.preparation.prepare import prepare_set, work_folder
from experiments.preparation.records import RawVideo
from experiments.preparation.services import Services
from experiments.preparation.shards import sharded
from experiments.preparation.source_work import Settings
from orchestration.preparation import ray_workers

EVERY = Settings(PrepareConfig(min_confidence=0.0), 24.0)


def fatal_on_three(folder: str, item: int) -> int:
    """Kills its process on item 3, each time, and on item 5 once; raises on item 7."""
    once = Path(folder, "once")
    if item == 3 or (item == 5 and not once.exists()):
        once.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if item == 7:
        raise ConnectionError("the server is gone")
    return item * item


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_process_that_dies_costs_its_items_alone(tmp_path):
    work, workers = partial(fatal_on_three, str(tmp_path)), LocalWorkers(2)
    found = dict(workers.each(work, range(6)))
    assert found.items() <= {place: place**2 for place in range(6)}.items() and 3 not in found
    lost = set(range(6)) - found.keys()
    assert {item for item in lost if workers.alone(work, item)} == lost - {3}
    with pytest.raises(ConnectionError, match="server is gone"):
        workers.alone(work, 7)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_same_on_ray(tmp_path):
    def work(item: int) -> int:  # by value: Ray's workers cannot import the tests
        if item == 3 or (item == 5 and not (tmp_path / "once").exists()):
            (tmp_path / "once").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if item == 7:
            raise ConnectionError("the server is gone")
        return item * item

    with ray_workers("local", 2) as workers:
        found = dict(workers.each(work, range(6)))  # Ray begins 5 again, and gives 3 up
        assert found == {place: place**2 for place in range(6) if place != 3}
        assert not workers.alone(work, 3) and workers.alone(work, 4)
        with pytest.raises(ConnectionError, match="server is gone"):
            list(workers.each(work, [6, 7]))
        with pytest.raises(ConnectionError, match="server is gone"):
            workers.alone(work, 7)
        workers.check_paths([tmp_path])
        with pytest.raises(ValueError, match="missing: a machine of the Ray cluster does not see it"):
            workers.check_paths([tmp_path / "missing"])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ray_gives_the_bytes_of_local_processes(tmp_path):
    raw = write_videos(tmp_path / "raw", 3)
    prepare_set(str(raw), tmp_path / "local", EVERY, Services(), 1)
    with ray_workers("local", 2) as workers:
        prepare_set(str(raw), tmp_path / "ray", EVERY, Services(), workers)
    assert content_of(tmp_path / "local") == content_of(tmp_path / "ray")
    assert len(list(work_folder(tmp_path / "ray").glob("*/result.json"))) == 5


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("ray", [False, True], ids=["local", "ray"])
def test_killed_at_random_moments_the_set_is_the_same(tmp_path, ray):
    made = kill_through(tmp_path, int(os.environ.get("NAVA_KILLS", "6")), ray, videos=6)
    assert made.left == 0 and made.finished


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_eight_workers_reach_85_percent_of_the_ideal():
    found = sleep_through(random.Random(0).choices(MEASURED_S, k=96), 8)
    assert found["share_of_ideal"] >= 0.85, found


def test_files_that_did_not_change_are_hashed_once(tmp_path, monkeypatch):
    sources = []
    for number in range(3):
        path = tmp_path / f"{number}.mp4"
        path.write_bytes(b"abc" * (number + 1))
        sources.append(RawVideo(path, path.name, str(number)))
    sources.append(RawVideo(tmp_path / "gone.mp4", "gone.mp4", "gone"))
    first = digests(sources, tmp_path, LocalWorkers(1))
    assert isinstance(first["gone.mp4"], FileNotFoundError)
    with (tmp_path / DIGESTS).open("a") as file:
        file.write('["cut o')  # where a run was killed
    read = []
    monkeypatch.setattr(
        "experiments.preparation.digests.digest_of", lambda path: read.append(path.name) or "new"
    )
    time.sleep(0.01)
    sources[1].path.write_bytes(b"xyz" * 2)
    again = digests(sources, tmp_path, LocalWorkers(1))
    assert sorted(read) == ["1.mp4", "gone.mp4"] and again["1.mp4"] == "new"
    assert (again["0.mp4"], again["2.mp4"]) == (first["0.mp4"], first["2.mp4"])


def test_large_sets_lie_in_folders_of_equal_size():
    rows = [
        {
            "video_info": [{"data_path": f"clips/{n}.mp4"}],
            "meta": {"reference_paths": [f"references/s{n % 2}.wav", None]},
        }
        for n in range(5)
    ]
    files = {f"clips/{n}.mp4": Path(f"{n}") for n in range(5)} | {"rejected/r.mp4": Path("r")}
    references = {"references/s0.wav": [Path("a")], "references/s1.wav": [Path("b")]}
    refused = [{"preview": "rejected/r.mp4"}, {"preview": ""}]
    whole = Assembled(rows, refused, files, references, {}, {})
    found = sharded(whole, 2)
    assert list(found.files) == [
        *(f"clips/{n // 2:05d}/{n}.mp4" for n in range(5)),
        "rejected/r.mp4",
    ]
    assert [row["video_info"][0]["data_path"] for row in found.rows] == list(found.files)[:5]
    assert found.rows[1]["meta"]["reference_paths"] == ["references/s1.wav", None]
    assert found.references == references and found.rejected == refused
    assert sharded(whole) is whole
