"""`nava rewrite`: what is asked and how often, what is taken, the cache, files, bad input."""

import errno
import json
import os
import threading
import time
from pathlib import Path

import pytest
from rewrite_world import ANSWERS, Hostile, good_answer, send, served

from experiments.cli import main
from finetune.rewriter.cache import Kept, RewriteCache, request_key
from finetune.rewriter.endpoint import ChatEndpoint
from finetune.rewriter.form import ENGLISH, messages, rewrite_of
from finetune.rewriter.rewrite import RewriteSettings, fault, rewrite_all

SECRET = "sk-very-secret"
PROMPTS = [f"A man number {number} says <S>word {number}<E>." for number in range(6)]
QUICK = RewriteSettings(backoff_s=0.001, concurrency=3)


def asked(url, prompts, asking=QUICK, cache=None, **more):
    return rewrite_all(
        prompts, ChatEndpoint(base_url=url, model="m", **more), cache or RewriteCache(None), asking
    )


def write(path: Path, prompts, **more) -> Path:
    path.write_text(
        "".join(json.dumps({"prompt": prompt, **more}, ensure_ascii=False) + "\n" for prompt in prompts)
    )
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
    assert all(
        prompt.split("<S>")[1][:6] in rewrite.text for prompt, rewrite in zip(PROMPTS, rewrites, strict=False)
    )
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
        original = asked(url, PROMPTS[:1], RewriteSettings(backoff_s=0.0, num_tries=1, fallback="original"))
    assert [body["seed"] for _, _, body in hostile.requests] == [0, 1, 2, 3, 0]
    assert (rewrites[0].by, rewrites[0].tries, rewrites[0].reason) == (
        "template",
        4,
        "status 500 <html>Internal Server Error",
    )
    assert (original[0].text, original[0].by) == (PROMPTS[0], "original")


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda text: text, ""),
        (lambda text: "<think>so " + text, "thoughts without an end"),
        (lambda text: text + " It rains and pours." * 80, "again and again"),
        (lambda text: text + " ".join(f"w{number}" for number in range(500)), "words, wanted 1 to 440"),
        (lambda text: "a" * 30_000 + text, "far too long"),
        (lambda text: "She says <S>no<E>.", "2% of the form's parts, wanted 50%"),
        (lambda text: "<S>no<E>.", "0 words"),
    ],
)
def test_what_is_no_rewrite_though_its_spans_are_right(change, found):
    prompt = "She says <S>no<E>."
    assert found in fault(prompt, change(rewrite_of(prompt, good_answer(prompt))), ENGLISH, 0.5)


def test_another_seed_asks_for_other_answers_to_what_fell_back():
    hostile = Hostile(PROMPTS, only=["drops"])
    with served(hostile.respond) as url:
        asked(url, PROMPTS[:1], RewriteSettings(backoff_s=0.0, num_tries=2, seed=3))
    assert [body["seed"] for _, _, body in hostile.requests] == [6, 7]


def test_a_busy_server_says_how_long_to_wait():
    replies = iter([503])

    def respond(handler):
        handler.rfile.read(int(handler.headers["Content-Length"]))
        status = next(replies, 200)
        send(handler, status, ANSWERS["good"](PROMPTS[0])[1], {"Retry-After": "0.3"} if status == 503 else {})

    with served(respond) as url:
        started = time.monotonic()
        assert asked(url, PROMPTS[:1])[0].tries == 2
    assert time.monotonic() - started >= 0.3


def test_a_server_that_is_gone_ends_the_run_and_the_next_goes_on(tmp_path):
    prompts = [f"A dog {number}" for number in range(40)]
    hostile, down = Hostile(prompts, only=["good"]), threading.Event()

    def respond(handler):
        if len(hostile.requests) >= 10:
            down.set()
        if not down.is_set():
            hostile.respond(handler)

    patient = RewriteSettings(backoff_s=0.001, concurrency=2, num_tries=2, patience=5)
    with served(respond) as url:
        with pytest.raises(
            ConnectionError, match=r"[56] prompts in a row without an answer .* run the same command again"
        ):
            asked(url, prompts, patient, cache := RewriteCache(tmp_path / "cache.jsonl"))
        cache.close()
    before = len(hostile.requests)
    with served(hostile.respond) as url:
        rewrites = asked(url, prompts, patient, RewriteCache(tmp_path / "cache.jsonl"))
    assert {rewrite.by for rewrite in rewrites} == {"model"} and sum(
        rewrite.cached for rewrite in rewrites
    ) >= 9
    assert len(hostile.requests) - before == 40 - sum(rewrite.cached for rewrite in rewrites)


def test_the_cache_outlives_torn_lines_and_is_checked(tmp_path):
    endpoint = ChatEndpoint(base_url="http://127.0.0.1:9", model="m")
    keys = [request_key(messages(prompt), endpoint.settings) for prompt in PROMPTS]
    path = tmp_path / "cache.jsonl"
    kept = RewriteCache(path)
    with served(Hostile(PROMPTS, only=["good"]).respond) as url:
        texts = [rewrite.text for rewrite in asked(url, PROMPTS[:2], cache=kept)]
    kept.close()
    path.write_bytes(
        b'[1]\n{"key": 3}\n' + path.read_bytes() + b"\xff" + path.read_bytes().splitlines()[0][:40]
    )
    again = RewriteCache(path)
    assert [again.get(key) for key in keys[:2]] == [Kept(text, 1) for text in texts]
    again.put(keys[2], Kept("She says <S>word 3<E>, altered by hand", 1))
    again.close()
    reread = RewriteCache(path)
    assert reread.get(keys[2]) and reread.get(keys[0]) == Kept(texts[0], 1)
    assert (
        rewrite_all(PROMPTS[:3], endpoint, reread, RewriteSettings(num_tries=1))[2].by == "template"
    )  # what fails the check is not used
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
        send(handler, 200, ANSWERS["drops" if prompt == PROMPTS[2] else "good"](prompt)[1], {})

    with served(respond) as url:
        options = ["--endpoint", url, "--model", "m", "--cache", str(tmp_path / "c" / "c.jsonl"), "--json"]
        main(["rewrite", str(tmp_path / "p.jsonl"), "--to", str(tmp_path / "q.jsonl"), *options])
    told = capsys.readouterr()
    assert "p-00005: by template, 4 tries, last: 0 speech spans, expected 1" in told.err
    assert json.loads(told.out) | {"to": 0} == {
        "rows": 3,
        "model": 2,
        "template": 1,
        "fell_back": 1,
        "cached": 0,
        "to": 0,
    }
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
        (["p.jsonl", "--to", "/proc/q.jsonl", "--template"], "/proc/q.jsonl: no such file"),
        (
            ["p.jsonl", "--to", "q.jsonl", "--endpoint", "http://h", "--model", "m", "--cache", "./p.jsonl"],
            "--cache p.jsonl: is the file",
        ),
        (
            ["bad.jsonl", "--to", "q.jsonl", "--template"],
            "bad.jsonl:2 prompt: <S> at character 1 without <E>",
        ),
        (["half.jsonl", "--to", "q.jsonl", "--template"], "half.jsonl:1 prompt: half a surrogate pair"),
        (["voice.jsonl", "--to", "sub/q.jsonl", "--template"], "'v.wav' relative to its own folder"),
        (["gone.jsonl", "--to", "q.jsonl", "--template"], "gone.jsonl: no such file"),
        (
            ["p.jsonl", "--to", "q.jsonl", "--endpoint", "http://h", "--model", "m", "--tries", "0"],
            "num_tries",
        ),
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


@pytest.mark.parametrize(
    "there", ["a note", '{"prompt": "mine"}\n', '{"meta": {"rewrite": {}}}\n{"meta": 1}\n', b"\xff\xfea\0"]
)
def test_another_file_is_not_replaced_by_rewrites(there, tmp_path, capsys):
    write(tmp_path / "p.jsonl", PROMPTS)
    kept = there if isinstance(there, bytes) else there.encode()
    (tmp_path / "q.jsonl").write_bytes(kept)
    with pytest.raises(SystemExit) as stopped:
        main(["rewrite", str(tmp_path / "p.jsonl"), "--to", str(tmp_path / "q.jsonl"), "--template"])
    assert stopped.value.code == 2 and "q.jsonl: not a file of rewrites" in capsys.readouterr().err
    assert (tmp_path / "q.jsonl").read_bytes() == kept


def test_rewrites_that_differ_go_to_the_trash(tmp_path, capsys):
    """Somebody may have corrected them by hand; equal ones stay, and a blank file is nobody's work."""
    write(tmp_path / "p.jsonl", PROMPTS)
    made = tmp_path / "q.jsonl"
    made.write_text("\n")
    for _ in range(2):
        main(["rewrite", str(tmp_path / "p.jsonl"), "--to", str(made), "--template"])
    first, (row, *others) = made.read_bytes(), read(made)
    made.write_text("".join(json.dumps(one) + "\n" for one in [row | {"prompt": "by hand"}, *others]))
    trash = tmp_path / ".trash"
    before = {path.name for path in trash.iterdir()}
    main(["rewrite", str(tmp_path / "p.jsonl"), "--to", str(made), "--template", "--json"])
    (kept,) = [path for path in trash.iterdir() if path.name not in before]
    assert made.read_bytes() == first and read(kept)[0]["prompt"] == "by hand"
    told = capsys.readouterr()
    assert f"moved to {kept}" in told.err and json.loads(told.out[told.out.rindex("{") :])["rows"] == 6


def test_a_rewrite_is_not_rewritten_again(tmp_path, capsys):
    write(tmp_path / "p.jsonl", PROMPTS)
    main(["rewrite", str(tmp_path / "p.jsonl"), "--to", str(tmp_path / "q.jsonl"), "--template"])
    with pytest.raises(SystemExit):
        main(["rewrite", str(tmp_path / "q.jsonl"), "--to", str(tmp_path / "r.jsonl"), "--template"])
    assert "q.jsonl:1 meta.rewrite: this row is a rewrite" in capsys.readouterr().err
