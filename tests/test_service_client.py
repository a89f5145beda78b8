"""The client over a real socket: the clip that is scored is the one that was sent, and what goes wrong is
said."""

import socket
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest
import uvicorn
from service_world import SMALL, TOKEN, LocalScoring

from orchestration.service.app import build_app
from orchestration.service.gate import digest_of
from rewards.catalog import CATALOG, check_weights, open_rewards
from rewards.remote import RemoteReward
from rewards.types import Clip

RNG = np.random.default_rng(0)


@contextmanager
def listening(app):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    scoring = LocalScoring("snr_estimate_db", "lip_loudness_correlation")
    app = build_app(scoring, [], SMALL, digest_of(TOKEN))
    with listening(app) as url:
        yield url, scoring, app


@pytest.fixture(autouse=True)
def token(monkeypatch):
    monkeypatch.setenv("NAVA_API_TOKEN", TOKEN)


def clip(**changes) -> Clip:
    sound = (0.2 * RNG.standard_normal(24_001)).astype(np.float32)
    picture = RNG.integers(0, 256, (25, 34, 30, 3), dtype=np.uint8)
    given = {"waveform": sound, "sample_rate_hz": 22_050, "frames": picture, "fps": 25.0, "name": "a/b"}
    return Clip(**(given | changes))


def same(one: np.ndarray | None, other: np.ndarray | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.dtype == other.dtype and np.array_equal(one, other)


def test_the_clip_arrives_bit_for_bit(world):
    url, scoring, _ = world
    sent = clip(
        waveform=(1.5 * RNG.standard_normal((2, 24_001))).astype(np.float32),
        prompt="x <S>one<E> <S>two<E>",
        spans=("one", "two"),
        references=(None, RNG.standard_normal(999).astype(np.float32)),
        voices=("a", "ü"),
        mouth_boxes=((1, 2, 20, 30),),
        face_boxes=((0, 0, 30, 34),),
        span_times=((0.1, 0.5),),
        first_frame=RNG.integers(0, 256, (9, 11, 3), dtype=np.uint8),
        reference_sound=RNG.standard_normal(500).astype(np.float32),
        fps=24000 / 1001,
    )
    (score,) = RemoteReward("judge", url, measure_only=True).score([sent])
    assert score.value == 0.25 and np.isnan(score.parts["inf"])
    got = scoring.clips[-1]
    for name in ("waveform", "frames", "first_frame", "reference_sound"):
        assert same(getattr(got, name), getattr(sent, name)), name
    assert len(got.references) == 2 and all(
        same(a, b) for a, b in zip(got.references, sent.references, strict=True)
    )
    for name in (
        "sample_rate_hz",
        "prompt",
        "spans",
        "voices",
        "name",
        "mouth_boxes",
        "face_boxes",
        "span_times",
    ):
        assert getattr(got, name) == getattr(sent, name), name
    assert got.fps == pytest.approx(sent.fps, rel=1e-9)


def test_scores_are_those_of_the_reward_here(world):
    url, *_ = world
    clips = [
        clip(mouth_boxes=((2, 2, 30, 30),)),
        clip(waveform=None),
        clip(waveform=np.zeros(16_000, np.float32), frames=None),
    ]
    names = ("snr_estimate_db", "lip_loudness_correlation")
    with open_rewards(names, {}) as rewards:
        for name, reward in zip(names, rewards, strict=True):
            here, there = reward.score(clips), RemoteReward(name, url).score(clips)
            for a, b in zip(here, there, strict=True):
                assert (b.value, b.reason, dict(b.parts)) == (
                    pytest.approx(a.value, nan_ok=True, abs=0),
                    a.reason,
                    dict(a.parts),
                )


def test_unscorable_is_nan_and_a_failure_raises(world):
    url, *_ = world
    too_long = clip(waveform=np.ones(61 * 8000, np.float32) * 0.1, sample_rate_hz=8000, frames=None)
    neither = clip(waveform=None, frames=None)
    holes = clip(waveform=np.full(16_000, np.nan, np.float32), frames=None)
    scores = RemoteReward("snr_estimate_db", url).score([too_long, neither, holes])
    assert all(np.isnan(score.value) for score in scores)
    assert [
        "at most 60 s" in scores[0].reason,
        "neither" in scores[1].reason,
        "not finite" in scores[2].reason,
    ] == [True] * 3
    with pytest.raises(ConnectionError, match="reward broken failed there: its process died"):
        RemoteReward("broken", url).score([clip()])


def test_what_a_served_reward_is_for_is_kept(world):
    url, *_ = world
    with pytest.raises(ValueError, match="a judge"):
        RemoteReward("judge", url)
    with pytest.raises(ValueError, match="lower is better"):
        RemoteReward("errors", url)
    assert RemoteReward("errors", url, turned=True).score([clip()])[0].value == -0.25
    with pytest.raises(ValueError, match="did you mean 'snr_estimate_db'"):
        RemoteReward("snr_estimate", url)
    check_weights({"remote": 1.0})
    with pytest.raises(ValueError, match="judge"):
        check_weights({"remote_judge": 1.0})


def test_it_is_a_reward_of_the_catalog_and_a_plug_in(world):
    url, *_ = world
    names = (
        "remote",
        "remote_judge",
        "rewards.remote:snr_estimate_db",
        "rewards.remote:lip_loudness_correlation",
    )
    options = {
        "remote": {"reward": "snr_estimate_db", "url": url},
        "remote_judge": {"reward": "judge", "url": url},
        names[2]: {"url": url, "name": "one"},
        names[3]: {"url": url},
    }
    with open_rewards(names, options) as rewards:
        assert [reward.name for reward in rewards] == [
            "remote",
            "remote_judge",
            "one",
            "remote_lip_loudness_correlation",
        ]
        sent = [clip(mouth_boxes=((2, 2, 30, 30),))]
        values = [reward.score(sent)[0].value for reward in rewards]
    assert values[0] == values[2] and values[1] == 0.25
    assert CATALOG["remote_judge"].judge


@pytest.mark.parametrize("token", ["x" * 40, ""])
def test_a_wrong_token_is_told_without_it(world, monkeypatch, token):
    url, *_ = world
    monkeypatch.setenv("NAVA_API_TOKEN", token)
    with pytest.raises((ConnectionError, ValueError), match="token") as refused:
        RemoteReward("snr_estimate_db", url)
    assert not token or token not in str(refused.value)


def test_a_full_service_is_asked_again(world):
    url, _, app = world
    reward = RemoteReward("snr_estimate_db", url, num_tries=2)
    app.running = SMALL.requests
    refused = app.metrics.requests.labels("/v1/score", "503")._value
    before = refused.get()

    def leave() -> None:
        while refused.get() == before:
            time.sleep(0.01)
        app.running = 0

    threading.Thread(target=leave, daemon=True).start()
    started = time.monotonic()
    assert (
        np.isfinite(reward.score([clip()])[0].value) and time.monotonic() - started > 1.9
    )  # its Retry-After


def test_a_refusal_that_is_cut_off_is_asked_again():
    def answer(listener: socket.socket) -> None:
        for _ in range(2):
            connection, _ = listener.accept()
            connection.recv(65_536)
            connection.sendall(b"HTTP/1.1 503 Busy\r\nContent-Length: 100\r\n\r\n{")
            connection.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer, args=(listener,))
        thread.start()
        with pytest.raises(ConnectionError, match="status 503, 2 tries"):
            RemoteReward("a", f"http://127.0.0.1:{listener.getsockname()[1]}", num_tries=2, backoff_s=0.01)
        thread.join(5)


def test_no_service_is_one_line():
    with pytest.raises(ConnectionError, match="2 tries; check that the service is up"):
        RemoteReward("a", "http://127.0.0.1:9", num_tries=2, backoff_s=0.01)
    with pytest.raises(ValueError, match="is not http"):
        RemoteReward("a", "file:///etc/passwd")
