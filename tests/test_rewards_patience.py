"""A server of rewards that was there and is away is waited for; one that never was, and a wrong request, are
not."""

import json
import pickle
import socket
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from service_world import SMALL, TOKEN, LocalScoring
from test_service_client import listening

from experiments.scoring.latents import AlignScorer
from finetune.executor import Stopped
from finetune.scores import RankScoring, Scores
from orchestration.service.app import build_app
from orchestration.service.gate import digest_of
from orchestration.service.scoring import TryAgain, score_apart
from rewards.catalog import open_rewards
from rewards.http import NoAnswer
from rewards.patience import PATIENCE_S, Patience
from rewards.recipes.remote import RemoteOptions
from rewards.recipes.speech import EndpointOptions
from rewards.remote import RemoteReward
from rewards.speech.endpoint import EndpointTranscriber
from rewards.speech.wer import WordErrorRate
from rewards.types import Clip

CLIP = Clip(np.full(16_000, 0.1, np.float32), 16_000, name="a")


@pytest.fixture(autouse=True)
def token(monkeypatch):
    monkeypatch.setenv("NAVA_API_TOKEN", TOKEN)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


@contextmanager
def serving(port: int, answer, posted=None):
    """`answer(number)` -> (status, JSON) of each POST; GET is the list of one reward."""
    number = [0]

    class Handler(BaseHTTPRequestHandler):
        def respond(self, status, content):
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self):
            self.respond(200, [{"name": "snr"}])

        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            number[0] += 1
            self.respond(*answer(number[0]))

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield number
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def scored(error="", **more):
    value = None if error else 1.0
    return {
        "scores": {"snr": {"value": value, "parts": {}, "reason": "", "text": "", "error": error, **more}}
    }


def fast(url, **changes) -> RemoteReward:
    return RemoteReward("snr", url, **({"num_tries": 2, "backoff_s": 0.02, "patience_s": 20.0} | changes))


def test_a_service_that_is_away_is_waited_for(capsys):
    port = free_port()
    with serving(port, lambda _: (200, scored())):
        reward = fast(f"http://127.0.0.1:{port}")
    found = []
    thread = threading.Thread(target=lambda: found.extend(reward.score([CLIP] * 3)))
    thread.start()
    time.sleep(1.0)
    assert thread.is_alive() and not found
    with serving(port, lambda _: (200, scored())):
        thread.join(20)
    assert [score.value for score in found] == [1.0] * 3
    away, back = capsys.readouterr().err.splitlines()
    assert "refused" in away and "asked again for up to 20 s" in away and f":{port}" in away
    assert "the service answers again, after" in back


def test_a_service_that_never_answered_and_one_that_stays_away_are_told_soon():
    port = free_port()
    started = time.monotonic()
    with pytest.raises(ConnectionError, match="2 tries; check that the service is up"):
        fast(f"http://127.0.0.1:{port}", patience_s=PATIENCE_S)
    assert time.monotonic() - started < 5
    with serving(port, lambda _: (200, scored())):
        reward = fast(f"http://127.0.0.1:{port}", patience_s=0.5)
    for least, most in ((0.5, 5.0), (0.0, 0.4)):  # patience once; clip by clip it would be hours
        started = time.monotonic()
        with pytest.raises(ConnectionError, match="refused"):
            reward.score([CLIP] * 20)
        assert least <= time.monotonic() - started < most
    with serving(port, lambda _: (200, scored())):
        assert reward.score([CLIP])[0].value == 1.0
    started = time.monotonic()
    with pytest.raises(ConnectionError):
        reward.score([CLIP])
    assert time.monotonic() - started >= 0.5


@pytest.mark.parametrize(
    ("first", "tries"),
    [
        ((503, {"reason": "service: not ready; try again", "fault": "service"}), 2),
        ((502, {"reason": "lost", "fault": "service"}), 2),
        ((200, scored("its replica was lost (ActorDiedError); try again", again=True)), 2),
        ((200, scored("no room for the clip (ObjectStoreFullError); try again")), 2),  # of earlier services
        ((200, scored("reward snr failed on a: said so; try again", again=False)), 1),
        ((200, scored("reward snr failed on a: ValueError: no")), 1),
        ((422, {"reason": "rewards: unknown reward", "fault": "request"}), 1),
        ((401, {"reason": "token: wrong", "fault": "request"}), 1),
        ((500, {"reason": "service: internal error", "fault": "service"}), 1),
    ],
)
def test_only_what_may_pass_is_asked_again(first, tries):
    port = free_port()
    with serving(port, lambda number: first if number < tries or tries == 1 else (200, scored())) as number:
        reward = fast(f"http://127.0.0.1:{port}", num_tries=1)
        if tries > 1:
            assert reward.score([CLIP])[0].value == 1.0
        else:
            with pytest.raises(ConnectionError):
                reward.score([CLIP])
        assert number[0] == tries


def test_what_may_pass_is_marked_by_the_service():
    scoring = LocalScoring("snr_estimate_db")
    scoring.num_lost = 2
    app = build_app(scoring, [], SMALL, digest_of(TOKEN))  # pyright: ignore[reportArgumentType]
    with listening(app) as url:
        assert RemoteReward("lost", url, num_tries=1, backoff_s=0.02).score([CLIP])[0].value == 0.25
        assert scoring.num_lost == 0
        with pytest.raises(ConnectionError, match="failed there: its process died"):
            RemoteReward("broken", url, num_tries=1).score([CLIP])


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"fps": float("nan")}, "nan frames per second"),
        ({"fps": float("inf")}, "inf frames per second"),
        ({"fps": 0.0}, "0.0 frames per second"),
        ({"sample_rate_hz": 0}, "0 samples per second"),
        ({"first_frame": np.zeros((8, 8, 3), np.float32)}, "first frame must be uint8"),
        ({"waveform": np.zeros((0, 800), np.float32)}, "sound must be floats"),
    ],
)
def test_a_clip_that_cannot_be_sent_has_its_reason(fields, reason):
    port = free_port()
    film = np.zeros((3, 16, 16, 3), np.uint8)
    given = {"waveform": CLIP.waveform, "sample_rate_hz": 16_000, "frames": film, "fps": 24.0} | fields
    with serving(port, lambda _: (200, scored())):
        bad, good = fast(f"http://127.0.0.1:{port}").score([Clip(**given), CLIP])
    assert np.isnan(bad.value) and reason in bad.reason and good.value == 1.0


def test_a_batch_whose_process_was_lost_marks_only_the_clips_that_were_not_tried():
    import asyncio

    from test_service_scoring import Holder

    clips = [Clip(None, 16_000, name="kill")] * 3
    found = asyncio.run(score_apart(clips, Holder(), 1.0))
    assert [isinstance(answer, TryAgain) for answer in found] == [False, False, True]


def test_a_transcriber_that_is_away_is_waited_for(capsys):
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    transcriber = EndpointTranscriber(base_url=url, model="m", num_tries=1, backoff_s=0.02, patience_s=20.0)
    with pytest.raises(ConnectionError, match="1 tries"):  # never answered: at once
        transcriber.transcribe([np.zeros(800, np.float32)])
    with serving(port, lambda _: (200, {"text": "one"})):
        assert transcriber.transcribe([np.zeros(800, np.float32)]) == ["one"]
    found = []
    thread = threading.Thread(
        target=lambda: found.extend(transcriber.transcribe([np.zeros(800, np.float32)]))
    )
    thread.start()
    time.sleep(0.3)
    with serving(port, lambda _: (200, {"text": "two"})):
        thread.join(20)
    assert found == ["two"] and "the server is asked again" in capsys.readouterr().err


def test_a_signal_ends_the_wait_and_the_run_stops_instead_of_failing():
    port = free_port()
    with serving(port, lambda _: (200, scored())):
        reward = fast(f"http://127.0.0.1:{port}", patience_s=PATIENCE_S)
    heard = _Heard()
    scorer = object.__new__(AlignScorer)
    vars(scorer).update(rewards={"remote": reward}, judges={"ear": WordErrorRate(heard)})

    class Waiting:
        interrupt = scorer.interrupt

        def score(self, *_):
            reward.score([CLIP])
            return Scores({})

    class Alone:
        def gathered_texts(self, text):
            return [text]

    scoring = RankScoring(Waiting(), Alone())  # pyright: ignore[reportArgumentType]
    threading.Timer(0.5, scoring.stop).start()
    started = time.monotonic()
    with pytest.raises(Stopped):
        scoring.score([((), (), ())])  # pyright: ignore[reportArgumentType]
    assert 0.4 < time.monotonic() - started < 5 and heard.interrupted


class _Heard:
    """A transcriber that has a server."""

    name, interrupted = "heard", False

    def interrupt(self):
        self.interrupted = True

    def transcribe(self, waveforms):
        return [""] * len(waveforms)


def test_patience_is_an_option_and_travels_to_other_processes():
    assert RemoteOptions().patience_s == EndpointOptions().patience_s == PATIENCE_S == 600
    port = free_port()
    with serving(port, lambda _: (200, scored())):
        given = {"remote": {"reward": "snr", "url": f"http://127.0.0.1:{port}", "patience_s": 3}}
        with open_rewards(["remote"], given) as (reward,):
            assert pickle.loads(pickle.dumps(reward)).patience.seconds == 3  # pyright: ignore
    with pytest.raises(ValueError, match="patience_s -1"):
        fast("http://127.0.0.1:9", patience_s=-1)


def test_waits_grow_and_a_servers_own_wait_is_kept(monkeypatch):
    clock, slept = [1000.0], []

    def sleep(seconds):
        clock[0] += seconds
        slept.append(seconds)

    monkeypatch.setattr("rewards.patience._pause", lambda seconds, stopped: sleep(seconds))
    monkeypatch.setattr("rewards.patience.time.monotonic", lambda: clock[0])
    patience = Patience(100.0, 2, 1.0, "here", "server", answered=True)
    waits = iter([0.0, 0.0, 0.0, 30.0] + [0.0] * 99)

    def once():
        raise NoAnswer("away", wait_s=next(waits))

    with pytest.raises(ConnectionError, match=r"here: away, .* tries in 100 s; check that the server is up"):
        patience.call(once)
    assert slept[:5] == [1.0, 2.0, 4.0, 30.0, 16.0] and sum(slept) == 100.0 and max(slept) == 30.0
