"""The client of the generation service over a real socket."""

import json
import threading

import pytest
from test_service_client import listening
from video_world import SMALL, TOKEN, FakeWorker, offer, wait_until

import experiments.generation_client as client_module
from experiments.generation_client import GenerationServer, Refused
from orchestration.generation_service.app import AppConfig, build_video_app
from orchestration.service.access import digest_of

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class LongClips(FakeWorker):
    """Their content is larger than what one answer may have."""

    def _made(self, task):
        made = super()._made(task)
        for path in made.files.values():
            path.write_bytes(path.read_bytes() * 100_000)
        return made


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    workers = [LongClips()]
    config = AppConfig(offer=offer(), folder=tmp_path_factory.mktemp("c") / "v", limits=SMALL, batch=1)
    with listening(build_video_app(config, digest_of(TOKEN), lambda: workers)) as url:
        yield GenerationServer(url, TOKEN, num_tries=3, backoff_s=0.05), workers[0]


def test_a_clip_from_its_prompt_to_its_file(world, tmp_path):
    server, _ = world
    seen = []
    job = server.create("A ball.", seconds=1, seed=3, guidance={"text_audio": 2})
    done = server.wait(job["id"], seen.append, 60)
    assert done["status"] == "completed" and done["seed"] == 3 and seen[-1] == done
    path = server.fetch(job["id"], tmp_path / "a.mp4")
    assert path.read_bytes() == b"video A ball." * 100_000  # in pieces
    assert server.fetch(job["id"], tmp_path / "a.wav", "audio").read_bytes()[:5] == b"audio"
    assert [one["id"] for one in server.list(limit=1)["data"]] == [job["id"]]
    assert server.models()[0]["id"] == "mini"
    assert server.delete(job["id"])["deleted"] is True
    with pytest.raises(Refused, match="no such job") as gone:
        server.poll(job["id"])
    assert gone.value.status == 404


def test_files_travel(world, tmp_path):
    import numpy as np
    import soundfile

    server, _ = world
    soundfile.write(tmp_path / "v.wav", 0.1 * np.ones(8000), 16_000)
    prompt = "Two: <S>one<E> and <S>two<E>."
    job = server.create(prompt, references=[None, tmp_path / "v.wav"], negative_prompt=None)
    assert job["references"] == [False, True] and job["negative_prompt"] is None
    server.cancel(job["id"]) if server.poll(job["id"])["status"] == "queued" else None


def test_refusals_carry_openais_fields(world):
    server, _ = world
    with pytest.raises(Refused, match="steps: 0; from 1 to 200") as refused:
        server.create("A ball.", steps=0)
    assert (refused.value.status, refused.value.param) == (422, "steps")
    with pytest.raises(Refused, match="token: missing or wrong"):
        GenerationServer(server.url, "0" * 43, num_tries=1).models()
    assert TOKEN not in repr(server)


def test_a_lost_answer_makes_no_second_job(world, monkeypatch):
    server, _ = world
    real, lost = client_module.exchange, [0]

    def losing(*arguments, **options):
        answer = real(*arguments, **options)
        if options["method"] == "POST" and not lost[0]:
            lost[0] = 1
            raise client_module.NoAnswer("the connection ended")
        return answer

    before = {one["id"] for one in server.list(limit=100)["data"]}
    monkeypatch.setattr(client_module, "exchange", losing)
    job = server.create("Once.")
    after = {one["id"] for one in server.list(limit=100)["data"]}
    assert lost == [1] and after - before == {job["id"]}


def test_cancel_and_patience(world):
    server, worker = world
    job = server.create("hold")
    wait_until(lambda: server.poll(job["id"])["status"] == "in_progress", "begun")
    with pytest.raises(TimeoutError, match=r"in_progress after 0\.3 s"):
        server.wait(job["id"], timeout_s=0.3)
    timer = threading.Timer(0.2, lambda: server.cancel(job["id"]))
    timer.start()
    assert server.wait(job["id"], timeout_s=30)["status"] == "cancelled"
    timer.join()
    assert worker.dropped


def test_what_is_no_service_is_one_line(tmp_path):
    with pytest.raises(ConnectionError, match="check that the service is up"):
        GenerationServer("http://127.0.0.1:9", TOKEN, num_tries=1, timeout_s=2).models()
    with pytest.raises(ValueError, match="is not http"):
        GenerationServer("localhost:8124", TOKEN)

    async def other(scope, receive, send):
        content = json.dumps([1]).encode()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": content})

    with listening(other) as url, pytest.raises(ConnectionError, match="is it the service"):
        GenerationServer(url, TOKEN).models()
