"""Recognition by a server: what is sent, order, tries, secrets; against a server in this process."""

import io
import json
import threading
import time
import wave
from contextlib import contextmanager
from email.parser import BytesParser
from email.policy import HTTP
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

from rewards.catalog import open_rewards
from rewards.speech.endpoint import EndpointTranscriber
from rewards.types import Clip

SECRET = "sk-very-secret"


class Served:
    """Answers with the first sample of the clip; `failures` are (status, headers) sent before the first good
    answer."""

    def __init__(self, failures=(), delays=(), answer=None) -> None:
        self.failures, self.delays, self.answer = list(failures), list(delays), answer
        self.requests, self.lock, self.running, self.most = [], threading.Lock(), 0, 0

    def respond(self, path, headers, body):
        with self.lock:
            form = _form(headers["Content-Type"], body)
            self.requests.append((path, headers, form))
            self.running += 1
            self.most = max(self.most, self.running)
            failure = self.failures.pop(0) if self.failures else None
            delay = self.delays.pop(0) if self.delays else 0.0
        time.sleep(delay)
        with self.lock:
            self.running -= 1
        return failure or (200, {}), self.answer or json.dumps(
            {"text": str(_first_sample(form["file"]))}
        ).encode()


def _form(content_type: str, body: bytes) -> dict[str, Any]:
    message = BytesParser(policy=HTTP).parsebytes(f"Content-Type: {content_type}\r\n\r\n".encode() + body)
    parts = message.iter_parts()  # type: ignore[attr-defined]
    return {
        str(part.get_param("name", header="content-disposition")): part.get_payload(decode=True)
        for part in parts
    }


def _first_sample(wav: bytes) -> int:
    with wave.open(io.BytesIO(wav)) as reader:
        assert (reader.getnchannels(), reader.getsampwidth(), reader.getframerate()) == (1, 2, 16_000)
        return int(np.frombuffer(reader.readframes(1), "<i2")[0])


@contextmanager
def server(served: Served):
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            (status, headers), answer = served.respond(self.path, self.headers, body)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{http.server_address[1]}"
    finally:
        http.shutdown()
        thread.join()
        http.server_close()


def sounds(count: int) -> list[np.ndarray]:
    return [np.full(800, (i + 1) / 32767, np.float32) for i in range(count)]


def test_form_holds_model_language_and_a_wav(monkeypatch):
    monkeypatch.setenv("SPEECH_TOKEN", SECRET)
    with server(served := Served()) as url:
        transcriber = EndpointTranscriber(
            base_url=url + "/", model="openai/whisper-large-v3", token_variable="SPEECH_TOKEN"
        )
        assert transcriber.transcribe(sounds(1)) == ["1"]
    ((path, headers, form),) = served.requests
    assert path == "/v1/audio/transcriptions"
    assert headers["Authorization"] == f"Bearer {SECRET}"
    assert {name: form[name] for name in ("model", "language", "response_format", "temperature")} == {
        "model": b"openai/whisper-large-v3",
        "language": b"en",
        "response_format": b"json",
        "temperature": b"0",
    }
    assert transcriber.name == "whisper_large_v3_endpoint"
    assert SECRET not in repr(transcriber) + str(vars(transcriber))


def test_answers_come_in_order_and_no_more_than_asked_at_once():
    with server(served := Served(delays=[0.2, 0.0, 0.1, 0.0, 0.05, 0.0])) as url:
        assert EndpointTranscriber(base_url=url, model="m", concurrency=3).transcribe(sounds(6)) == list(
            "123456"
        )
    assert served.most in (2, 3)
    assert "Authorization" not in served.requests[0][1]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again(status):
    with server(served := Served(failures=[(status, {"Retry-After": "0.2"}), (status, {})])) as url:
        start = time.perf_counter()
        assert EndpointTranscriber(base_url=url, model="m", backoff_s=0.01).transcribe(sounds(1)) == ["1"]
    assert len(served.requests) == 3
    assert time.perf_counter() - start >= 0.2


def test_giving_up_is_one_line_without_the_token(monkeypatch):
    monkeypatch.setenv("SPEECH_TOKEN", SECRET)
    with server(served := Served(failures=[(503, {})] * 9, answer=f"overloaded\n{SECRET}".encode())) as url:
        transcriber = EndpointTranscriber(
            base_url=url, model="m", token_variable="SPEECH_TOKEN", num_tries=3, backoff_s=0.01
        )
        with pytest.raises(ConnectionError, match=r"status 503 overloaded .*, 3 tries") as caught:
            transcriber.transcribe(sounds(1))
    assert len(served.requests) == 3
    assert SECRET not in str(caught.value) and "\n" not in str(caught.value)


def test_a_refusal_is_not_tried_again():
    with server(served := Served(failures=[(404, {})] * 9, answer=b"no such model")) as url:
        with pytest.raises(ConnectionError, match="status 404 no such model; check model 'm'"):
            EndpointTranscriber(base_url=url, model="m").transcribe(sounds(1))
    assert len(served.requests) == 1


def test_a_redirect_does_not_take_the_token_elsewhere(monkeypatch):
    monkeypatch.setenv("SPEECH_TOKEN", SECRET)
    with (
        server(elsewhere := Served()) as other,
        server(Served(failures=[(302, {"Location": other + "/x"})])) as url,
    ):
        with pytest.raises(ConnectionError, match="status 302"):
            EndpointTranscriber(base_url=url, model="m", token_variable="SPEECH_TOKEN").transcribe(sounds(1))
    assert not elsewhere.requests


def test_slow_silent_and_speechless_servers_raise():
    with server(Served(delays=[0.5, 0.5])) as url:
        with pytest.raises(ConnectionError, match="timed out, 2 tries"):
            EndpointTranscriber(
                base_url=url, model="m", timeout_s=0.05, num_tries=2, backoff_s=0.01
            ).transcribe(sounds(1))
    with pytest.raises(ConnectionError, match="check that the server is up"):
        EndpointTranscriber(base_url=url, model="m", num_tries=1).transcribe(sounds(1))
    with server(Served(answer=b'{"words": 1}')) as url:
        with pytest.raises(ConnectionError, match="answer without a text"):
            EndpointTranscriber(base_url=url, model="m", num_tries=1).transcribe(sounds(1))


def test_one_bad_clip_fails_the_batch():
    with server(Served(failures=[(400, {})], delays=[0.0, 0.1])) as url:
        with pytest.raises(ConnectionError, match="status 400"):
            EndpointTranscriber(base_url=url, model="m", concurrency=2).transcribe(sounds(8))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"base_url": "localhost:8000"}, "base_url"),
        ({"base_url": "http://user:pass@host"}, "base_url"),
        ({"base_url": "http://host", "concurrency": 0}, "at least 1"),
    ],
)
def test_wrong_settings_are_refused(fields, message):
    with pytest.raises(ValueError, match=message) as caught:
        EndpointTranscriber(model="m", **fields)
    assert "pass@" not in str(caught.value)


def test_an_unset_token_is_named(monkeypatch):
    monkeypatch.delenv("SPEECH_TOKEN", raising=False)
    with pytest.raises(ValueError, match="SPEECH_TOKEN: not set"):
        EndpointTranscriber(
            base_url="http://127.0.0.1:1", model="m", token_variable="SPEECH_TOKEN"
        ).transcribe(sounds(1))


@pytest.mark.parametrize(
    ("heard", "errors"),
    [("今天天气很好，我们去公园。", 0), ("今天天氣很好我們去公園", 0), ("今天天气很坏，我们去公园。", 1)],
)
@pytest.mark.parametrize("scoring", ["", "normalised", "seed_tts_zh"])
def test_chinese_is_counted_by_characters_whatever_the_scoring(heard, errors, scoring):
    clip = Clip(np.ones(16_000, np.float32), 16_000, spans=("今天天气很好我们去公园",))
    with server(Served(answer=json.dumps({"text": heard}).encode())) as address:
        options = {"base_url": address, "model": "whisper-large-v3", "language": "zh", "scoring": scoring}
        with open_rewards(["wer_endpoint"], {"wer_endpoint": options}) as (reward,):
            (score,) = reward.score([clip])
    assert score.parts == {"errors": errors, "words": 11}


def test_the_english_normaliser_asks_for_its_file(tmp_path):
    options = {"base_url": "http://127.0.0.1:9", "model": "whisper-large-v3", "scoring": "normalised_english"}
    with pytest.raises(ValueError, match=r"wer_endpoint\.normalizer=PATH"):
        with open_rewards(["wer_endpoint"], {"wer_endpoint": options}):
            pass
    (tmp_path / "normalizer.json").write_text("{}")
    options["normalizer"] = str(tmp_path / "normalizer.json")
    with open_rewards(["wer_endpoint"], {"wer_endpoint": options}) as (reward,):
        assert reward.name == "wer_whisper_large_v3_endpoint_normalised_english"
