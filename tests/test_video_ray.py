"""`nava serve generate` whole: workers and the server killed, nothing accepted is lost; a drain."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
from generation_load import WORKER
from video_model import shared_model

from experiments.generation_client import GenerationServer, Refused
from pretrain.media.read import read_media

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]  # it starts a Ray five times
TOKEN = "a-token-of-the-tests-0123456789"
PORT, START_S = 8187, 1800


@pytest.fixture(scope="module")
def ray():
    """Ray's own folder: its sockets need a short name."""
    with tempfile.TemporaryDirectory(prefix="r", ignore_cleanup_errors=True) as folder:
        yield folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return shared_model(tmp_path_factory.getbasetemp())


def serve(folder: Path, made: Path, ray: str, *arguments: str) -> subprocess.Popen:
    """`nava serve generate` with everything it writes in `folder`, ready."""
    (folder / "token").write_text(TOKEN)
    tests = Path(__file__).parent
    environment = {
        **os.environ,
        "PYTHONPATH": f"{tests}:{tests.parent}",
        "RAY_TMPDIR": ray,
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "experiments.cli", "serve", "generate", "--port", str(PORT)]
    command += ["--model", str(made / "model"), "--codec", str(made / "codec"), "--token-file", "token"]
    command += ["--set", "generate.sampler.steps=4", "--set", "generate.bf16=false"]
    command += ["--threads", "1", "--niceness", "0", *arguments]
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=(folder / "out.txt").open("w"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    ends = time.monotonic() + START_S
    while "Try:" not in (folder / "out.txt").read_text() and process.poll() is None:
        assert time.monotonic() < ends, (folder / "out.txt").read_text()
        time.sleep(0.2)
    return process


def server() -> GenerationServer:
    return GenerationServer(f"http://127.0.0.1:{PORT}", TOKEN, num_tries=8)


def end(process: subprocess.Popen) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        process.wait(120)


def workers_of(process: subprocess.Popen) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if " ".join(child.cmdline()).startswith(WORKER):
                found.append(child)
    return found


def test_from_a_request_to_a_clip_and_through_kills(tmp_path, made, ray):
    adapter = ("--adapter", f"look={made / 'adapter'}")
    process = serve(tmp_path, made, ray, *adapter)
    assert process.poll() is None, (tmp_path / "out.txt").read_text()
    here = server()
    try:
        job = here.create(
            "Says <S>zero<E>.", references=[made / "voice.wav"], seconds=1, seed=4, adapters="look"
        )
        done = here.wait(job["id"], timeout_s=300)
        assert done["status"] == "completed", done
        clip = read_media(here.fetch(job["id"], tmp_path / "a.mp4"))
        assert clip.frames is not None and clip.frames.shape == (25, 64, 64, 3)
        with pytest.raises(Refused, match="adapters: 'other' is not served"):
            here.create("A ball.", adapters="other")
        # a worker is killed while it makes a clip
        long = here.create("A ball.", steps=200)
        while here.poll(long["id"])["status"] == "queued":
            time.sleep(0.1)
        workers_of(process)[0].kill()
        again = here.wait(long["id"], timeout_s=600)
        assert (again["status"], again["attempt"]) == ("completed", 2), again
        # the server is killed with one job running and others waiting
        ids = [here.create(f"A ball {number}.", steps=150 + number)["id"] for number in range(3)]
        while here.poll(ids[0])["status"] == "queued":
            time.sleep(0.1)
        process.kill()
        process.wait()
        process = serve(tmp_path, made, ray, *adapter)
        ends = [here.wait(id, timeout_s=600)["status"] for id in (*ids, job["id"])]
        assert ends == ["completed"] * 4
        # told to end, it finishes what it makes and keeps what waits
        running, *waiting = [
            here.create(f"A ball {number}.", steps=100 + number)["id"] for number in range(3)
        ]
        while here.poll(running)["status"] == "queued":
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(300) == 0
        said = (tmp_path / "out.txt").read_text()
        assert "stopped; 2 jobs wait for the next start" in said and TOKEN not in said
        process = serve(tmp_path, made, ray, *adapter)
        assert here.poll(running)["status"] == "completed"
        assert [here.wait(id, timeout_s=600)["attempt"] for id in waiting] == [1, 1]
        lines = [json.loads(line) for line in (tmp_path / "out" / "videos" / "audit.jsonl").open()]
        assert {line["path"] for line in lines} >= {
            "/v1/videos",
            "/v1/videos/{id}",
            "/v1/videos/{id}/content",
        }
    finally:
        end(process)


def test_a_model_that_cannot_be_loaded_is_one_line(tmp_path, made, ray):
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in (made / "model").iterdir():
        content = path.read_bytes()
        (broken / path.name).write_bytes(content if path.suffix == ".json" else content[: len(content) // 2])
    process = serve(tmp_path, made, ray, "--model", str(broken))
    assert process.wait(120) == 2
    said = (tmp_path / "out.txt").read_text()
    assert "nava: " in said and "Traceback" not in said, said
