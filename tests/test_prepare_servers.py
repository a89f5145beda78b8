"""`nava prepare` with servers: captions and transcripts, down, wrong and hostile."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from prepare_world import Sound, scene, write

from experiments.preparation.config import PrepareConfig
from experiments.preparation.prepare import prepare_set
from experiments.preparation.services import Services, use
from experiments.preparation.source_work import Settings
from pretrain.prompt import parse

EVERY = Settings(PrepareConfig(min_confidence=0.0), 24.0)


@pytest.fixture(autouse=True)
def no_services() -> Iterator[None]:
    yield
    use(Services())


@pytest.fixture
def raw(tmp_path) -> Path:
    sound = Sound(2.6)
    sound.phrase(0.4, ["garden", "window", "paper"], "slt")
    write(tmp_path / "raw" / "a.mp4", scene(2.6, 50, size=(64, 96)), sound)
    return tmp_path / "raw"


@contextmanager
def server(answer) -> Iterator[tuple[str, list[bytes]]]:
    asked: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            asked.append(body)
            status, content = answer(self.path, body)
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{running.server_port}", asked
    finally:
        running.shutdown()
        running.server_close()


def chat(text: str) -> bytes:
    return json.dumps({"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}).encode()


def test_a_model_sees_pictures_and_keeps_the_words(raw, tmp_path):
    def answer(path, body):
        content = json.loads(body)["messages"][1]["content"]
        assert sum(part["type"] == "image_url" for part in content) == 4
        (name,) = set(re.findall(r"\[SPEECH 1\]", content[0]["text"]))
        return 200, chat(f"The video shows a drifting pattern of colours. A woman says {name} and stops.")

    (raw / "a.txt").write_text("garden window paper")
    with server(answer) as (url, _):
        services = Services(caption=url, caption_model="vlm")
        assembled = prepare_set(str(raw), tmp_path / "out", EVERY, services, 1)
    (row,) = assembled.rows
    assert row["meta"]["caption_by"] == "model"
    assert row["text_list"][0]["text"].endswith("A woman says <S>garden window paper<E> and stops.")


@pytest.mark.parametrize(
    "said", ["It says <S>other words<E>.", "", "\ud83d", "[SPEECH 1] [SPEECH 1]", "no speech"]
)
def test_a_caption_that_changes_words_is_never_taken(raw, tmp_path, said):
    (raw / "a.txt").write_text("garden window paper")
    with server(lambda path, body: (200, chat(said))) as (url, asked):
        services = Services(caption=url, caption_model="vlm")
        assembled = prepare_set(str(raw), tmp_path / "out", EVERY, services, 1)
    (row,) = assembled.rows
    assert len(asked) == 3 and row["meta"]["caption_by"] == "template" and row["meta"]["caption_refused"]
    assert [span.text for span in parse(row["text_list"][0]["text"]).spans] == ["garden window paper"]


def test_transcripts_of_a_server_are_aligned(raw, tmp_path):
    with server(lambda path, body: (200, b'{"text": "Garden, window paper."}')) as (url, asked):
        services = Services(transcribe=url, transcribe_model="whisper")
        assembled = prepare_set(str(raw), tmp_path / "out", EVERY, services, 1)
    assert asked and assembled.rows[0]["meta"]["words"] == ["Garden, window paper."]
    assert abs(assembled.rows[0]["text_list"][0]["speech_start"][0] - 0.4) < 0.1


def test_a_server_that_is_down_is_one_line_and_the_run_goes_on_later(raw, tmp_path):
    services = Services(caption="http://127.0.0.1:9", caption_model="vlm")
    with pytest.raises(ConnectionError) as raised:
        prepare_set(str(raw), tmp_path / "out", EVERY, services, 1)
    assert "no answer in 3 tries" in str(raised.value) and "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()
    with server(lambda path, body: (401, b"no")) as (url, _):
        with pytest.raises(ConnectionError, match="check model"):
            prepare_set(str(raw), tmp_path / "out", EVERY, Services(caption=url, caption_model="m"), 1)
    assert prepare_set(str(raw), tmp_path / "out", EVERY, Services(), 1).rows
