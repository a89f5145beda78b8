"""`nava rewrite` as a process: killed and run again, two at once on one output, stopped by Ctrl-C while a
server hangs."""

import json
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from functools import partial

from rewrite_world import Hostile, served

PROMPTS = [f"A man number {number} says <S>word {number}<E>." for number in range(24)]


@contextmanager
def slow(hostile: Hostile, pause_s: float = 0.02):
    """Good answers, one at a time."""
    turn = threading.Lock()

    def respond(handler):
        with turn:
            time.sleep(pause_s)
            hostile.respond(handler)

    with served(respond) as url:
        yield url


def started(folder, url: str) -> subprocess.Popen:
    program = "import sys; from experiments.cli import main; sys.exit(main())"
    options = [
        "p.jsonl",
        "--to",
        "q.jsonl",
        "--cache",
        "c.jsonl",
        "--endpoint",
        url,
        "--model",
        "m",
        "--concurrency",
        "4",
    ]
    command = [sys.executable, "-c", program, "rewrite", *options]
    # a shell's background jobs ignore SIGINT, and what they start inherits that
    default = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=default
    )


def prepared(folder, *answers: str) -> Hostile:
    (folder / "p.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))
    return Hostile(PROMPTS, only=answers)


def until(condition, limit_s: float = 30.0) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_killed_run_goes_on_and_ends_as_if_it_had_not_been(tmp_path):
    hostile = prepared(tmp_path, "good", "drops")
    with slow(hostile) as url:
        process = started(tmp_path, url)
        until(lambda: len(hostile.requests) >= 15)
        process.kill()
        process.communicate()
        time.sleep(1.0)  # the server still goes through what the killed process had asked
        assert not (tmp_path / "q.jsonl").exists()
        answered = [
            json.loads(line)["tries"] for line in (tmp_path / "c.jsonl").read_bytes().split(b"\n")[:-1]
        ]
        with (tmp_path / "c.jsonl").open("ab") as cache:
            cache.write(b'{"key": "torn')
        before = len(hostile.requests)
        output, error = started(tmp_path, url).communicate(timeout=60)
        assert "24 prompts: " in output and "of an earlier run" in output, error
        made = (tmp_path / "q.jsonl").read_bytes()
        resumed = len(hostile.requests) - before
        (tmp_path / "c.jsonl").unlink()
        started(tmp_path, url).communicate(timeout=60)
        whole = len(hostile.requests) - before - resumed
    assert answered and resumed == whole - sum(
        answered
    )  # what was answered and written is not asked for again
    assert (tmp_path / "q.jsonl").read_bytes() == made


def test_two_at_once_on_one_output_leave_it_whole(tmp_path):
    hostile = prepared(tmp_path, "good")
    with slow(hostile, 0.01) as url:
        both = [started(tmp_path, url) for _ in range(2)]
        assert all("24 by model" in process.communicate(timeout=60)[0] for process in both)
        rows = [json.loads(line) for line in (tmp_path / "q.jsonl").read_text().splitlines()]
        assert [row["meta"]["rewrite"]["source"] for row in rows] == PROMPTS
        before = len(hostile.requests)
        assert "24 of an earlier run" in started(tmp_path, url).communicate(timeout=60)[0]
    assert len(hostile.requests) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.jsonl", "p.jsonl", "q.jsonl"]


def test_an_interrupt_ends_a_run_whose_server_hangs(tmp_path):
    hostile = prepared(tmp_path, "hangs")
    asked = threading.Event()

    def respond(handler):
        asked.set()
        hostile.end.wait(60)

    with served(respond, hostile.end) as url:
        process = started(tmp_path, url)
        assert asked.wait(60)
        process.send_signal(signal.SIGINT)
        begun = time.monotonic()
        _, error = process.communicate(timeout=30)
    assert (process.returncode, error.splitlines()[-1]) == (130, "nava: interrupted")
    assert time.monotonic() - begun < 10
