"""A rewrite never loses or alters a speech span, whatever the server does: hard prompts, hostile answers,
through the files."""

import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from rewrite_world import ANSWERS, ISSUE, SPAN, WIRE, Hostile, prompts, served

from finetune.rewriter.cache import RewriteCache
from finetune.rewriter.endpoint import ChatEndpoint
from finetune.rewriter.form import ENGLISH, rewrite_of
from finetune.rewriter.rewrite import RewriteSettings, fault, rewrite_all
from finetune.rewriter.rows import read_rows, write_rows

SMALL, FULL = 120, 10_000


def generated(count: int) -> list[str]:
    """Different prompts of the strategy, the same in every run."""
    found: dict[str, None] = {}

    same: dict[str, Any] = {
        "derandomize": True,
        "database": None,
        "deadline": None,
        "suppress_health_check": list(HealthCheck),
    }

    @settings(max_examples=2 * count, phases=[Phase.generate], **same)
    @given(prompts())
    def collect(prompt):
        if len(found) < count:
            found[prompt] = None

    collect()
    assert len(found) == count
    return list(found)


def carried(folder, asked: list[str]) -> Counter:
    """Rewrites `asked` through a hostile server from file to file, holds every span to the source, counts
    what was met."""
    source, to = folder / "p.jsonl", folder / "long.jsonl"
    given_rows = [
        {"prompt": prompt, "spk_wavs": [None] * prompt.count("<S>"), "keep": [1.5, None]} for prompt in asked
    ]
    source.write_text("".join(json.dumps(row) + "\n" for row in given_rows))
    hostile = Hostile(asked)
    with served(hostile.respond, hostile.end) as url:
        endpoint = ChatEndpoint(base_url=url, model="hostile", timeout_s=0.4)
        asking = RewriteSettings(concurrency=24, num_tries=4, backoff_s=0.001, patience=len(asked))
        rows, cache = read_rows(source, to), RewriteCache(folder / "cache.jsonl")
        rewrites = rewrite_all([row.prompt for row in rows], endpoint, cache, asking)
        write_rows(to, rows, rewrites, "hostile")
    lines = [json.loads(line) for line in to.read_bytes().split(b"\n")[:-1]]
    assert len(lines) == len(asked)
    lost = [row for prompt, row in zip(asked, lines, strict=True) if not unchanged(prompt, row)]
    assert lost == []
    assert any(row["meta"]["rewrite"]["by"] == "model" for row in lines)
    met = hostile.met + Counter(f"row by {row['meta']['rewrite']['by']}" for row in lines)
    met["spans"] = sum(len(SPAN.findall(prompt)) for prompt in asked)
    return met


def unchanged(prompt: str, row: dict) -> bool:
    text = row["prompt"]
    marks = all(text.count(mark) == prompt.count(mark) for mark in ("<S>", "<E>", "<extra_id_2>"))
    kept = (
        row["meta"]["rewrite"]["source"] == prompt
        and row["keep"] == [1.5, None]
        and row["spk_wavs"] == [None] * prompt.count("<S>")
    )
    return (
        marks
        and kept
        and SPAN.findall(text) == SPAN.findall(prompt)
        and (row["meta"]["rewrite"]["by"] != "original" or text == prompt)
    )


def show(met: Counter) -> None:
    print("\n" + "\n".join(f"{name:20} {count:6}" for name, count in sorted(met.items())))


def test_no_span_is_lost_or_altered(tmp_path):
    met = carried(tmp_path, generated(SMALL))
    show(met)
    assert all(met[name] for name in ISSUE)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_no_span_is_lost_or_altered_in_ten_thousand(tmp_path):
    met = carried(tmp_path, generated(FULL))
    show(met)
    assert all(met[name] for name in [*ANSWERS, *WIRE])


@pytest.mark.parametrize(
    "name",
    [
        "translates",
        "swaps",
        "splits",
        "combines",
        "half a character",
        "wide marks",
        "turns around",
        "split placeholder",
    ],
)
def test_the_check_here_sees_what_the_attacks_do(name):
    """The attacks are real: taken as they come, without the check of the rewriter, they change spans or their
    surroundings."""
    prompt = "She says <S>Good day<E>, he <S>no<E>."
    text = json.loads(ANSWERS[name](prompt)[1])["choices"][0]["message"]["content"]
    assert fault(prompt, rewrite_of(prompt, text), ENGLISH, 0.0)
