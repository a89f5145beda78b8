"""`nava rewrite`: what is asked and how often, secrets, time and size limits, the cache, files, kills."""

import errno
import json
import os
import threading
import time
from pathlib import Path

import pytest

from experiments.cli import main
from finetune.rewriter.form import messages
from orchestration.rewrite import Asking, rewrite_all
from orchestration.rewrite_cache import RewriteCache, request_key
from orchestration.rewrite_endpoint import MAX_ANSWER_BYTES, ChatEndpoint, NoAnswer
from tests.rewrite_world import ANSWERS, Hostile, _send, served

SECRET = "sk-very-secret"
OK = "HTTP/1.1 200 OK\r\n"
PROMPTS = [f"A man number {number} says <S>word {number}<E>." for number in range(6)]
QUICK = Asking(backoff_s=0.001, concurrency=3)


def asked(url, prompts, asking=QUICK, cache=None, **more):
    return rewrite_all(prompts, ChatEndpoint(base_url=url, model="m", **more), cache or RewriteCache(None), asking)


def says(status, body=b"", headers=None):
    def respond(handler):
        handler.rfile.read(int(handler.headers["Content-Length"]))
        _send(handler, status, body, headers or {})

    return respond


def write(path: Path, prompts, **more) -> Path:
    path.write_text("".join(json.dumps({"prompt": prompt, **more}, ensure_ascii=False) + "\n" for prompt in prompts))
    return path


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_what_is_asked_and_that_answers_come_in_order(monkeypatch):
    monkeypatch.setenv("LLM_TOKEN", SECRET)
    hostile = Hostile(PROMPTS, only=["good"])
    with served(hostile.respond) as url:
        endpoint = ChatEndpoint(base_url=url + "/v1/", model="m", token_variable="LLM_TOKEN", max_tokens=99)
        rewrites = rewrite_all([*PROMPTS, PROMPTS[0]], endpoint, RewriteCache(None), QUICK)
    assert [rewrite.by for rewrite in rewrites] == ["model"] * 7
    assert all(prompt.split("<S>")[1][:6] in rewrite.text for prompt, rewrite in zip(PROMPTS, rewrites, strict=False))
    assert len(hostile.requests) == 6  # the same prompt is asked for once
    path, headers, body = next(request for request in hostile.requests if "number 2" in str(request))
    assert (path, headers["Authorization"]) == ("/v1/chat/completions", f"Bearer {SECRET}")
    assert body["messages"] == messages(PROMPTS[2])
    assert (body["model"], body["max_tokens"], body["seed"], body["stream"]) == ("m", 99, 0, False)
    assert SECRET not in repr(endpoint) + str(vars(endpoint))


def test_every_try_has_its_seed_and_the_last_failure_is_told():
    hostile = Hostile(PROMPTS, only=["500"])
    with served(hostile.respond) as url:
        rewrites = asked(url, PROMPTS[:1])
        original = asked(url, PROMPTS[:1], Asking(backoff_s=0.0, num_tries=1, fallback="original"))
    assert [body["seed"] for _, _, body in hostile.requests] == [0, 1, 2, 3, 0]
    assert (rewrites[0].by, rewrites[0].tries, rewrites[0].reason) == ("template", 4, "status 500 <html>Internal Server Error")
    assert (original[0].text, original[0].by) == (PROMPTS[0], "original")


def test_a_busy_server_says_how_long_to_wait():
    replies = iter([503])

    def respond(handler):
        handler.rfile.read(int(handler.headers["Content-Length"]))
        status = next(replies, 200)
        _send(handler, status, ANSWERS["good"](PROMPTS[0])[1], {"Retry-After": "0.3"} if status == 503 else {})

    with served(respond) as url:
        started = time.monotonic()
        assert asked(url, PROMPTS[:1])[0].tries == 2
    assert time.monotonic() - started >= 0.3


@pytest.mark.parametrize("status", [401, 403, 404, 301, 204])
def test_what_no_retry_helps_ends_the_run_in_one_line_without_the_token(status, monkeypatch):
    monkeypatch.setenv("LLM_TOKEN", SECRET)
    reached: list[str] = []
    with served(lambda handler: reached.append("!")) as other:
        with served(says(status, f"no\n\x1b[31m{SECRET}".encode() if status != 204 else b"", {"Location": other})) as url:
            with pytest.raises(ConnectionError, match=f"status {status}") as caught:
                asked(url, PROMPTS, token_variable="LLM_TOKEN")
    assert SECRET not in str(caught.value) and str(caught.value).isprintable() and not reached


def test_an_echoed_token_is_in_no_row(monkeypatch):
    monkeypatch.setenv("LLM_TOKEN", SECRET)
    with served(says(500, f"bad token {SECRET}".encode())) as url:
        assert asked(url, PROMPTS[:1], token_variable="LLM_TOKEN")[0].reason == "status 500 bad token ***"


@pytest.mark.parametrize("token", ["", "a b", "a\nb", "schlüssel"])
def test_a_token_no_header_may_hold_is_not_shown(token, monkeypatch):
    monkeypatch.setenv("LLM_TOKEN", token)
    with pytest.raises(ValueError, match="LLM_TOKEN") as caught:
        ChatEndpoint(base_url="http://h", model="m", token_variable="LLM_TOKEN")
    assert not token or token not in str(caught.value)


def test_addresses_are_checked_and_logins_in_them_not_shown():
    for wrong in ("ftp://h", "h:8000", "http://me:pw@h", "http://h?x", "http://h:port", "http://h/a b"):
        with pytest.raises(ValueError) as caught:
            ChatEndpoint(base_url=wrong, model="m")
        assert "pw" not in str(caught.value)


def endless(start: bytes, part: bytes, pause_s: float, end: threading.Event):
    def respond(handler):
        handler.rfile.read(int(handler.headers["Content-Length"]))
        handler.wfile.write(start)
        until = time.monotonic() + 5
        while time.monotonic() < until and not end.wait(pause_s):
            handler.wfile.write(part)

    return respond


@pytest.mark.parametrize("start", ["", f"{OK}X: ", f"{OK}Transfer-Encoding: chunked\r\n\r\n", f"{OK}\r\n"])
def test_a_server_that_never_ends_is_left_at_the_timeout(start):
    end = threading.Event()
    with served(endless(start.encode(), b"1", 0.02, end), end) as url:
        started = time.monotonic()
        with pytest.raises(NoAnswer, match=r"no whole answer in 0\.3 s"):
            ChatEndpoint(base_url=url, model="m", timeout_s=0.3).ask(messages(PROMPTS[0]), 0)
    assert time.monotonic() - started < 3


def test_an_answer_without_end_is_read_to_a_limit():
    end, sent = threading.Event(), []

    def respond(handler):
        handler.rfile.read(int(handler.headers["Content-Length"]))
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while not end.is_set():
            sent.append(handler.wfile.write(b"x" * 65536))

    with served(respond, end) as url:
        with pytest.raises(NoAnswer, match="above"):
            ChatEndpoint(base_url=url, model="m", timeout_s=20).ask(messages(PROMPTS[0]), 0)
    assert sum(sent) < 20 * MAX_ANSWER_BYTES


def test_a_server_that_is_gone_ends_the_run_and_the_next_goes_on(tmp_path):
    prompts = [f"A dog {number}" for number in range(40)]
    hostile, down = Hostile(prompts, only=["good"]), threading.Event()

    def respond(handler):
        if len(hostile.requests) >= 10:
            down.set()
        if not down.is_set():
            hostile.respond(handler)

    patient = Asking(backoff_s=0.001, concurrency=2, num_tries=2, patience=5)
    with served(respond) as url:
        with pytest.raises(ConnectionError, match=r"5 prompts in a row without an answer .* run the same command again"):
            asked(url, prompts, patient, cache := RewriteCache(tmp_path / "cache.jsonl"))
        cache.close()
    with served(hostile.respond) as url:
        rewrites = asked(url, prompts, patient, RewriteCache(tmp_path / "cache.jsonl"))
    assert {rewrite.by for rewrite in rewrites} == {"model"} and sum(rewrite.cached for rewrite in rewrites) >= 9
    assert len(hostile.requests) == 40 + 10 - sum(rewrite.cached for rewrite in rewrites)


def test_the_cache_outlives_torn_lines_and_is_checked(tmp_path):
    endpoint = ChatEndpoint(base_url="http://127.0.0.1:9", model="m")
    keys = [request_key(messages(prompt), endpoint.settings) for prompt in PROMPTS]
    path = tmp_path / "cache.jsonl"
    kept = RewriteCache(path)
    with served(Hostile(PROMPTS, only=["good"]).respond) as url:
        texts = [rewrite.text for rewrite in asked(url, PROMPTS[:2], cache=kept)]
    kept.close()
    path.write_bytes(b'[1]\n{"key": 3}\n' + path.read_bytes() + b"\xff" + path.read_bytes().splitlines()[0][:40])
    again = RewriteCache(path)
    assert [again.get(key) for key in keys[:2]] == texts
    again.put(keys[2], "She says <S>word 3<E>, altered by hand")
    again.close()
    reread = RewriteCache(path)
    assert reread.get(keys[2]) and reread.get(keys[0]) == texts[0]
    assert rewrite_all(PROMPTS[:3], endpoint, reread, Asking(num_tries=1))[2].by == "template"  # what fails the check is not used
    others = [messages(PROMPTS[1]), messages(PROMPTS[0] + " "), messages("A man"), messages("一个男人")]
    assert len({request_key(request, {"model": model}) for request in others for model in "ab"}) == 8


@pytest.mark.parametrize("written", [OSError(errno.ENOSPC, "No space left on device"), 3])
def test_a_full_disk_ends_the_run_naming_the_file(written, tmp_path, monkeypatch, capsys):
    source, write_ = write(tmp_path / "p.jsonl", PROMPTS), os.write

    def full(file, data):
        if b'"key"' not in data:
            return write_(file, data)
        if isinstance(written, OSError):
            raise written
        return write_(file, data[:written])

    monkeypatch.setattr(os, "write", full)
    with served(Hostile(PROMPTS, only=["good"]).respond) as url:
        options = ["--endpoint", url, "--model", "m", "--cache", str(tmp_path / "c.jsonl")]
        with pytest.raises(SystemExit) as stopped:
            main(["rewrite", str(source), "--to", str(tmp_path / "q.jsonl"), *options])
        assert stopped.value.code == 2 and "c.jsonl: no space left" in capsys.readouterr().err
        assert not (tmp_path / "q.jsonl").exists()
        monkeypatch.undo()
        main(["rewrite", str(source), "--to", str(tmp_path / "q.jsonl"), *options])
    assert [row["meta"]["rewrite"]["by"] for row in read(tmp_path / "q.jsonl")] == ["model"] * 6


def test_the_command_keeps_rows_and_says_what_fell_back(tmp_path, capsys):
    rows = [
        {"x": [1.0, None], "text": "一只猫", "meta": {"a": {"b": "é"}}, "data_id": "cat"},
        {"prompt": PROMPTS[1], "spk_wavs": ["v.wav"], "note": "\ud83d"},
        {"prompt": PROMPTS[2], "num_frames": 25},
    ]
    (tmp_path / "p.jsonl").write_text("\n\n".join(json.dumps(row) for row in rows))
    hostile = Hostile(["一只猫", *PROMPTS], only=["good"])

    def respond(handler):
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        prompt = hostile.prompts[body["messages"][-1]["content"]]
        _send(handler, 200, ANSWERS["drops" if prompt == PROMPTS[2] else "good"](prompt)[1], {})

    with served(respond) as url:
        options = ["--endpoint", url, "--model", "m", "--cache", str(tmp_path / "c" / "c.jsonl"), "--json"]
        main(["rewrite", str(tmp_path / "p.jsonl"), "--to", str(tmp_path / "q.jsonl"), *options])
    told = capsys.readouterr()
    assert "p-00005: by template, 4 tries, last: 0 speech spans, expected 1" in told.err
    assert json.loads(told.out) | {"to": 0} == {"rows": 3, "model": 2, "template": 1, "fell_back": 1, "cached": 0, "to": 0}
    made = read(tmp_path / "q.jsonl")
    assert [row["data_id"] for row in made] == ["cat", "p-00003", "p-00005"]
    for before, after in zip(rows, made, strict=True):
        key = "text" if "text" in before else "prompt"
        assert after | {"meta": 0} == before | {"meta": 0, "data_id": after["data_id"], key: after[key]}
        assert after["meta"]["rewrite"]["source"] == before[key]
    assert made[0]["meta"]["a"] == {"b": "é"} and made[0]["text"].startswith("视频展现了")


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["p.jsonl", "--to", "q.jsonl"], "give either --endpoint"),
        (["p.jsonl", "--to", "q.jsonl", "--template", "--endpoint", "http://h"], "give either --endpoint"),
        (["p.jsonl", "--to", "q.jsonl", "--endpoint", "http://h"], "model: none given"),
        (["p.jsonl", "--to", "p.jsonl", "--template"], "is the file to be rewritten"),
        (["p.jsonl", "--to", ".", "--template"], "a folder"),
        (["bad.jsonl", "--to", "q.jsonl", "--template"], "bad.jsonl:2 prompt: <S> at character 1 without <E>"),
        (["half.jsonl", "--to", "q.jsonl", "--template"], "half.jsonl:1 prompt: half a surrogate pair"),
        (["voice.jsonl", "--to", "sub/q.jsonl", "--template"], "'v.wav' relative to its own folder"),
        (["gone.jsonl", "--to", "q.jsonl", "--template"], "gone.jsonl: no such file"),
        (["p.jsonl", "--to", "q.jsonl", "--endpoint", "http://h", "--model", "m", "--tries", "0"], "num_tries"),
    ],
)
def test_bad_input_is_refused_before_anything_is_asked(arguments, found, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "p.jsonl", PROMPTS)
    write(tmp_path / "bad.jsonl", ["fine", "<S>a"])
    (tmp_path / "half.jsonl").write_text('{"prompt": "a \\ud83d"}\n')
    write(tmp_path / "voice.jsonl", PROMPTS[:1], spk_wavs=["v.wav"])
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(SystemExit) as stopped:
        main(["rewrite", *arguments])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and found in error and error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_rewrite_is_not_rewritten_again(tmp_path, capsys):
    write(tmp_path / "p.jsonl", PROMPTS)
    main(["rewrite", str(tmp_path / "p.jsonl"), "--to", str(tmp_path / "q.jsonl"), "--template"])
    with pytest.raises(SystemExit):
        main(["rewrite", str(tmp_path / "q.jsonl"), "--to", str(tmp_path / "r.jsonl"), "--template"])
    assert "q.jsonl:1 meta.rewrite: this row is a rewrite" in capsys.readouterr().err
