"""`nava prepare` on what goes wrong around it: odd files, slow and mad servers, a full disk, two at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from prepare_world import Sound, ffmpeg, scene, write

from experiments.preparation import captions, words
from experiments.preparation.config import PrepareConfig
from experiments.preparation.prepare import prepare_set, work_folder
from experiments.preparation.services import Services, use
from experiments.preparation.source_work import Settings
from finetune.rewriter.endpoint import ChatEndpoint
from pretrain.prompt import parse
from rewards.speech.endpoint import EndpointTranscriber

ROOT = Path(__file__).parent.parent
EVERY = Settings(PrepareConfig(min_confidence=0.0), 24.0)


@pytest.fixture(autouse=True)
def no_services() -> Iterator[None]:
    yield
    use(Services())


@pytest.fixture(scope="module")
def spoken(tmp_path_factory) -> Path:
    sound = Sound(2.6)
    sound.phrase(0.4, ["garden", "window", "paper"], "slt")
    return write(tmp_path_factory.mktemp("one") / "a.mp4", scene(2.6, 50, size=(64, 96)), sound).path


@pytest.fixture
def raw(spoken, tmp_path) -> Path:
    folder = tmp_path / "raw"
    folder.mkdir()
    os.link(spoken, folder / "a.mp4")
    return folder


@contextmanager
def answering(content: bytes, wait_s: float = 0.0) -> Iterator[str]:
    """The address of a server that says the same to everything, after a while."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            time.sleep(wait_s)
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

        def handle(self) -> None:
            with suppress(OSError):  # the client did not wait
                super().handle()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def one_line(error: BaseException) -> str:
    assert "\n" not in str(error) and str(error)
    return str(error)


def test_encrypted_and_ten_hour_files_are_one_reason_each(raw, tmp_path):
    ffmpeg(
        *("-i", raw / "a.mp4", "-c", "copy", "-encryption_scheme", "cenc-aes-ctr"),
        *("-encryption_key", "76a6c65c5ea762046bd749a2e632ccbb"),
        *("-encryption_kid", "a7e61c373e219033c21091fa607bf3b8", raw / "encrypted.mp4"),
    )
    ffmpeg(
        *("-f", "lavfi", "-i", "color=s=32x32:r=1/10", "-f", "lavfi", "-i", "anullsrc=r=4000:cl=mono"),
        *("-t", "36000", "-c:v", "mpeg4", "-c:a", "flac", "-compression_level", "0", raw / "ten hours.mkv"),
    )
    begun_s = time.process_time()
    assembled = prepare_set(str(raw), tmp_path / "out", EVERY, Services(), 1)
    assert time.process_time() - begun_s < 60  # nothing of ten hours is decoded
    wrong = {one["source"]: (one["stage"], one["reason"]) for one in assembled.rejected}
    assert {name: stage for name, (stage, _) in wrong.items()} == dict.fromkeys(
        ("encrypted.mp4", "ten hours.mkv"), "read"
    )
    assert "36000" in wrong["ten hours.mkv"][1] or "10" in wrong["ten hours.mkv"][1]
    assert [row["meta"]["source"] for row in assembled.rows] == ["a.mp4"]


@pytest.mark.parametrize("said", [b"<html>no</html>", b"{}", b'{"text": 7}', b"\xff\xfe", b'{"text": "'])
def test_a_transcriber_that_answers_nonsense_ends_the_run_in_one_line(raw, tmp_path, said):
    with answering(said) as url, pytest.raises((ConnectionError, ValueError)) as raised:
        services = Services(transcribe=url, transcribe_model="m")
        prepare_set(str(raw), tmp_path / "out", EVERY, services, 1)
    assert url in one_line(raised.value) and not (tmp_path / "out").exists()


def test_words_of_a_server_that_nobody_said_are_no_words(raw, tmp_path):
    with answering(json.dumps({"text": "the quick brown fox jumps over the lazy dog " * 30}).encode()) as url:
        services = Services(transcribe=url, transcribe_model="m")
        assembled = prepare_set(str(raw), tmp_path / "out", EVERY, services, 1)
    texts = [row["text_list"][0]["text"] for row in assembled.rows]
    assert not any("fox" in text for text in texts), texts


def test_servers_that_are_too_slow_are_one_line(raw, tmp_path, monkeypatch):
    use(Services())
    with answering(b'{"text": "garden window paper"}', wait_s=2.0) as url:
        slow = EndpointTranscriber(base_url=url, model="m", timeout_s=0.3, num_tries=2, backoff_s=0.01)
        monkeypatch.setattr(words, "transcriber", lambda: slow)
        with pytest.raises(ConnectionError) as raised:
            prepare_set(str(raw), tmp_path / "out", EVERY, Services(), 1)
        assert url in one_line(raised.value)
        monkeypatch.setattr(words, "transcriber", lambda: None)
        chat = ChatEndpoint(base_url=url, model="m", timeout_s=0.3)
        monkeypatch.setattr(captions, "captioner", lambda: chat)
        with pytest.raises(ConnectionError) as raised:
            prepare_set(str(raw), tmp_path / "out", EVERY, Services(), 1)
        assert url in one_line(raised.value)
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(captions, "captioner", lambda: None)
    assert prepare_set(str(raw), tmp_path / "out", EVERY, Services(), 1).rows


def test_a_caption_beside_that_says_other_words_is_refused(raw, tmp_path):
    (raw / "a.txt").write_text("A woman says <S>chicken ocean doctor<E>.")
    assembled = prepare_set(str(raw), tmp_path / "out", EVERY, Services(), 1)
    (wrong,) = assembled.rejected
    assert not assembled.rows and (wrong["stage"], wrong["measure"]) == ("words", "alignment")
    (raw / "a.txt").write_text("A woman says <S>Garden, window: paper!<E> and smiles.")
    (row,) = prepare_set(str(raw), tmp_path / "out", EVERY, Services(), 1).rows
    assert [span.text for span in parse(row["text_list"][0]["text"]).spans] == ["Garden, window: paper!"]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_is_one_line_and_leaves_what_was_there(raw, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no tmpfs here: {mounted.stderr.decode().strip()}")
    try:
        out, before = disk / "out", (raw / "a.mp4").read_bytes()
        assert prepare_set(str(raw), out, EVERY, Services(), 1).rows
        rows = (out / "manifest.jsonl").read_bytes()
        sound = Sound(8.0, 3)
        sound.phrase(0.4, ["seven", "green", "rocket", "zero"], "rms")
        write(raw / "b.mp4", scene(8.0, 53, size=(240, 320)), sound)
        room = os.statvfs(disk)
        (disk / "filler").write_bytes(bytes(max(0, room.f_bavail * room.f_bsize - 60_000)))
        with pytest.raises(OSError) as raised:
            prepare_set(str(raw), out, EVERY, Services(), 1)
        assert "space" in one_line(raised.value)
        assert (out / "manifest.jsonl").read_bytes() == rows and (raw / "a.mp4").read_bytes() == before
        assert not list(work_folder(out).glob(".*.partial")) and not list(disk.glob(".nava-*"))
        (disk / "filler").unlink()
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        again = prepare_set(str(raw), out, EVERY, Services(), 1)
        assert {row["meta"]["source"] for row in again.rows} == {"a.mp4", "b.mp4"}
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.slow
def test_of_two_processes_on_one_output_one_stops_in_one_line(raw, tmp_path):
    for number in range(3):
        sound = Sound(12.0, number)
        sound.phrase(0.4, ["seven", "green", "rocket", "zero"], "rms")
        write(raw / f"{number}.mp4", scene(12.0, 60 + number), sound)
    line = [sys.executable, "-m", "experiments.cli", "prepare", str(raw), "--to", str(tmp_path / "out")]
    line += ["--nproc", "1", "--set", "prepare.min_confidence=0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    first = subprocess.Popen(
        line, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    limit = time.monotonic() + 120
    while not (work_folder(tmp_path / "out") / "lock").exists() and time.monotonic() < limit:
        time.sleep(0.05)
    second = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True)
    told = first.communicate()[1].decode()
    assert first.returncode == 0, told
    assert second.returncode == 2 and "another `nava prepare` writes there" in second.stderr.splitlines()[-1]
    assert (tmp_path / "out" / "manifest.jsonl").read_text().count("\n") >= 4
