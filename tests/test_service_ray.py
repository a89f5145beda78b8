"""The service on Ray Serve: rewards that hang, die and raise in their own processes, batches, and nothing
left at the end."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
import soundfile

from rewards.quality.noise import NoiseEstimate
from rewards.remote import RemoteReward
from rewards.types import Clip

pytestmark = pytest.mark.slow
TOKEN = "a-token-of-the-tests-0123456789"
TEMPER = "service_rewards:Temper"
PORT = 8177


def serve(folder: Path, ray: str, port: int, *arguments: str) -> subprocess.Popen:
    """`nava serve rewards` with everything it writes in `folder`."""
    (folder / "token").write_text(TOKEN)
    tests = Path(__file__).parent
    environment = {
        **os.environ,
        "PYTHONPATH": f"{tests}:{tests.parent}",
        "RAY_TMPDIR": ray,
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "experiments.cli",
            "serve",
            "rewards",
            "--port",
            str(port),
            "--token-file",
            "token",
            *arguments,
        ],
        cwd=folder,
        env=environment,
        stdout=(folder / "out.txt").open("w"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def wait_for(condition, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.1)
    return False


@pytest.fixture(scope="module")
def ray():
    """Ray's own folder: its sockets need a short name."""
    with tempfile.TemporaryDirectory(prefix="r", ignore_cleanup_errors=True) as folder:
        yield folder


@pytest.fixture(scope="module")
def world(tmp_path_factory, ray):
    folder = tmp_path_factory.mktemp("service")
    sound = 0.1 * np.random.default_rng(0).standard_normal(16_000)
    soundfile.write(folder / "a.wav", sound.astype(np.float32), 16_000)
    limits = ("--limit", "reward_seconds=3", "--limit", "wait_seconds=60", "--limit", "body_seconds=2")
    process = serve(folder, ray, PORT, "--rewards", TEMPER, "snr_estimate_db", "--root", str(folder), *limits)
    assert wait_for(lambda: "Try:" in (folder / "out.txt").read_text() or process.poll() is not None, 120), (
        folder / "out.txt"
    ).read_text()
    assert process.poll() is None, (folder / "out.txt").read_text()
    yield folder, process
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def ask(name: str, **changes) -> dict:
    body = json.dumps({"clip": "a.wav", "name": name} | changes).encode()
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"http://127.0.0.1:{PORT}/v1/score", body, headers)
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.loads(answer.read())["scores"]


def together(*names: str) -> list[dict]:
    with ThreadPoolExecutor(len(names)) as pool:
        return list(pool.map(ask, names))


BAD = {"kill": "process died", "fault": "process died", "hang": "no answer after 3 s", "raise": "of no use"}


@pytest.mark.parametrize(("bad", "said"), BAD.items())
def test_a_reward_that_fails_on_a_clip_fails_on_that_clip_alone(world, bad, said):
    before = ask("calm")[TEMPER]["value"]
    answers = together("a", bad, "b", "c")
    assert [said in answer[TEMPER]["error"] for answer in answers] == [False, True, False, False], answers
    assert all(answer[TEMPER]["value"] is not None for answer in (answers[0], *answers[2:]))
    assert all(answer["snr_estimate_db"]["value"] is not None for answer in answers)
    after = ask("calm")[TEMPER]["value"]
    assert (after == before) == (bad == "raise")  # another process, unless it only raised


def test_clips_asked_for_at_once_are_scored_together(world):
    answers = together(*[str(index) for index in range(12)])
    assert max(answer[TEMPER]["parts"]["batch"] for answer in answers) > 1
    assert len({answer["snr_estimate_db"]["value"] for answer in answers}) == 1


def test_a_large_clip_is_scored_apart_from_the_others(world):
    folder, _ = world
    gaps = np.arange(50 * 16_000) // 1_600 % 2
    sound = (0.1 * np.random.default_rng(1).standard_normal((2, len(gaps))) * gaps).astype(np.float32)
    soundfile.write(folder / "large.wav", sound.T, 16_000, subtype="FLOAT")
    ask("calm")  # the first score imports, which takes a while
    (right,) = NoiseEstimate().score([Clip(sound, 16_000)])
    with ThreadPoolExecutor(6) as pool:
        large = [pool.submit(ask, name, clip="large.wav") for name in ("a", "b", "hang")]
        small = [pool.submit(ask, name) for name in ("c", "d", "e")]
        answers, small = [one.result() for one in large], [one.result() for one in small]
    assert [answer["snr_estimate_db"]["value"] for answer in answers] == pytest.approx(
        [right.value] * 3, abs=1e-4
    )
    assert [bool(answer[TEMPER]["error"]) for answer in answers] == [False, False, True]
    assert all(answers[index][TEMPER]["parts"]["batch"] == 1 for index in (0, 1))
    assert all(answer[TEMPER]["value"] is not None for answer in small)


def test_a_reward_here_by_a_process_there(world):
    reward = RemoteReward(TEMPER, f"http://127.0.0.1:{PORT}", world[0] / "token")
    sound = 0.1 * np.random.default_rng(0).standard_normal(16_000).astype(np.float32)
    clips = [Clip(sound, 16_000, name=name) for name in ("a", "nan", "b")]
    scores = reward.score(clips)
    assert np.isnan(scores[1].value) and scores[1].reason == "asked for"
    assert scores[0].value == scores[2].value > 0


def test_a_caller_who_leaves_or_says_nothing_holds_nothing_up(world):
    import socket

    silent = [socket.create_connection(("127.0.0.1", PORT)) for _ in range(50)]
    half = socket.create_connection(("127.0.0.1", PORT))
    half.sendall(
        f"POST /v1/score HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\ncontent-type: "
        "application/json\r\n".encode()
    )
    half.sendall(b"content-length: 100\r\n\r\n{")
    half.close()
    assert ask("calm")[TEMPER]["value"] is not None
    for connection in silent:
        connection.close()


def test_a_second_service_on_the_port_is_refused(world, tmp_path, ray):
    second = serve(tmp_path, ray, PORT, "--rewards", "snr_estimate_db")
    assert second.wait(60) == 2
    said = (tmp_path / "out.txt").read_text()
    assert "take another port" in said and said.count("\n") <= 2 and "Traceback" not in said
    assert ask("calm")[TEMPER]["value"] is not None


def test_a_reward_that_cannot_be_loaded_is_one_line(tmp_path, ray):
    process = serve(tmp_path, ray, PORT + 1, "--rewards", "service_rewards:Unloadable")
    assert process.wait(120) == 2
    assert (
        "nava: service_rewards:Unloadable: cannot be loaded: FileNotFoundError: weights missing"
        in (tmp_path / "out.txt").read_text()
    )


def test_the_token_is_nowhere_and_the_end_leaves_no_process(world, ray):
    folder, process = world
    children = psutil.Process(process.pid).children(recursive=True)
    for child in [*children, psutil.Process(process.pid)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            assert TOKEN not in " ".join(child.cmdline()) and TOKEN not in json.dumps(child.environ())
    logs = [log for log in Path(ray).rglob("*") if log.is_file() and log.suffix in (".log", ".out", ".err")]
    assert logs and not any(TOKEN.encode() in log.read_bytes() for log in logs)
    assert TOKEN not in (folder / "out.txt").read_text()
    process.send_signal(signal.SIGTERM)
    assert process.wait(40) == 0, (folder / "out.txt").read_text()
    assert "stopping" in (folder / "out.txt").read_text().splitlines()
    assert wait_for(
        lambda: not any(child.is_running() and child.status() != "zombie" for child in children), 15
    )
