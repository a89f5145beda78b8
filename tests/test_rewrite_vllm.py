"""`nava rewrite` against a real vLLM server: protocol, concurrency, refusals, and the server killed in the
middle of a run."""

import json
import os
import threading
import time
from pathlib import Path

import pytest
from rewrite_world import good_answer
from vllm_world import kill, metric, vllm_server, write_chain_model

from experiments.cli import main
from finetune.rewriter.cache import RewriteCache
from finetune.rewriter.endpoint import ChatEndpoint
from finetune.rewriter.form import ENGLISH
from finetune.rewriter.rewrite import RewriteSettings, rewrite_all

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
TOKEN = "sk-of-the-test"
ONE = "A woman says <S>seven<E>."


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    environment = os.environ.get("NAVA_VLLM")
    if not environment:
        pytest.skip("NAVA_VLLM is not set: the folder of an environment with bin/vllm")
    folder = tmp_path_factory.mktemp("vllm")
    pieces = [
        part.cue + rest for part, rest in zip(ENGLISH.parts, _after_cues(good_answer(ONE)), strict=True)
    ]
    write_chain_model(folder / "model", pieces)
    with vllm_server(Path(environment), folder / "model", "chain", TOKEN, folder / "log.txt") as (
        url,
        process,
    ):
        yield url, process


def _after_cues(answer: str) -> list[str]:
    """What follows each cue in an answer that has them all."""
    found = []
    for part in reversed(ENGLISH.parts):
        answer, rest = answer.rsplit(part.cue, 1)
        found.append(rest)
    return found[::-1]


def endpoint(url: str, **more) -> ChatEndpoint:
    return ChatEndpoint(
        base_url=url, token_variable="VLLM_TOKEN", **{"model": "chain", "max_tokens": 64, **more}
    )


@pytest.fixture(autouse=True)
def token(monkeypatch):
    monkeypatch.setenv("VLLM_TOKEN", TOKEN)


def test_rows_through_a_real_server(server, tmp_path, capsys):
    url, _ = server
    prompts = [f"A woman number {number} says <S>数字 {number} 👍<E>." for number in range(24)]
    rows = [*prompts, "A quiet lake.", "He <S>one<E>, she <S>two<E>.", "Long. " * 400 + "<S>x<E>"]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in rows))
    before = metric(url, "vllm:request_success_total")
    options = [
        "--endpoint",
        url,
        "--model",
        "chain",
        "--token-variable",
        "VLLM_TOKEN",
        "--max-tokens",
        "64",
        "--concurrency",
        "8",
    ]
    options += ["--tries", "2", "--cache", str(tmp_path / "c.jsonl"), "--json"]
    main(["rewrite", str(tmp_path / "p.jsonl"), "--to", str(tmp_path / "q.jsonl"), *options])
    told = json.loads(capsys.readouterr().out)
    assert (told["model"], told["template"], told["fell_back"]) == (24, 3, 3)
    made = [json.loads(line) for line in (tmp_path / "q.jsonl").read_text().splitlines()]
    for number, row in enumerate(made[:24]):
        assert f"<S>数字 {number} 👍<E>" in row["prompt"] and row["prompt"].startswith(
            "The video shows a calm room"
        )
    reasons = [row["meta"]["rewrite"]["reason"] for row in made[24:]]
    assert reasons[:2] == [
        "'[SPEECH 1]' is left in place of speech; there are 0 spans",
        "1 speech spans, expected 2",
    ]
    assert reasons[2].startswith("status 400") and made[26]["meta"]["rewrite"]["tries"] == 1
    assert metric(url, "vllm:request_success_total") - before == 24 + 2 + 2


def test_a_wrong_model_and_a_missing_token_are_told_in_one_line(server, monkeypatch):
    url, _ = server
    with pytest.raises(ConnectionError, match=r"status 404 .*check model 'other'"):
        rewrite_all([ONE], endpoint(url, model="other"), RewriteCache(None), RewriteSettings())
    monkeypatch.setenv("VLLM_TOKEN", "wrong")
    with pytest.raises(ConnectionError, match="status 401"):
        rewrite_all([ONE], endpoint(url), RewriteCache(None), RewriteSettings())


def test_a_server_killed_in_the_middle_loses_nothing_that_was_answered(server, tmp_path):
    url, process = server
    prompts = [f"A man number {number} says <S>word {number}<E>." for number in range(400)]
    cache = RewriteCache(tmp_path / "cache.jsonl")

    def kill_after_some():
        while len(cache.kept) < 20:
            time.sleep(0.01)
        kill(process)

    killer = threading.Thread(target=kill_after_some)
    killer.start()
    with pytest.raises(
        ConnectionError, match=r"8 prompts in a row without an answer .* run the same command again"
    ):
        rewrite_all(
            prompts,
            endpoint(url),
            cache,
            RewriteSettings(concurrency=4, num_tries=2, backoff_s=0.05, patience=8),
        )
    killer.join()
    cache.close()
    kept = RewriteCache(tmp_path / "cache.jsonl")
    assert 20 <= len(kept.kept) < 400
    rewrites = rewrite_all(prompts, endpoint(url), kept, RewriteSettings(num_tries=1, patience=1000))
    assert sum(rewrite.by == "model" for rewrite in rewrites) == len(kept.kept)
    assert all(f"<S>word {number}<E>" in rewrite.text for number, rewrite in enumerate(rewrites))
