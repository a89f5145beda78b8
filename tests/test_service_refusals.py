"""The service refuses what it must, with a status and a reason, and goes on."""

import dataclasses
import io
import json
import os
import signal
import time
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import numpy as np
import pytest
import soundfile
from service_attacks import Attack, attacks, mp4, outside_link
from service_world import SMALL, TOKEN, service

from orchestration.service import decode_worker
from orchestration.service.decoders import _killed_after, _Process


def wav(seconds: float = 1.0) -> bytes:
    noise = 0.1 * np.random.default_rng(0).standard_normal(int(16_000 * seconds))
    with io.BytesIO() as file:
        soundfile.write(file, noise.astype(np.float32), 16_000, format="WAV", subtype="FLOAT")
        return file.getvalue()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("clips")
    (root / "a.wav").write_bytes(wav())
    (root / "sub").mkdir()
    (root / "sub" / "a.mp4").write_bytes(mp4(24, 32, 32))
    (root / "inside.mp4").symlink_to(root / "sub" / "a.mp4")
    (root / "elsewhere").symlink_to("/etc")
    with service(root, "snr_estimate_db") as (client, scoring):
        yield client, scoring, root


def at_once(attack: Attack) -> bool:
    """Not about the speed of a socket, which a client in this process does not have."""
    return not attack.pause_s and "content-length" not in attack.headers


ATTACKS = [
    a for a in attacks(SMALL.body_bytes, SMALL.json_bytes, SMALL.body_seconds, "outside.mp4") if at_once(a)
]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_refused_with_its_reason(world, attack):
    client, scoring, root = world
    outside_link(root)
    scored = len(scoring.clips)
    token = {} if attack.token is None else {"authorization": f"Bearer {attack.token}"}
    pieces = (attack.body[at : at + 65_536] for at in range(0, len(attack.body), 65_536))
    answer = client.post(
        "/v1/score", content=pieces if attack.chunked else attack.body, headers={**attack.headers, **token}
    )
    assert answer.status_code in attack.status, answer.text
    assert attack.reason in answer.json()["reason"] and "\n" not in answer.json()["reason"]
    assert answer.json()["fault"] in ("clip", "request")
    assert TOKEN not in answer.text and str(root) not in answer.text and "/tmp" not in answer.text
    assert len(scoring.clips) == scored


def test_nothing_is_left_of_refused_requests_and_good_ones_are_answered(world):
    client, *_ = world
    for attack in ATTACKS[:3]:
        client.post("/v1/score", content=attack.body, headers=dict(attack.headers))
    answer = client.post(
        "/v1/score", json={"clip": "a.wav", "rewards": ["snr_estimate_db", "broken", "judge"]}
    )
    assert answer.status_code == 200
    scores = answer.json()["scores"]
    assert scores["snr_estimate_db"]["value"] is not None and not scores["snr_estimate_db"]["error"]
    assert scores["broken"] == {
        "value": None,
        "parts": {},
        "reason": "",
        "error": "its process died",
        "again": False,
        "text": "",
        "seconds": 0.0,
    }
    assert scores["judge"]["parts"] == {"inf": None} and scores["judge"]["text"] == "h?i"
    lines = client.get("/metrics").text.splitlines()
    assert 'nava_held_bytes{kind="uploads"} 0.0' in lines and 'nava_held_bytes{kind="decoded"} 0.0' in lines
    assert "nava_requests_running 0.0" in lines
    assert 'nava_rewards_total{outcome="failed",reward="broken"} 1.0' in lines


@pytest.mark.parametrize("name", ["inside.mp4", "sub/a.mp4", "{root}/sub/a.mp4"])
def test_real_places_under_a_root_are_taken(world, name):
    client, scoring, root = world
    answer = client.post("/v1/score", json={"clip": name.format(root=root), "rewards": ["judge"]})
    assert answer.status_code == 200, answer.text
    assert scoring.clips[-1].frames.shape == (24, 32, 32, 3) and scoring.clips[-1].waveform is None


@pytest.mark.parametrize("name", ["elsewhere/hostname", "elsewhere/no_such_file", "/etc/no_such_file"])
def test_what_is_outside_is_refused_alike_whether_there_or_not(world, name):
    client, *_ = world
    answer = client.post("/v1/score", json={"clip": name})
    assert (answer.status_code, answer.json()["reason"]) == (403, "clip: not under an allowed folder")


def test_all_but_health_needs_the_token(world):
    client, scoring, _ = world
    for path in ("/v1/rewards", "/metrics", "/openapi.json", "/no_such_path", "/v1/score"):
        for header in (
            "",
            "Bearer",
            f"Bearer {TOKEN}x",
            f"Basic {TOKEN}",
            f"Bearer {TOKEN[:-1]}",
            "Bearer \xff",
        ):
            assert client.get(path, headers={"authorization": header.encode("latin-1")}).status_code == 401
    assert client.get("/healthz", headers={"authorization": ""}).json() == {"status": "ok"}
    scoring.wrong = "sync_mini: no answer"
    assert client.get("/healthz").status_code == 503
    scoring.wrong = ""
    assert client.get("/no_such_path").json() == {"reason": "Not Found", "fault": "request"}
    assert client.get("/v1/score").status_code == 405
    assert "multipart/form-data" in json.dumps(client.get("/openapi.json").json()["paths"]["/v1/score"])


def test_a_full_service_says_when_to_come_again(tmp_path):
    from dataclasses import replace

    with service(tmp_path, limits=replace(SMALL, requests=1)) as (client, _):
        gate: Any = client.app
        gate.running = 1
        answer = client.post("/v1/score", json={"clip": "a.wav"})
        assert (
            answer.status_code == 503
            and int(answer.headers["retry-after"]) > 0
            and answer.json()["fault"] == "service"
        )


def test_a_decoder_that_dies_or_hangs_is_replaced(world, monkeypatch):
    client, *_ = world
    decoders = client.app.app.state.service.decoders

    def signalled(number: int) -> None:
        process = decoders._idle.get()
        os.killpg(process._process.pid, number)
        decoders._idle.put(process)

    asked = {"clip": "a.wav", "rewards": ["judge"]}
    signalled(signal.SIGKILL)
    assert client.post("/v1/score", json=asked).status_code == 200
    monkeypatch.setattr(decoders, "limits", dataclasses.replace(decoders.limits, decode_seconds=0.01))
    signalled(signal.SIGSTOP)  # as one that never comes back
    answer = client.post("/v1/score", json=asked)
    assert answer.status_code == 422 and "takes more than" in answer.json()["reason"]
    monkeypatch.undo()
    assert client.post("/v1/score", json=asked).status_code == 200
    monkeypatch.setattr(_Process, "ask", lambda *_: (_ for _ in ()).throw(EOFError))
    answer = client.post("/v1/score", json=asked)
    assert answer.status_code == 422 and "died" in answer.json()["reason"]
    assert decoders.bytes.held == 0


def test_a_title_that_is_not_utf8_is_no_fault(world):
    client, _, root = world
    clip = mp4(24, 32, 32)
    assert clip.count(b"Lavf") == 1  # in the tag that says what wrote it
    (root / "latin.mp4").write_bytes(clip.replace(b"Lavf", b"L\xe4vf"))
    answer = client.post("/v1/score", json={"clip": "latin.mp4", "rewards": ["judge"]})
    assert answer.status_code == 200, answer.text


def test_a_file_nobody_thought_of_costs_no_process(tmp_path, monkeypatch):
    def surprising(*_: object) -> None:
        raise KeyError("?")

    read, write = os.pipe()
    monkeypatch.setattr(decode_worker, "decode_job", surprising)
    if not (child := os.fork()):
        decode_worker._answer(
            {"limits": vars(SMALL), "job": {"clip": "x"}, "roots": []}, os.fdopen(write, "wb")
        )
    os.close(write)
    with os.fdopen(read, "rb") as answer:
        assert decode_worker.read_message(answer) == {"refusal": [422, ANY, "clip"]}
    assert os.waitpid(child, 0)[1] == 0


def test_a_kill_at_the_moment_of_the_answer_is_known_of():
    class Slow(_Process):
        def __init__(self) -> None:
            self.killed = False

        def kill(self) -> None:
            time.sleep(0.2)  # as long as a busy machine may keep the thread
            self.killed = True

    process = Slow()
    with _killed_after(0.01, process):
        time.sleep(0.05)
    assert process.killed


def test_a_file_swapped_after_its_check_is_not_read(tmp_path):
    from orchestration.service.limits import Refusal
    from orchestration.service.paths import open_checked, real_path

    (tmp_path / "a.mp4").write_bytes(b"x")
    found = real_path("a.mp4", [tmp_path.resolve()], "clip")
    (tmp_path / "a.mp4").unlink()
    (tmp_path / "a.mp4").symlink_to("/etc/hostname")
    with pytest.raises(Refusal):
        open_checked(found, [tmp_path.resolve()])
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "hostname").write_bytes(b"x")
    found = real_path("folder/hostname", [tmp_path.resolve()], "clip")
    (tmp_path / "folder" / "hostname").unlink()
    (tmp_path / "folder").rmdir()
    (tmp_path / "folder").symlink_to("/etc")
    with pytest.raises(Refusal, match="allowed folder"):
        open_checked(found, [tmp_path.resolve()])


def test_roots_are_folders_and_not_everything(tmp_path):
    from orchestration.service.paths import allowed_roots

    with pytest.raises(ValueError, match="every file"):
        allowed_roots([Path("/")])
    with pytest.raises(ValueError, match="no such folder"):
        allowed_roots([tmp_path / "none"])
