"""A service whose model is another one after a restart: jobs keep theirs, and are made by no other."""

import dataclasses
import sqlite3

import pytest
from video_world import CONFIG, SMALL, offer, video_service

from orchestration.generation_service.app import AppConfig, check_waiting
from orchestration.generation_service.served_by import ServedBy

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
BASE = dataclasses.replace(offer(), name="base", facts={"checkpoint_id": "b1"}, adapter_ids={"look": "a1"})
TUNED = dataclasses.replace(BASE, name="tuned", facts={"checkpoint_id": "t2"})
VERSION_1 = """
number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, owner TEXT NOT NULL, status TEXT NOT NULL,
wanted TEXT NOT NULL, kind TEXT NOT NULL, cost REAL NOT NULL, key TEXT, digest TEXT NOT NULL,
created_at REAL NOT NULL, started_at REAL NOT NULL, completed_at REAL NOT NULL, expires_at REAL NOT NULL,
attempt INTEGER NOT NULL, suspect INTEGER NOT NULL, losses INTEGER NOT NULL, error_code TEXT NOT NULL,
error_message TEXT NOT NULL, video_bytes INTEGER NOT NULL, audio_bytes INTEGER NOT NULL,
expired TEXT NOT NULL, ends INTEGER NOT NULL, UNIQUE (owner, key)"""


def left_behind(folder, *prompts, **fields) -> list[str]:
    """Ids of a clip that `base` made, and of one that waits for each prompt; it was making another."""
    with video_service(folder, batch=1, served=BASE) as world:
        done = world.create("done").json()["id"]
        world.until(done, "completed")
        held = world.create("hold", owner="other").json()["id"]
        world.until(held, "in_progress", owner="other")
        waits = [world.create(prompt, **fields).json()["id"] for prompt in prompts]
    return [done, *waits]


def earlier_version(folder) -> None:
    """The jobs of a folder in the table that version 1 had."""
    with sqlite3.connect(folder / "jobs.db") as connection:
        names = [row[1] for row in connection.execute("PRAGMA table_info(jobs)") if row[1] != "served"]
        connection.execute("ALTER TABLE jobs RENAME TO later")
        connection.execute(f"CREATE TABLE jobs ({VERSION_1})")
        connection.execute(f"INSERT INTO jobs SELECT {', '.join(names)} FROM later")
        connection.executescript("DROP TABLE later; PRAGMA user_version = 1")
    connection.close()


def test_jobs_of_another_model_fail_with_that_reason_and_finished_ones_keep_its_name(tmp_path):
    done, waits = left_behind(tmp_path / "v", "later")
    refused = AppConfig(offer=TUNED, folder=tmp_path / "v", limits=SMALL)
    with pytest.raises(ValueError, match=r"2 of 2 jobs that wait .*'base' \(checkpoint b1\)") as told:
        check_waiting(refused)
    assert "--fail-waiting" in str(told.value) and "\n" not in str(told.value)
    check_waiting(dataclasses.replace(refused, offer=dataclasses.replace(BASE, name="renamed")))
    with video_service(tmp_path / "v", served=TUNED) as world:
        job = world.job(waits)
        assert (job["status"], job["error"]["code"], job["model"]) == ("failed", "model_gone", "base")
        assert "'tuned' (checkpoint t2)" in job["error"]["message"] and world.workers[0].batches == []
        assert (world.job(done)["model"], world.job(done)["checkpoint_id"]) == ("base", "b1")
        assert world.ask("GET", f"/v1/videos/{done}/content").content == b"video done"
        new = world.until(world.create("new").json()["id"], "completed")
        assert (new["model"], new["checkpoint_id"], new["adapter_ids"]) == ("tuned", "t2", {})


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({}, ""),
        ({"name": "renamed"}, ""),
        ({"adapters": ("voice",)}, "adapter 'look' is not served any more"),
        ({"adapter_ids": {"look": "a2"}}, "adapter 'look' of id a1, served now is a2"),
        ({"config": dataclasses.replace(CONFIG, fps=12.0)}, "24 frames a second"),
        ({"config": dataclasses.replace(CONFIG, weights="model")}, "ema weights"),
    ],
)
def test_what_a_waiting_job_was_accepted_for_is_compared(tmp_path, changes, found):
    _, waits = left_behind(tmp_path / "v", "later", adapters="look")
    with video_service(tmp_path / "v", served=dataclasses.replace(BASE, **changes)) as world:
        world.workers[0].go = True
        job = world.until(waits, "failed" if found else "completed")
        assert job["adapter_ids"] == {"look": "a1"} and job["seconds"] == "1.042" and job["fps"] == 24
        assert found in (job["error"] or {"message": ""})["message"]


def test_a_store_of_an_earlier_version_is_opened_and_names_no_model_that_it_does_not_know(tmp_path):
    done, waits, gone = left_behind(tmp_path / "v", "later", "with adapter")
    earlier_version(tmp_path / "v")
    with sqlite3.connect(tmp_path / "v" / "jobs.db") as connection:
        given = (
            "UPDATE jobs SET wanted = json_set(wanted, '$.adapters', json('{\"lost\": 1.0}')) WHERE id = ?"
        )
        connection.execute(given, (gone,))
    connection.close()
    with video_service(tmp_path / "v", served=TUNED) as world:
        world.workers[0].go = True
        assert world.job(done)["model"] == "unknown" and world.job(done)["checkpoint_id"] is None
        assert world.until(waits, "completed")["model"] == "tuned"  # what makes it is known
        assert "adapter 'lost'" in world.until(gone, "failed")["error"]["message"]
    with video_service(tmp_path / "v", served=TUNED) as world:
        assert world.job(done)["model"] == "unknown" and world.job(waits)["model"] == "tuned"


def test_what_a_job_keeps_comes_back_as_it_was():
    one = ServedBy(name="base", checkpoint_id="b1", weights="ema", adapters={"look": "a1"}, fps=23.976)
    assert ServedBy.from_json(one.to_json()) == one and ServedBy.from_json("") is None
