"""The video API end to end without Ray: answers, tokens, keys, ranges, cancellation at every stage, lost
workers, restarts, quotas."""

import io
import json
import time

import numpy as np
import pytest
import soundfile
from PIL import Image
from video_world import FakeWorker, VideoWorld, video_service, wait_until

from orchestration.generation_service.worker import WorkerLost

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
ERROR = {"message", "type", "code", "param"}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with video_service(tmp_path_factory.mktemp("service") / "videos", num_workers=2) as found:
        yield found


def error_of(answer) -> dict:
    found = answer.json()["error"]
    assert set(found) == ERROR and "\n" not in found["message"]
    return found


def test_a_clip_is_made_and_fetched_in_ranges(world: VideoWorld):
    answer = world.create("A ball.", seconds="2", seed=5)
    job = answer.json()
    assert answer.status_code == 200 and job["object"] == "video" and job["model"] == "mini"
    assert (job["seconds"], job["size"], job["seed"], job["error"]) == ("2.042", "64x64", 5, None)
    assert job["retention"]["seconds"] == 86_400 and job["retention"]["bytes"] > 0
    done = world.until(job["id"], "completed")
    assert done["progress"] == 100 and done["expires_at"] - done["completed_at"] in (86_399, 86_400)
    content = f"/v1/videos/{job['id']}/content"
    whole = world.ask("GET", content)
    assert whole.content == b"video A ball." and whole.headers["content-type"] == "video/mp4"
    part = world.ask("GET", content, headers={"range": "bytes=6-9"})
    assert (part.status_code, part.content) == (206, b"A ba")
    assert part.headers["content-range"] == "bytes 6-9/13" and part.headers["etag"] == whole.headers["etag"]
    sound = world.ask("GET", f"{content}?variant=audio")
    assert sound.content == b"audio A ball." and sound.headers["content-type"] == "audio/wav"
    assert error_of(world.ask("GET", f"{content}?variant=thumbnail"))["param"] == "variant"
    assert world.ask("GET", content, headers={"range": "bytes=99-"}).status_code == 416
    assert not list((world.folder / "work").iterdir())


def test_sound_alone_has_no_picture(world: VideoWorld):
    job = world.create("Rain.", task="T2A").json()
    assert world.until(job["id"], "completed")["size"] == ""
    content = f"/v1/videos/{job['id']}/content"
    assert world.ask("GET", content).content == b"audio Rain."
    missing = world.ask("GET", f"{content}?variant=video")
    assert missing.status_code == 404 and "made no video" in error_of(missing)["message"]


def test_jobs_of_others_are_not_there(world: VideoWorld):
    id = world.create(owner="one").json()["id"]
    world.until(id, "completed", owner="one")
    for method, path in (("GET", ""), ("GET", "/content"), ("POST", "/cancel"), ("DELETE", "")):
        answer = world.ask(method, f"/v1/videos/{id}{path}", "two")
        unknown = world.ask(method, f"/v1/videos/video_{'0' * 48}{path}", "two")
        assert answer.status_code == unknown.status_code == 404 and answer.json() == unknown.json()
    assert world.ask("GET", f"/v1/videos?after={id}", "two").status_code == 404
    assert world.ask("GET", "/v1/videos", "two").json()["data"] == []
    assert world.job(id, "one")["status"] == "completed"


def test_pages(world: VideoWorld):
    ids = [world.create(f"{number}", owner="pages").json()["id"] for number in range(5)]
    first = world.ask("GET", "/v1/videos?limit=2", "pages").json()
    assert [job["id"] for job in first["data"]] == ids[:2:-1] and first["has_more"] is True
    rest = world.ask("GET", f"/v1/videos?limit=100&after={first['last_id']}", "pages").json()
    assert [job["id"] for job in rest["data"]] == ids[2::-1] and rest["has_more"] is False
    up = world.ask("GET", f"/v1/videos?order=asc&after={ids[1]}&limit=1", "pages").json()
    assert up["first_id"] == up["last_id"] == ids[2]
    for wrong in ("limit=0", "limit=101", "limit=x", "order=up", "page=2", "limit=%C2%B2"):
        assert world.ask("GET", f"/v1/videos?{wrong}", "pages").status_code == 422


def test_a_key_makes_one_job(world: VideoWorld):
    first = world.create("Once.", owner="keys", key="k-1")
    again = world.create("Once.", owner="keys", key="k-1")
    assert first.json()["id"] == again.json()["id"] and again.headers["idempotency-replayed"] == "true"
    assert "idempotency-replayed" not in first.headers
    other = world.create("Twice.", owner="keys", key="k-1")
    assert other.status_code == 409 and error_of(other)["code"] == "idempotency_key_reused"
    assert world.create("Once.", owner="others", key="k-1").json()["id"] != first.json()["id"]
    assert world.create("Once.", owner="keys", key="a b").status_code == 422
    assert len(world.ask("GET", "/v1/videos", "keys").json()["data"]) == 1


@pytest.mark.parametrize(
    ("options", "status", "param"),
    [
        ({"json": {"prompt": "x", "steps": 0}}, 422, "steps"),
        ({"json": {"prompt": "x", "model": "sora-2"}}, 404, "model"),
        ({"content": b"{", "headers": {"content-type": "application/json"}}, 422, "request"),
        ({"content": b"x", "headers": {"content-type": "text/plain"}}, 415, None),
        ({"content": b"{" + b" " * 60_000, "headers": {"content-type": "application/json"}}, 413, "body"),
        ({"files": {"prompt": (None, b"x"), "nonsense": (None, b"y")}}, 422, "nonsense"),
        ({"files": {"prompt": (None, b"<S>a<E>"), "reference_0": b"no sound"}}, 415, None),
        ({"files": {"prompt": (None, b"x"), "input_reference": b"no picture"}}, 422, None),
    ],
)
def test_wrong_requests_are_refused_and_leave_nothing(world: VideoWorld, options, status, param):
    answer = world.ask("POST", "/v1/videos", "wrong", **options)
    assert answer.status_code == status, answer.text
    found = error_of(answer)
    assert param is None or found["param"] == param
    assert world.ask("GET", "/v1/videos", "wrong").json()["data"] == []


def wav(seconds: float) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, 0.1 * np.sin(np.arange(int(8000 * seconds))), 8000, format="WAV")
    return file.getvalue()


def test_voices_and_first_frames_are_decoded_here_and_kept_as_plain_files(world: VideoWorld):
    """A worker never sees a stranger's bytes: sounds come as 16 kHz wav, pictures upright as png."""
    picture = Image.fromarray(np.full((20, 40, 3), 200, np.uint8))
    exif = Image.Exif()
    exif[274] = 6  # turned by a quarter
    file = io.BytesIO()
    picture.save(file, "JPEG", exif=exif)
    parts = {"prompt": (None, b"A hold says <S>one<E> and <S>two<E>."), "seed": (None, b"3")}
    parts |= {"reference_1": ("v.wav", wav(0.5)), "input_reference": ("f.jpg", file.getvalue())}
    answer = world.ask("POST", "/v1/videos", "files", files=parts)
    job = answer.json()
    assert answer.status_code == 200 and job["references"] == [False, True] and job["first_frame"] is True
    inputs = world.folder / "inputs" / job["id"]
    samples, rate = soundfile.read(inputs / "reference_1.wav")
    assert rate == 16_000 and len(samples) == 8000 and inputs.stat().st_mode & 0o77 == 0
    assert Image.open(inputs / "first_frame.png").size == (20, 40)
    world.ask("DELETE", f"/v1/videos/{job['id']}", "files")
    wait_until(lambda: not inputs.exists(), "inputs go with their job")
    for voice, said in ((wav(0.0), "0 seconds"), (wav(0.05), "at least 0.1 s"), (wav(61), "at most 60 s")):
        parts = {"prompt": (None, b"<S>one<E>"), "reference_0": ("v.wav", voice)}
        refused = world.ask("POST", "/v1/videos", "files", files=parts)
        assert refused.status_code in (413, 422) and said in error_of(refused)["message"]
    assert not list((world.folder / "inputs").iterdir())


def test_models_health_and_metrics(world: VideoWorld):
    (model,) = world.ask("GET", "/v1/models").json()["data"]
    assert model["id"] == "mini" and model["adapters"] == ["look", "voice"] and model["fps"] == 24
    assert world.ask("GET", "/healthz").json() == {"status": "ok"}
    world.until(world.create("A ball.").json()["id"], "completed")
    text = world.ask("GET", "/metrics").text
    assert 'nava_video_jobs_total{status="completed"}' in text and "nava_video_batch_seconds_count" in text
    assert 'nava_video_request_seconds_bucket{le="0.1",method="GET",path="/v1/videos/{id}"}' in text
    assert "video_" + "0" not in text  # no id is a label


def test_cancellation_at_every_stage(tmp_path):
    with video_service(tmp_path / "v", num_workers=1, batch=1) as world:
        worker = world.workers[0]
        made = world.create("hold it").json()["id"]
        waits = world.create("later").json()["id"]
        running = world.until(made, "in_progress")
        assert running["progress"] in (0, 50) and world.job(waits)["queue_position"] == 0
        cancelled = world.ask("POST", f"/v1/videos/{waits}/cancel")
        assert cancelled.json()["status"] == "cancelled" and cancelled.json()["queue_position"] is None
        assert world.ask("POST", f"/v1/videos/{made}/cancel").json()["status"] == "cancelled"
        wait_until(lambda: worker.dropped, "the worker is told")
        assert world.ask("POST", f"/v1/videos/{made}/cancel").json()["status"] == "cancelled"
        assert error_of(world.ask("GET", f"/v1/videos/{made}/content"))["code"] == "not_ready"
        third = world.create("after").json()["id"]  # the worker is free again
        world.until(third, "completed")
        late = world.ask("POST", f"/v1/videos/{third}/cancel")
        assert late.status_code == 409 and error_of(late)["code"] == "already_ended"
        held = world.create("hold again").json()["id"]
        world.until(held, "in_progress")
        assert world.ask("DELETE", f"/v1/videos/{held}").json()["deleted"] is True
        assert world.ask("GET", f"/v1/videos/{held}").status_code == 404
        assert world.ask("DELETE", f"/v1/videos/{third}").status_code == 200
        wait_until(lambda: not list((world.folder / "results").iterdir()), "results go with their job")
        assert [prompts for prompts in worker.batches] == [["hold it"], ["after"], ["hold again"]]


def test_a_batch_goes_on_for_those_who_want_it(tmp_path):
    with video_service(tmp_path / "v", num_workers=1) as world:
        first = world.create("hold first").json()["id"]
        world.until(first, "in_progress")
        ids = [world.create(f"hold {number}").json()["id"] for number in range(3)]
        other_kind = world.create("short", steps=3).json()["id"]
        world.ask("POST", f"/v1/videos/{first}/cancel")
        for id in ids:
            world.until(id, "in_progress")
        world.ask("POST", f"/v1/videos/{ids[0]}/cancel")
        world.workers[0].go = True
        done = [world.until(id, "completed", "cancelled")["status"] for id in (*ids, other_kind)]
        assert done == ["cancelled", "completed", "completed", "completed"]
        assert len(world.workers[0].batches[1]) == 3 and world.workers[0].batches[2] == ["short"]
        names = sorted(path.stem for path in (world.folder / "results").glob("*.mp4"))
        assert names == sorted([*ids[1:], other_kind])


def test_one_that_kills_workers_fails_and_its_batch_mates_are_made(tmp_path):
    with video_service(tmp_path / "v", num_workers=1) as world:
        held = world.create("hold").json()["id"]
        world.until(held, "in_progress")
        killer = world.create("die").json()["id"]
        mates = [world.create(f"{number}").json()["id"] for number in range(3)]
        world.workers[0].go = True
        failed = world.until(killer, "failed", "completed")
        assert (
            failed["error"]["code"] == "worker_lost" and "2 workers were lost" in failed["error"]["message"]
        )
        for mate in mates:
            assert world.until(mate, "completed", "failed")["status"] == "completed"
        batches = world.workers[0].batches
        assert len(batches[1]) == 4 and all(len(prompts) == 1 for prompts in batches[2:])
        assert batches.count(["die"]) == 2 and world.workers[0].replaced == 3


def test_reasons_of_clips_and_of_batches(tmp_path):
    with video_service(tmp_path / "v", num_workers=1) as world:
        held = world.create("hold").json()["id"]
        world.until(held, "in_progress")
        bad, refused = world.create("bad").json()["id"], world.create("refuse").json()["id"]
        good = world.create("good").json()["id"]
        world.workers[0].go = True
        assert world.until(bad, "failed")["error"]["message"] == "latents that are NaN"
        assert world.until(refused, "failed")["error"]["message"] == "no room on the GPU"
        assert world.until(good, "completed")["attempt"] == 2
        gone = world.ask("GET", f"/v1/videos/{bad}/content")
        assert gone.status_code == 404 and "failed" in error_of(gone)["message"]


def test_a_full_disk_while_a_clip_is_written_loses_no_job(tmp_path, monkeypatch):
    monkeypatch.setattr("orchestration.generation_service.dispatch.PAUSE_S", 0.05)
    with video_service(tmp_path / "v") as world:
        done = world.until(world.create("full").json()["id"], "completed", "failed")
        assert (done["status"], done["attempt"]) == ("completed", 2)


def test_queues_are_bounded_and_say_when_to_come_again(tmp_path):
    with video_service(tmp_path / "v", batch=1, queue=3, token_queue=2) as world:
        quick = world.create("quick").json()["id"]
        world.until(quick, "completed")  # something is measured
        world.until(world.create("hold").json()["id"], "in_progress")
        waiting = [world.create(f"{number}").json() for number in range(2)]
        assert [job["queue_position"] for job in waiting] == [0, 1]
        assert all(job["estimated_wait_seconds"] is not None for job in waiting)
        own = world.create("one more")
        assert own.status_code == 429 and int(own.headers["retry-after"]) >= 1
        assert error_of(own)["code"] == "queue_full"
        assert world.create("other", owner="b").status_code == 200
        full = world.create("other", owner="c")
        assert full.status_code == 503 and error_of(full)["type"] == "server_error"
        world.workers[0].go = True
        wait_until(lambda: world.create("other", owner="c").status_code == 200, "there is room again")


def test_quotas_and_times_end_results_and_say_so(tmp_path):
    with video_service(tmp_path / "v", token_bytes=60) as world:
        ids = []
        for number in range(3):
            ids.append(world.create(f"clip {number}").json()["id"])
            world.until(ids[-1], "completed")
        wait_until(lambda: world.job(ids[0])["expired"] == "quota", "the oldest goes")
        gone = world.ask("GET", f"/v1/videos/{ids[0]}/content")
        assert gone.status_code == 410 and error_of(gone)["code"] == "expired"
        assert world.ask("GET", f"/v1/videos/{ids[2]}/content").status_code == 200
        assert world.ask("GET", "/v1/videos").json()["retention"]["held_bytes"] <= 60
        wait_until(lambda: len(list((world.folder / "results").iterdir())) == 4, "its files go")


def test_a_service_that_ended_goes_on_where_it_was(tmp_path):
    with video_service(tmp_path / "v", batch=1) as world:
        done = world.create("done").json()["id"]
        world.until(done, "completed")
        running = world.create("hold on").json()["id"]
        world.until(running, "in_progress")
        waits = world.create("later", key="k").json()["id"]
        cancelled = world.create("never").json()["id"]
        world.ask("POST", f"/v1/videos/{cancelled}/cancel")
    (tmp_path / "v" / "work" / "left-1.mp4").write_bytes(b"half")
    (tmp_path / "v" / "results" / "video_stranger.mp4").write_bytes(b"of nobody")
    with video_service(tmp_path / "v", batch=1) as world:
        world.workers[0].go = True
        assert world.until(running, "completed")["attempt"] == 2
        assert world.until(waits, "completed")["attempt"] == 1
        assert world.job(cancelled)["status"] == "cancelled" and world.job(done)["attempt"] == 1
        assert world.create("later", key="k").json()["id"] == waits
        assert world.ask("GET", f"/v1/videos/{done}/content").content == b"video done"
        names = {path.stem for path in (tmp_path / "v" / "results").iterdir()}
        assert names == {done, running, waits} and not list((tmp_path / "v" / "work").iterdir())


def test_a_drain_finishes_what_runs_and_keeps_what_waits(tmp_path):
    with video_service(tmp_path / "v", batch=1, drain_seconds=20) as world:
        running = world.create("hold").json()["id"]
        world.until(running, "in_progress")
        waits = world.create("later").json()["id"]
        service = world.client.app.app.state.videos  # type: ignore[attr-defined]
        service.dispatcher.draining = True
        refused = world.create("too late")
        assert refused.status_code == 503 and error_of(refused)["code"] == "draining"
        world.workers[0].go = True
        answer = world.ask("POST", "/operator").json()
        assert answer["drained"] is True and answer["jobs"] == {"completed": 1, "queued": 1}
        assert world.job(waits)["status"] == "queued" and world.ask("GET", "/healthz").status_code == 200


def test_a_worker_that_cannot_load_is_told_to_the_operator(tmp_path, monkeypatch):
    monkeypatch.setattr("orchestration.generation_service.dispatch.PAUSE_S", 0.05)
    with video_service(tmp_path / "v") as world:
        world.workers[0].unready = "model: damaged"
        world.until(world.create("a").json()["id"], "completed")  # it was ready before
        wait_until(lambda: "damaged" in world.ask("GET", "/operator").json()["cannot_load"], "told")
        down = world.ask("GET", "/healthz")
        assert down.status_code == 503 and "damaged" in error_of(down)["message"]
        world.workers[0].unready = ""
        wait_until(lambda: world.ask("GET", "/healthz").status_code == 200, "well again")


def test_without_the_fronts_token_there_is_nothing(world: VideoWorld):
    for path in ("/v1/videos", "/operator", "/metrics", "/v1/models"):
        answer = world.client.get(path, headers={"authorization": "Bearer wrong"})
        assert answer.status_code == 401 and error_of(answer)["type"] == "authentication_error"


def test_every_job_of_a_crowd_ends_once(tmp_path):
    """60 jobs of 3 tokens over 3 workers that are lost now and then."""

    class Fragile(FakeWorker):
        async def make(self, tasks):
            if len(self.batches) % 5 == 3:
                self.batches.append([])
                raise WorkerLost("its process died")
            return await super().make(tasks)

    with video_service(tmp_path / "v", num_workers=3, batch=4) as world:
        for place, worker in enumerate(world.workers):
            worker.__class__ = Fragile
            worker.batches = [[]] * place
        ids = [(world.create(f"{n}", owner="abc"[n % 3]).json()["id"], "abc"[n % 3]) for n in range(60)]
        ends = [world.until(id, "completed", "failed", owner=owner)["status"] for id, owner in ids]
        rows = world.client.app.app.state.videos.store.database.read.execute(  # type: ignore[attr-defined]
            "SELECT status, ends, count(*) FROM jobs GROUP BY status, ends"
        ).fetchall()
        assert {row[1] for row in rows} == {1} and sum(row[2] for row in rows) == 60
        assert ends.count("completed") >= 55
        files = {path.stem for path in (tmp_path / "v" / "results").glob("*.mp4")}
        assert files == {id for (id, _), status in zip(ids, ends, strict=True) if status == "completed"}


def test_the_database_is_for_its_owner_alone(world: VideoWorld):
    for name in ("", "jobs.db", "results", "inputs"):
        assert (world.folder / name).stat().st_mode & 0o77 == 0, name
    assert json.loads(json.dumps(world.job(world.create("x").json()["id"])))["created_at"] <= time.time()
